"""Off-policy REINFORCE with generalised advantage estimation, the hand-made objective that the paper uses as a baseline."""

import torch
from torch import Tensor

from metagenrl_pl.agents.stacked_networks import Parameters
from metagenrl_pl.objectives.contract import Objective, ObjectiveInputs


def td_error(inputs: ObjectiveInputs, discount: float) -> Tensor:
    """r + discount V(s') (1 - terminated) - V(s) of every step, [P, B, T], 0 where padded."""
    assert inputs.value is not None  # guaranteed by needs_value
    error = inputs.reward + discount * inputs.value[..., 1:] * (1 - inputs.terminated) - inputs.value[..., :-1]
    return error * inputs.valid


def generalised_advantage(inputs: ObjectiveInputs, discount: float, gae_lambda: float) -> Tensor:
    """GAE(lambda) of every step, [P, B, T]. It stops at terminal states and after the last valid step.

    Schulman et al. 2016, equation 16.
    """
    error = td_error(inputs, discount)
    advantage = torch.zeros_like(error[..., 0])
    advantages = []
    for t in reversed(range(error.shape[-1])):
        advantage = error[..., t] + discount * gae_lambda * (1 - inputs.terminated[..., t]) * advantage
        advantages.append(advantage)
    return torch.stack(advantages[::-1], -1)


class Reinforce(Objective):
    """L = mean_A (a_replay - a_policy)^2 * GAE, on unnormalised rewards and values.

    Up to constants this is minus the log-likelihood of the replayed action times its advantage, for a Gaussian policy with unit
    variance.

    Args:
        discount: of the advantage.
        gae_lambda: trade-off between bias (0) and variance (1) of the advantage.

    Raises:
        ValueError: if a number is outside [0, 1].
    """

    def __init__(self, discount: float = 0.99, gae_lambda: float = 0.97) -> None:
        super().__init__()
        for name, value in (("discount", discount), ("gae_lambda", gae_lambda)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {value}")
        self.discount = discount
        self.gae_lambda = gae_lambda

    def loss(self, parameters: Parameters, inputs: ObjectiveInputs) -> Tensor:
        """Loss of every step, [P, B, T], 0 where padded. `parameters` are not used."""
        squared = (inputs.replay_action - inputs.policy_action) ** 2  # [P, B, T, A]
        distance = (squared * inputs.action_weight[:, None, None]).sum(-1)
        weight = generalised_advantage(inputs, self.discount, self.gae_lambda)
        return distance * weight * inputs.valid
