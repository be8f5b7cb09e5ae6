"""Critic update: temporal-difference learning of twin critics (paper eq. 3, with TD3's targets)."""

from torch import Tensor

from metagenrl_pl.agents.networks import Networks, TracedCritics
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


def critic_gradients(
    networks: Networks,
    critics: Parameters,
    target_policy: Parameters,
    target_critics: Parameters,
    windows: Windows,
    noise: Tensor,
    discount: float,
) -> tuple[Parameters, Tensor]:
    """Gradient of each agent's loss with respect to its critics, [P, 2, ...], unclipped, and the losses, [P].

    The loss is the sum of both critics' squared errors, averaged over the agent's valid steps.
    """
    target = critic_targets(networks, target_policy, target_critics, windows, noise, discount)

    traced = TracedCritics(networks, critics, windows.observation, windows.action)
    error = traced.value - target.unsqueeze(1)  # [P, 2, B, T]
    weight = (windows.valid / windows.num_valid.view(-1, 1, 1)).unsqueeze(1)
    loss = (error * error * weight).sum((1, 2, 3))
    return traced.parameter_gradients(2 * error * weight), loss
