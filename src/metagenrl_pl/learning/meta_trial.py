"""Try a judge and an inner step on small networks and noise, before a run relies on them."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metagenrl_pl.agents.population import AgentSettings, Population
from metagenrl_pl.agents.stacked_networks import Parameters
from metagenrl_pl.agents.windows import Windows, valid_states
from metagenrl_pl.common.attempt import attempt, compare
from metagenrl_pl.learning.inner_step import AdamMoments, InnerStep
from metagenrl_pl.learning.judges import Judge

_VALID = "to leave it to autograd"


def check_judge(judge: Judge) -> None:
    """Compare a judge's loss with what the meta update needs of it.

    Raises:
        ValueError: if it raises an exception, its loss has another shape than [P] or is not finite, does not depend on the actions,
            depends on padded steps or on other agents, or has another gradient than `loss_and_gradient` gives.
    """
    population, windows = _agents_and_windows()
    policy, critics = population.policy, population.critics
    action = population.networks.action(policy, windows.observation)
    arguments = (population.networks, action, policy, critics, windows)
    valid = "a loss of each agent, [P]"
    loss = attempt("loss", valid, lambda: judge.loss(*arguments))
    _check_shape("loss", loss, (population.num_agents,))
    given, gradient = attempt("loss_and_gradient", valid, lambda: judge.loss_and_gradient(*arguments))
    _check_shape("loss_and_gradient", given, loss.shape)
    _check_shape("gradient", gradient, action.shape)
    if not gradient.any():
        raise ValueError("its loss does not depend on the actions, so the objective would learn nothing")
    if gradient[windows.valid == 0].any():
        raise ValueError("its loss depends on the actions of padded steps; valid is a loss of steps where windows.valid is 1")
    padded = attempt(
        "loss", valid, lambda: judge.loss(arguments[0], action + 0.1 * (1 - windows.valid[..., None]), *arguments[2:])
    )
    if not torch.allclose(padded, loss, rtol=1e-3, atol=1e-6):
        raise ValueError("its loss depends on the actions of padded steps; valid is a loss of steps where windows.valid is 1")
    mixed = attempt("loss", valid, lambda: judge.loss(arguments[0], *_with_another_second_agent(*arguments[1:])))
    if not torch.allclose(mixed[0], loss[0], rtol=1e-3, atol=1e-6):
        raise ValueError("the loss of an agent depends on other agents; valid are sums and means over windows and steps only")
    if not torch.allclose(given, loss, rtol=1e-3):
        raise ValueError("its loss differs from that of its loss_and_gradient; valid is a loss alone")
    _, expected = Judge.loss_and_gradient(judge, *arguments)
    compare("gradient", gradient, expected, _VALID)


def check_inner_step(inner: InnerStep) -> None:
    """Compare an inner step with what the meta update needs of it.

    Raises:
        ValueError: if it raises an exception, returns other parameters than it got or numbers that are not finite, does not depend on the
            gradient, or has another derivative than `step_and_pull_back` gives.
    """
    population, windows = _agents_and_windows()
    noise = torch.Generator().manual_seed(1)

    def random_like(parameters: Parameters) -> Parameters:
        return {name: torch.rand(p.shape, generator=noise) - 0.5 for name, p in parameters.items()}

    policy = population.policy
    gradient, cotangent = random_like(policy), random_like(policy)
    moments = AdamMoments(
        random_like(policy),
        {name: p * p for name, p in random_like(policy).items()},
        torch.full((population.num_agents,), 3.0),
    )
    arguments = (policy, gradient, windows.num_valid, moments if inner.needs_moments else None)
    valid = "the policy's parameters after the step, [P, ...]"
    stepped = attempt("step", valid, lambda: inner(*arguments))
    _check_parameters("step", stepped, policy)
    again, pull_back = attempt("step_and_pull_back", valid, lambda: inner.step_and_pull_back(*arguments))
    _check_parameters("step_and_pull_back", again, policy)
    found = attempt("pull-back", valid, lambda: pull_back(cotangent))
    _check_parameters("pull-back", found, policy)
    if not any(d.any() for d in found.values()):
        raise ValueError("its step does not depend on the gradient, so the objective would learn nothing")
    at_zero = (policy, {name: torch.zeros_like(p) for name, p in policy.items()}, *arguments[2:])  # units that are off have it
    stepped_at_zero, pull_back_at_zero = attempt("step_and_pull_back", valid, lambda: inner.step_and_pull_back(*at_zero))
    _check_parameters("step from a gradient of 0", stepped_at_zero, policy)
    found_at_zero = attempt("pull-back at a gradient of 0", valid, lambda: pull_back_at_zero(cotangent))
    _check_parameters("pull-back at a gradient of 0", found_at_zero, policy)
    expected = InnerStep.step_and_pull_back(inner, *arguments)[1](cotangent)
    for name, one, other in (("step", again, stepped), ("pull-back", found, expected)):
        flat, flat_expected = (torch.cat([parts[key].flatten() for key in policy]) for parts in (one, other))
        compare(name, flat, flat_expected, _VALID)


def _with_another_second_agent(
    action: Tensor, policy: Parameters, critics: Parameters, windows: Windows
) -> tuple[Tensor, Parameters, Parameters, Windows]:
    """The arguments of a judge, of which those of the first agent stay as they are."""

    def halved(x: Tensor) -> Tensor:
        return torch.cat([x[:1], x[1:] / 2])

    networks = [{name: halved(p) for name, p in parameters.items()} for parameters in (policy, critics)]
    return halved(action), networks[0], networks[1], Windows(*map(halved, windows))._replace(valid=windows.valid)


def _agents_and_windows() -> tuple[Population, Windows]:
    """Two agents, and three windows of four steps each, of noise."""
    observation_size, action_size, num_windows, num_steps = 6, 5, 3, 4  # all different, so that a mix-up of axes shows
    population = Population([(observation_size, action_size)] * 2, [0, 1], AgentSettings(hidden_units=7))
    noise = torch.Generator().manual_seed(0)
    random = partial(torch.rand, generator=noise)
    steps = (2, num_windows, num_steps)
    valid = torch.ones(steps)
    valid[:, -1, num_steps // 2 :] = 0  # the last window of each agent has ended
    return population, Windows(
        states=(random(2, num_windows, num_steps + 1, observation_size) - 0.5) * valid_states(valid)[..., None],
        action=(random(*steps, action_size) - 0.5) * valid[..., None],
        reward=(random(steps) - 0.5) * valid,
        terminated=torch.zeros(steps),
        valid=valid,
    )


def _check_parameters(name: str, found: Any, policy: Parameters) -> None:
    if not isinstance(found, Mapping) or found.keys() != policy.keys():
        keys = ", ".join(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
        raise ValueError(f"its {name} returns {keys}; valid is a mapping with the keys {', '.join(policy)}")
    for key, parameter in policy.items():
        _check_shape(f"{name}'s {key}", found[key], parameter.shape)


def _check_shape(name: str, found: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(found, Tensor) or found.shape != shape:
        what = f"the shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"the type {type(found).__name__}"
        raise ValueError(
            f"its {name} has {what} for 2 agents, 3 windows, 4 steps and 5 action dimensions; valid is {tuple(shape)}"
        )
    if not found.isfinite().all():
        raise ValueError(f"its {name} is not finite")
