"""What an objective is: a function of the actions that the policy would take now."""

import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from metagenrl_pl.nn import Parameters

PullBack = Callable[[Tensor], Parameters]
"""From a constant c, [P, B, T, A], the gradient of <g, c> in an objective's stacked parameters, [P, ...]."""


class ObjectiveInputs(NamedTuple):
    """All that an objective may see. Only `policy_action` carries a gradient; everything else is a constant.

    `value[..., t]` is V(s_t) = Q1(s_t, pi(s_t)); entry `length` of a window is the state after its last valid step, later ones are 0.
    None unless the objective declares `needs_value`.
    `critic_gradient` is dQ/da at the policy's action, of the critic that the objective declares as `critic_gradient_of`; None unless it
    declares `needs_critic_gradient`.
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

    #: Whose dQ/da that is: the first critic's, or the mean of both twins', which do not share all of their errors.
    critic_gradient_of: Literal["first", "both"] = "first"

    @abstractmethod
    def loss(self, parameters: Parameters, inputs: ObjectiveInputs) -> Tensor:
        """Loss of every step, [P, B, T], 0 where padded; `parameters` are stacked, [P, ...]."""

    def action_gradient(self, parameters: Parameters, inputs: ObjectiveInputs) -> Tensor:
        """Gradient of the summed loss in the policy's action, g = dL/da, [P, B, T, A]."""
        return torch.func.grad(lambda action: self.loss(parameters, inputs._replace(policy_action=action)).sum())(
            inputs.policy_action
        )

    def action_gradient_and_pull_back(self, parameters: Parameters, inputs: ObjectiveInputs) -> tuple[Tensor, PullBack]:
        """g = dL/da, and how <g, c> depends on the parameters for a constant c. By autograd, unless a subclass writes it out."""
        gradient, pull_back = torch.func.vjp(  # type: ignore[misc]
            lambda parameters: self.action_gradient(parameters, inputs), parameters
        )
        return gradient, lambda direction: pull_back(direction)[0]

    def stacked_parameters(self, num_agents: int) -> Parameters:
        """The parameters with an agent axis in front (views), so that one differentiation gives the gradient of every agent."""
        return {name: p.detach().expand(num_agents, *p.shape) for name, p in self.named_parameters()}

    @property
    def learns(self) -> bool:
        """Whether there is anything to meta-learn."""
        return any(p.requires_grad for p in self.parameters())


class DirectedObjective(Objective):
    """An objective that is given by its action gradient instead of a loss; a subclass implements `action_gradient`."""

    @abstractmethod
    def action_gradient(self, parameters: Parameters, inputs: ObjectiveInputs) -> Tensor:
        """g, [P, B, T, A], 0 where padded."""

    def loss(self, parameters: Parameters, inputs: ObjectiveInputs) -> Tensor:
        """<g, a> of every step, [P, B, T], with g held constant: linear in the action, with the slope g at the policy's."""
        here = inputs._replace(policy_action=inputs.policy_action.detach())  # g is the gradient; it has none of its own
        return (self.action_gradient(parameters, here) * inputs.policy_action).sum(-1)


def check_critics(critic_gradient_of: Literal["first", "both"]) -> Literal["first", "both"]:
    """Give back whose dQ/da an objective looks at.

    Raises:
        ValueError: if there are no such critics.
    """
    if critic_gradient_of not in ("first", "both"):
        raise ValueError(f"critic_gradient_of must be first or both, got {critic_gradient_of!r}")
    return critic_gradient_of


def check_loss(objective: Objective) -> None:
    """Ask an objective about a few windows of noise.

    Raises:
        ValueError: if it looks at no critic that there is, or its loss raises something, has another shape than [P, B, T], does not
            depend on the policy's action, or is not finite.
    """
    check_critics(objective.critic_gradient_of)
    num_agents, num_windows, num_steps, num_actions = 2, 3, 4, 5  # all different
    noise = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.rand(num_agents, num_windows, *shape, generator=noise) - 0.5

    inputs = ObjectiveInputs(
        policy_action=random(num_steps, num_actions),
        replay_action=random(num_steps, num_actions),
        reward=random(num_steps),
        value=random(num_steps + 1) if objective.needs_value else None,
        terminated=torch.zeros(num_agents, num_windows, num_steps),
        valid=torch.ones(num_agents, num_windows, num_steps),
        action_weight=torch.full((num_agents, num_actions), 1 / num_actions),
        critic_gradient=random(num_steps, num_actions) if objective.needs_critic_gradient else None,
    )
    parameters = objective.stacked_parameters(num_agents)
    try:
        loss = objective.loss(parameters, inputs)
    except Exception as error:  # a class of the user's own may raise anything
        place = traceback.extract_tb(error.__traceback__)[-1]
        reason = " ".join(str(error).split())
        raise ValueError(
            f"its loss raises {type(error).__name__}: {reason} ({Path(place.filename).name}, line {place.lineno}); valid is a loss of "
            "[P, B, T]"
        ) from error
    if loss.shape != inputs.reward.shape:
        raise ValueError(
            f"its loss has the shape {tuple(loss.shape)} for {num_agents} agents, {num_windows} windows, {num_steps} steps and "
            f"{num_actions} action dimensions; valid is {tuple(inputs.reward.shape)}, [P, B, T]"
        )
    gradient = objective.action_gradient(parameters, inputs)
    if not gradient.isfinite().all():
        raise ValueError("the gradient of its loss in the policy's action is not finite")
    if not gradient.any():
        raise ValueError("its loss does not depend on inputs.policy_action, so policies would learn nothing")
