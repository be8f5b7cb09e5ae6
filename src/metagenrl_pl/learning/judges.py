"""Judges: the meta-loss, which rates the policy after the inner step and which meta-learning minimises (paper eq. 5)."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from metagenrl_pl.agents.networks import Networks, first_critic
from metagenrl_pl.agents.stacked_networks import Parameters, inverse_root_mean_square
from metagenrl_pl.agents.windows import Windows
from metagenrl_pl.learning.policy_update import objective_inputs
from metagenrl_pl.objectives import Reinforce


class Judge(ABC):
    """A loss of policies that is differentiable with respect to their parameters. Lower is better."""

    @abstractmethod
    def loss(self, networks: Networks, stepped: Parameters, policy: Parameters, critics: Parameters, windows: Windows) -> Tensor:
        """The meta-loss of each agent, [P].

        Args:
            networks: of P agents.
            stepped: policies after the inner step, [P, ...]. Gradients flow only through these.
            policy: policies before the inner step, [P, ...].
            critics: the twins, [P, 2, ...].
            windows: on which the policies are judged.
        """


class CriticJudge(Judge):
    """-Q1(s, pi(s)), averaged over valid steps: the critic rates the policy's actions, as in the paper."""

    def loss(self, networks: Networks, stepped: Parameters, policy: Parameters, critics: Parameters, windows: Windows) -> Tensor:
        return _critic_loss(networks, critics, windows, networks.action(stepped, windows.observation))


class ReturnsJudge(Judge):
    """A weighted sum of the critic's loss and a loss by returns. Not in the paper.

    The loss by returns is off-policy REINFORCE. It is low if the policy is close to replayed actions with better returns than the
    critic expected, and far from replayed actions with worse returns. Each loss is divided by the root mean square of its action
    gradient, at the policy before the inner step. So the meaning of `share` does not depend on their scales.

    Args:
        share: weight of the loss by returns, from 0 to 1; the critic's loss has the rest.
        discount, gae_lambda: of the generalised advantage, see `Reinforce`.

    Raises:
        ValueError: if a number is outside [0, 1].
    """

    def __init__(self, share: float = 0.5, discount: float = 0.99, gae_lambda: float = 0.97) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"share must be between 0 and 1, got {share}")
        self.share, self.reinforce = share, Reinforce(discount, gae_lambda)

    def loss(self, networks: Networks, stepped: Parameters, policy: Parameters, critics: Parameters, windows: Windows) -> Tensor:
        action = networks.action(stepped, windows.observation)
        by_critic = _critic_loss(networks, critics, windows, action)
        before = networks.action(policy, windows.observation)
        inputs = objective_inputs(networks, self.reinforce, policy, critics, windows, before)
        by_returns = self.reinforce.loss({}, inputs._replace(policy_action=action)).sum((1, 2)) / windows.num_valid
        slopes = (
            torch.func.grad(lambda a: networks.q(first_critic(critics), windows.observation, a).sum())(before)
            * networks.action_mask[:, None, None],
            self.reinforce.action_gradient({}, inputs),
        )
        scales = [inverse_root_mean_square(slope, inputs.action_weight, windows.valid) for slope in slopes]
        return (1 - self.share) * scales[0] * by_critic + self.share * scales[1] * by_returns


def _critic_loss(networks: Networks, critics: Parameters, windows: Windows, action: Tensor) -> Tensor:
    value = networks.q(first_critic(critics), windows.observation, action)  # [P, B, T]
    return -(value * windows.valid).sum((1, 2)) / windows.num_valid
