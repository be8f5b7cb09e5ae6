"""What an objective is: a function of the actions that the policy would take now."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from metagenrl_pl.nn import Parameters


class ObjectiveInputs(NamedTuple):
    """All that an objective may see. Only `policy_action` carries a gradient; everything else is a constant.

    `value[..., t]` is V(s_t) = Q1(s_t, pi(s_t)); entry `length` of a window is the state after its last valid step, later ones are 0.
    None unless the objective declares `needs_value`.
    `critic_gradient` is dQ1/da at the policy's action; None unless the objective declares `needs_critic_gradient`.
    """

    policy_action: Tensor  # [P, B, T, A]
    replay_action: Tensor  # [P, B, T, A]
    reward: Tensor  # [P, B, T]
    value: Tensor | None  # [P, B, T + 1]
    terminated: Tensor  # [P, B, T]
    valid: Tensor  # [P, B, T]
    action_weight: Tensor  # [P, A], 1 / (real action dimensions of the agent), 0 where padded
    critic_gradient: Tensor | None = None  # [P, B, T, A]


class Objective(nn.Module, ABC):
    """A per-step loss of the policy's actions; the policy descends its mean over valid steps.

    The policy's parameters enter through `policy_action` alone, so all that the updates need is the action gradient dL/da. A subclass
    implements `loss` on stacked tensors; its `nn.Parameter`s, if any, are what meta-learning trains.
    """

    #: Whether `ObjectiveInputs.value` has to be computed for this objective.
    needs_value: bool = True

    #: Whether `ObjectiveInputs.critic_gradient` has to be computed for this objective.
    needs_critic_gradient: bool = False

    @abstractmethod
    def loss(self, parameters: Parameters, inputs: ObjectiveInputs) -> Tensor:
        """Loss of every step, [P, B, T], 0 where padded; `parameters` are stacked, [P, ...]."""

    def action_gradient(self, parameters: Parameters, inputs: ObjectiveInputs) -> Tensor:
        """Gradient of the summed loss in the policy's action, g = dL/da, [P, B, T, A]."""
        return torch.func.grad(lambda action: self.loss(parameters, inputs._replace(policy_action=action)).sum())(
            inputs.policy_action
        )

    def stacked_parameters(self, num_agents: int) -> Parameters:
        """The parameters with an agent axis in front (views), so that one differentiation gives the gradient of every agent."""
        return {name: p.detach().expand(num_agents, *p.shape) for name, p in self.named_parameters()}

    @property
    def learns(self) -> bool:
        """Whether there is anything to meta-learn."""
        return any(p.requires_grad for p in self.parameters())
