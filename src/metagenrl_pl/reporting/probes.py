"""What an objective has learned: which way it pushes an action, and how far back it gives credit.

An objective is applied to windows that are made by hand (P = 1, A = 1): rewards and values are noise with mean 0 and variance 1, so
that the objective's own normalisation leaves them as they are and a hand-made objective can be asked the same. Every window has its
mirror image, so what the noise adds to the advantage cancels in the mean.
"""

import math
from typing import NamedTuple

import numpy as np
import torch

from metagenrl_pl.objectives import LearnedMixture, Objective, ObjectiveInputs
from metagenrl_pl.objectives.reinforce import generalised_advantage

PROBES = {
    "reward": "reward of the step",
    "value": "V(s) of the step",
    "next_value": "V(s') after the step",
    "critic_gradient": "dQ/da of the step",
}
"""What can be varied in `action_gradient_map`, with its name on an axis; the last only for objectives that look at it."""

_LARGEST = 2.0  # of what is varied, in standard deviations before the batch is standardised
_DISTANCE = 0.5  # between policy action and replayed action when credit is measured


class GradientMap(NamedTuple):
    """dL/da of one step, the mean over windows.

    Args:
        gradient: [distances, probed], in the objective's own unit.
        distances: policy action minus replayed action.
        probed: reward, value or the critic's gradient, in standard deviations of the batch.
    """

    gradient: np.ndarray
    distances: np.ndarray
    probed: np.ndarray


def action_gradient_map(
    objective: Objective, probe: str, num_steps: int, num_points: int = 13, num_windows: int = 24, seed: int = 0
) -> GradientMap:
    """How dL/da in the middle of a window depends on the policy's distance from the replayed action and on one input of the step.

    The replayed action of that step is 0; all other steps have replayed actions and policy actions near them from noise. The critic's
    gradient is noise as well where it is probed, else 0.

    Args:
        objective: to probe.
        probe: key of `PROBES`.
        num_steps: of a window.
        num_points: along either axis.
        num_windows: that the mean is taken over, mirror images not counted.
        seed: of the noise.
    """
    step = num_steps // 2
    distances, probed = np.linspace(-1, 1, num_points), np.linspace(-_LARGEST, _LARGEST, num_points)
    repeats = num_points * num_points
    reward, value, critic_gradient, replay_action, policy_action = (
        x.repeat(repeats, 1) for x in _noise(num_steps, num_windows, seed)
    )  # [repeats * windows, T or T + 1]
    distance, varied = (
        torch.from_numpy(axis).float().repeat_interleave(2 * num_windows)
        for axis in (distances.repeat(num_points), np.tile(probed, num_points))
    )
    targets = {
        "reward": (reward, step),
        "value": (value, step),
        "next_value": (value, step + 1),
        "critic_gradient": (critic_gradient, step),
    }
    target, index = targets[probe]
    target[:, index] = varied
    scale = target.square().mean().sqrt()
    target /= scale  # the mean is 0 already
    replay_action[:, step] = 0.0
    policy_action[:, step] = distance
    if probe != "critic_gradient":
        critic_gradient.zero_()
    gradient = _action_gradient(objective, reward, value, critic_gradient, replay_action, policy_action)[:, step]
    return GradientMap(gradient.view(num_points, num_points, -1).mean(-1).numpy(), distances, probed / float(scale))


def credit_matrix(objective: Objective, num_steps: int, num_windows: int = 128, seed: int = 0) -> np.ndarray:
    """How much dL/da at step t changes when one standard deviation is added to the reward at step k, [t, k].

    The median over windows, since the gradients of a learned objective have heavy tails. The policy's action is 0.5 above the
    replayed one at every step, so a positive entry pulls it back: an action that is followed by more reward becomes more likely. All
    windows are normalised together, so the normalisation changes nothing. REINFORCE gives no credit for rewards before the action
    (k < t). A learned objective may: action t enters the losses of earlier steps as well, through the LSTM, and those have seen the
    rewards from their own step on.

    Args:
        objective: to probe.
        num_steps: of a window.
        num_windows: that the median is taken over, mirror images not counted.
        seed: of the noise.
    """
    reward, value, critic_gradient, replay_action, _ = (
        x.repeat(num_steps + 1, 1) for x in _noise(num_steps, num_windows, seed)
    )  # [(T + 1) * windows, T or T + 1]; the first windows stay as they are
    per_step = 2 * num_windows
    for k in range(num_steps):
        reward[(k + 1) * per_step : (k + 2) * per_step, k] += 1.0
    replay_action = replay_action * (1 - _DISTANCE / 2) - _DISTANCE / 2  # leaves room above
    gradient = _action_gradient(
        objective, reward, value, torch.zeros_like(critic_gradient), replay_action, replay_action + _DISTANCE
    )
    gradient = gradient.view(num_steps + 1, per_step, num_steps)  # no change first
    return (gradient[1:] - gradient[:1]).median(1).values.T.numpy()


def critic_share_by_step(mixture: LearnedMixture, num_steps: int, num_windows: int = 128, seed: int = 0) -> np.ndarray:
    """DDPG's part of a mixture's weights at every step where the replayed action was better than expected, and elsewhere, [2, T].

    The mean over windows.

    Args:
        mixture: to probe.
        num_steps: of a window.
        num_windows: of noise, mirror images not counted.
        seed: of the noise.
    """
    reward, value, critic_gradient, replay_action, policy_action = _noise(num_steps, num_windows, seed)
    inputs = _inputs(reward, value, critic_gradient, replay_action, policy_action)
    of_critic, of_returns = mixture.weights(mixture.stacked_parameters(1), inputs)[0].unbind(-1)  # [B, T] each
    share = of_critic / (of_critic + of_returns)
    is_better = generalised_advantage(inputs, mixture.reinforce.discount, mixture.reinforce.gae_lambda)[0] > 0
    return torch.stack([(share * steps).sum(0) / steps.sum(0) for steps in (is_better, ~is_better)]).detach().numpy()


def similarity(one: np.ndarray, other: np.ndarray) -> float:
    """Cosine of the angle between two pictures, 1 if they are equal up to a positive factor; NaN if one is zero everywhere."""
    norms = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float((one * other).sum()) / norms if norms else math.nan


def credit_by_delay(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Delays k - t and the mean credit at each, of a `credit_matrix`, divided by its largest absolute value, [delays] both."""
    num_steps = len(matrix)
    delays = np.arange(1 - min(num_steps, 3), num_steps)  # a little of what lies behind, where REINFORCE has nothing
    credit = np.array([np.diagonal(matrix, int(delay)).mean() for delay in delays])
    largest = np.abs(credit).max()
    return delays, credit / largest if largest else credit


def _noise(num_steps: int, num_windows: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Rewards, values, the critic's gradients, replayed actions and policy actions, [2 windows, T], values [2 windows, T + 1].

    The first three have mean 0 and variance 1 over the batch, and are alike within a window, as they are in replay.
    """
    generator = torch.Generator().manual_seed(seed)

    def mirror_noise(length: int) -> torch.Tensor:
        level = torch.randn(num_windows, 1, generator=generator)
        noise = 0.8 * level + 0.6 * torch.randn(num_windows, length, generator=generator)
        noise = torch.cat([noise, -noise])
        return noise / noise.square().mean().sqrt()

    reward, value = mirror_noise(num_steps), mirror_noise(num_steps + 1)
    replay_action = 1.6 * torch.rand(num_windows, num_steps, generator=generator) - 0.8
    policy_action = replay_action + 0.2 * torch.randn(num_windows, num_steps, generator=generator)
    critic_gradient = mirror_noise(num_steps)
    return reward, value, critic_gradient, replay_action.repeat(2, 1), policy_action.clamp(-1, 1).repeat(2, 1)


def _action_gradient(
    objective: Objective,
    reward: torch.Tensor,
    value: torch.Tensor,
    critic_gradient: torch.Tensor,
    replay_action: torch.Tensor,
    policy_action: torch.Tensor,
) -> torch.Tensor:
    """dL/da of windows [B, T] of one agent with one action dimension, [B, T]."""
    inputs = _inputs(reward, value, critic_gradient, replay_action, policy_action)
    return objective.action_gradient(objective.stacked_parameters(1), inputs)[0, ..., 0].detach()


def _inputs(
    reward: torch.Tensor,
    value: torch.Tensor,
    critic_gradient: torch.Tensor,
    replay_action: torch.Tensor,
    policy_action: torch.Tensor,
) -> ObjectiveInputs:
    """Windows of one agent with one action dimension, whose episodes go on."""
    return ObjectiveInputs(
        policy_action=policy_action[None, ..., None],
        replay_action=replay_action[None, ..., None],
        reward=reward[None],
        value=value[None],
        terminated=torch.zeros_like(reward)[None],
        valid=torch.ones_like(reward)[None],
        action_weight=torch.ones(1, 1),
        critic_gradient=critic_gradient[None, ..., None],
    )
