"""Critic update: temporal-difference learning of twin critics (paper eq. 3, with TD3's targets)."""

import torch
from torch import Tensor

from metagenrl_pl.agents.networks import Networks
from metagenrl_pl.agents.stacked_networks import Parameters
from metagenrl_pl.agents.windows import Windows


def critic_targets(
    networks: Networks, target_policy: Parameters, target_critics: Parameters, windows: Windows, noise: Tensor, discount: float
) -> Tensor:
    """y = r + gamma (1 - terminated) min(Q1', Q2')(s', clip(pi'(s') + noise, -1, 1)), [P, B, T].

    Args:
        networks: of the population.
        target_policy, target_critics: moving averages of policies and critics.
        windows: B windows of every agent.
        noise: for target policy smoothing, clipped, [P, B, T, A].
        discount: gamma.
    """
    action = networks.action(target_policy, windows.next_observation) + noise
    action = action.clamp(-1, 1) * networks.action_mask[:, None, None]
    value = networks.ensemble_q(target_critics, windows.next_observation, action).amin(1)
    return windows.reward + discount * (1 - windows.terminated) * value


def critic_loss(networks: Networks, critics: Parameters, windows: Windows, target: Tensor) -> Tensor:
    """Mean over valid steps of the sum of both critics' squared errors, [P]. `target` is a constant, [P, B, T]."""
    error = networks.ensemble_q(critics, windows.observation, windows.action) - target.unsqueeze(1)  # [P, 2, B, T]
    return (error * error * windows.valid.unsqueeze(1)).sum((1, 2, 3)) / windows.num_valid


def critic_gradients(
    networks: Networks,
    critics: Parameters,
    target_policy: Parameters,
    target_critics: Parameters,
    windows: Windows,
    noise: Tensor,
    discount: float,
) -> tuple[Parameters, Tensor]:
    """Gradient of each agent's loss with respect to its critics, [P, 2, ...], unclipped, and the losses, [P]."""
    target = critic_targets(networks, target_policy, target_critics, windows, noise, discount)

    def total(critics: Parameters) -> tuple[Tensor, Tensor]:
        loss = critic_loss(networks, critics, windows, target)
        return loss.sum(), loss

    gradients, loss = torch.func.grad(total, has_aux=True)(critics)
    return gradients, loss
