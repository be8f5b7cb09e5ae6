"""Diagnostics: whether the objective agrees with the critic, policies are saturated, and meta-gradients are noise."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metagenrl_pl.agents.networks import Networks
from metagenrl_pl.agents.stacked_networks import Parameters
from metagenrl_pl.agents.windows import Windows
from metagenrl_pl.learning.learner import Draw, Learner
from metagenrl_pl.learning.meta_update import combine_meta_gradients
from metagenrl_pl.learning.policy_update import first_slope, objective_inputs
from metagenrl_pl.objectives import Objective

SATURATED_FROM = 0.99
"""An action with a larger absolute value counts as saturated: the slope of tanh is below 0.02 there."""


def action_gradient_agreement(
    networks: Networks, objective: Objective, alpha: Parameters, policy: Parameters, critics: Parameters, windows: Windows
) -> Tensor:
    """Cosine between the objective's action gradient and -dQ1/da over all valid steps of each agent, [P]."""
    action = networks.action(policy, windows.observation)
    inputs = objective_inputs(networks, objective, policy, critics, windows, action)
    gradient = objective.action_gradient(alpha, inputs).flatten(1)
    slope = first_slope(networks, objective, critics, windows, action, inputs)
    descent = -(slope * windows.valid[..., None]).flatten(1)
    return torch.nn.functional.cosine_similarity(gradient, descent, dim=1)


def saturation(networks: Networks, policy: Parameters, windows: Windows) -> Tensor:
    """Share of each policy's action entries beyond `SATURATED_FROM` in absolute value, over its valid steps, [P]."""
    action = networks.action(policy, windows.observation)
    is_saturated = (action.abs() > SATURATED_FROM) * windows.valid[..., None]
    return (is_saturated.sum((1, 2)) * networks.action_weight).sum(-1) / windows.num_valid


def signal_to_noise(samples: Sequence[Tensor]) -> Tensor:
    """Norm of the mean of random vectors over their spread: |E x| / sqrt(E |x - E x|^2), estimated from M samples.

    The squared norm of a mean of M samples is too large by the variance over M, which is subtracted. An estimate below 0 counts
    as 0.

    Args:
        samples: M tensors [..., N], M at least 2.

    Returns:
        [...]; 0 where the samples do not vary.
    """
    _, signal, variance = _signal(samples)
    return torch.where(variance > 0, (signal / variance.clamp(min=torch.finfo(variance.dtype).tiny)).sqrt(), 0.0)


def _signal(samples: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The mean of the samples, [..., N], the estimate of |E x|^2, [...], and their variance, the sum over entries, [...]."""
    stacked = torch.stack(list(samples))
    mean = stacked.mean(0)
    variance = (stacked - mean).square().sum(-1).sum(0) / (len(stacked) - 1)
    return mean, (mean.square().sum(-1) - variance / len(stacked)).clamp(min=0), variance


class MetaGradients(NamedTuple):
    """The meta-gradients of all agents over several batches, each normalised to norm 1.

    Args:
        products: <mean_i, mean_j> of all pairs of agents, [P, P].
        signal: estimate of |E g|^2, [P].
        combined_snr: signal-to-noise ratio of the gradient that the objective descends.
    """

    products: Tensor
    signal: Tensor
    combined_snr: float

    def cosine(self, pairs: Iterable[tuple[int, int]]) -> float:
        """Cosine between the expected gradients of two agents, over pairs of agents; 0 if there is no signal.

        It is sum <mean_i, mean_j> / sum |E g_i| |E g_j|. Agents draw their windows independently, so noise does not change the
        numerator on average.
        """
        i, j = map(list, zip(*pairs, strict=True))
        lengths = (self.signal[i] * self.signal[j]).sqrt().sum()
        return float(self.products[i, j].sum() / lengths) if lengths > 0 else 0.0


def diagnose(learner: Learner, draw: Draw, num_windows: int, num_batches: int) -> tuple[dict[str, Tensor], MetaGradients | None]:
    """Agreement, saturation and meta-gradients of a learner. Every process has to call it, after the first update.

    Args:
        learner: with the agents and the objective.
        draw: draws new windows.
        num_windows: for agreement and saturation.
        num_batches: of windows, for the signal-to-noise ratio of the meta-gradient; at least 2.

    Returns:
        `agreement`, `saturation` and, if gradients meta-train the objective, `meta_gradient_snr` of each agent of this process, [P],
        and the meta-gradients of all agents, or None.
    """
    population, windows = learner.population, draw(num_windows)
    networks, policy = population.networks, population.policy
    found = {
        "agreement": action_gradient_agreement(networks, learner.objective, learner.alpha, policy, population.critics, windows),
        "saturation": saturation(networks, policy, windows),
    }
    if learner.meta is None:
        return found, None
    of_agents, combined = [], []
    for _ in range(num_batches):
        gradients, _ = learner.gradients_of_objective(draw((learner.meta.inner.num_steps + 1) * learner.settings.num_windows))
        together, _ = combine_meta_gradients(gradients, learner.meta.settings.gradient, learner.placement.gather)
        of_agents.append(torch.cat([g.reshape(len(g), -1) for g in gradients.values()], 1))
        combined.append(torch.cat([g.flatten() for g in together.values()]))
    # Agent by agent, so that the bits do not depend on how many agents are in this process.
    agents = range(population.num_agents)
    found["meta_gradient_snr"] = torch.stack([signal_to_noise([gradient[agent] for gradient in of_agents]) for agent in agents])
    normalised = [_signal([torch.nn.functional.normalize(gradient[agent], dim=0) for gradient in of_agents]) for agent in agents]
    mean, signal, _ = (learner.placement.gather(torch.stack(parts)) for parts in zip(*normalised, strict=True))
    return found, MetaGradients(mean @ mean.T, signal, float(signal_to_noise(combined)))
