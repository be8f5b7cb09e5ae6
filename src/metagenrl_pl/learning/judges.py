"""Judges: the loss of a policy after the inner step, which meta-learning makes small (paper eq. 5)."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from metagenrl_pl.agents.networks import Networks
from metagenrl_pl.agents.stacked_networks import Parameters, inverse_root_mean_square
from metagenrl_pl.agents.windows import Windows
from metagenrl_pl.learning.policy_update import objective_inputs, values_and_action_gradient
from metagenrl_pl.objectives import Reinforce


class Judge(ABC):
    """Computes how bad a policy is from its actions. A subclass implements `loss`."""

    @abstractmethod
    def loss(self, networks: Networks, action: Tensor, policy: Parameters, critics: Parameters, windows: Windows) -> Tensor:
        """The meta-loss of each agent, [P]; differentiable in `action`.

        Args:
            networks: of P agents.
            action: of the policies after the inner step on the windows' observations, [P, B, T, A].
            policy: policies before the inner step.
            critics: the twins, [P, 2, ...].
            windows: on which the policies are judged.
        """

    def loss_and_gradient(
        self, networks: Networks, action: Tensor, policy: Parameters, critics: Parameters, windows: Windows
    ) -> tuple[Tensor, Tensor]:
        """`loss`, [P], and its gradient with respect to `action`, [P, B, T, A]; by autograd, unless a subclass writes it by hand."""

        def total(action: Tensor) -> tuple[Tensor, Tensor]:
            loss = self.loss(networks, action, policy, critics, windows)
            return loss.sum(), loss

        gradient, loss = torch.func.grad(total, has_aux=True)(action)
        return loss, gradient


class CriticJudge(Judge):
    """-Q1(s, pi(s)), averaged over valid steps: a policy is good if its critic values its actions (the paper)."""

    def loss(self, networks: Networks, action: Tensor, policy: Parameters, critics: Parameters, windows: Windows) -> Tensor:
        return self.loss_and_gradient(networks, action, policy, critics, windows)[0]

    def loss_and_gradient(
        self, networks: Networks, action: Tensor, policy: Parameters, critics: Parameters, windows: Windows
    ) -> tuple[Tensor, Tensor]:
        per_step = windows.valid / windows.num_valid.view(-1, 1, 1)
        value, slope = values_and_action_gradient(networks, critics, windows, action, "first")
        return -(value * per_step).sum((1, 2)), -slope * per_step.unsqueeze(-1)


class ReturnsJudge(Judge):
    """A mixture of the critic's loss and a loss computed from returns. Not in the paper.

    The loss from returns is that of off-policy REINFORCE. It is low where the policy is near replayed actions with better returns than
    the critic expected, and far from replayed actions with worse ones. Both losses are divided by the root mean square of their action
    gradients at the policy before its step, so that `share` means the same at any scale.

    Args:
        share: of the loss from returns, from 0 to 1.
        discount, gae_lambda: of the generalised advantage, see `Reinforce`.

    Raises:
        ValueError: if a number is outside [0, 1].
    """

    def __init__(self, share: float = 0.5, discount: float = 0.99, gae_lambda: float = 0.97) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"share must be between 0 and 1, got {share}")
        self.share, self.critic, self.reinforce = share, CriticJudge(), Reinforce(discount, gae_lambda)

    def loss(self, networks: Networks, action: Tensor, policy: Parameters, critics: Parameters, windows: Windows) -> Tensor:
        return self.loss_and_gradient(networks, action, policy, critics, windows)[0]

    def loss_and_gradient(
        self, networks: Networks, action: Tensor, policy: Parameters, critics: Parameters, windows: Windows
    ) -> tuple[Tensor, Tensor]:
        before = networks.action(policy, windows.observation)
        inputs = objective_inputs(networks, self.reinforce, policy, critics, windows, before)
        _, critic_before = values_and_action_gradient(networks, critics, windows, before, "first")
        returns_before = self.reinforce.action_gradient({}, inputs)
        critic_scale, returns_scale = (
            inverse_root_mean_square(gradient, inputs.action_weight, windows.valid)
            for gradient in (critic_before, returns_before)
        )
        critic_weight, returns_weight = (1 - self.share) * critic_scale, self.share * returns_scale  # [P]
        inputs = inputs._replace(policy_action=action)
        per_step = windows.valid / windows.num_valid.view(-1, 1, 1)
        critic_loss, critic_gradient = self.critic.loss_and_gradient(networks, action, policy, critics, windows)
        returns_loss = (self.reinforce.loss({}, inputs) * per_step).sum((1, 2))
        returns_gradient = self.reinforce.action_gradient({}, inputs) * per_step.unsqueeze(-1)
        return (
            critic_weight * critic_loss + returns_weight * returns_loss,
            critic_weight.view(-1, 1, 1, 1) * critic_gradient + returns_weight.view(-1, 1, 1, 1) * returns_gradient,
        )
