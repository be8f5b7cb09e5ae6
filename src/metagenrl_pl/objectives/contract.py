"""The interface of objectives: a loss of the actions that the current policy would take."""

import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from metagenrl_pl.agents.stacked_networks import Parameters

CriticChoice = Literal["first", "both"]
"""Which action gradient dQ/da to use: the first critic's, or the mean of both twins. Their errors partly cancel in the mean."""

PullBack = Callable[[Tensor], Parameters]
"""From a constant c, [P, B, T, A], the gradient of <g, c> in an objective's stacked parameters, [P, ...]."""


class ObjectiveInputs(NamedTuple):
    """All inputs of an objective. Only `policy_action` carries a gradient; the other tensors are constants.

    `value[..., t]` is V(s_t) = Q1(s_t, pi(s_t)). Entry `length` of a window belongs to the state after its last valid step; later
    entries are 0. It is None unless the objective sets `needs_value`. `critic_gradient` is dQ/da at the policy's action, of the
    critics that the objective names in `critic_gradient_of`. It is None unless the objective sets `needs_critic_gradient`.
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
    """A per-step loss of the policy's actions. The policy descends its mean over valid steps.

    The loss depends on the policy's parameters only through `policy_action`. So the updates need only the action gradient dL/da.
    A subclass implements `loss` on stacked tensors. Meta-learning trains its `nn.Parameter`s, if it has any.
    """

    #: Whether `ObjectiveInputs.value` has to be computed for this objective.
    needs_value: bool = True

    #: Whether `ObjectiveInputs.critic_gradient` has to be computed for this objective.
    needs_critic_gradient: bool = False

    #: The critics whose dQ/da that is.
    critic_gradient_of: CriticChoice = "first"

    @abstractmethod
    def loss(self, parameters: Parameters, inputs: ObjectiveInputs) -> Tensor:
        """Loss of every step, [P, B, T], 0 where padded. `parameters` are stacked, [P, ...]."""

    def action_gradient(self, parameters: Parameters, inputs: ObjectiveInputs) -> Tensor:
        """Gradient of the summed loss with respect to the policy's action, g = dL/da, [P, B, T, A]."""
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
        """The parameters as views with an agent axis in front, [P, ...].

        So one differentiation gives a gradient for every agent.
        """
        return {name: p.detach().expand(num_agents, *p.shape) for name, p in self.named_parameters()}

    @property
    def learns(self) -> bool:
        """Whether the objective has parameters to meta-learn."""
        return any(p.requires_grad for p in self.parameters())


class DirectedObjective(Objective):
    """An objective that is defined by its action gradient instead of a loss. A subclass implements `action_gradient`."""

    @abstractmethod
    def action_gradient(self, parameters: Parameters, inputs: ObjectiveInputs) -> Tensor:
        """The action gradient g, [P, B, T, A], 0 where padded."""

    def loss(self, parameters: Parameters, inputs: ObjectiveInputs) -> Tensor:
        """<g, a> of every step, [P, B, T], with g held constant. Its derivative with respect to the policy's action is g."""
        constants = inputs._replace(policy_action=inputs.policy_action.detach())  # no gradient flows through g itself
        return (self.action_gradient(parameters, constants) * inputs.policy_action).sum(-1)


def check_critics(critic_gradient_of: CriticChoice) -> CriticChoice:
    """Return `critic_gradient_of` if it is valid.

    Raises:
        ValueError: if it is not one of `CriticChoice`.
    """
    if critic_gradient_of not in get_args(CriticChoice):
        raise ValueError(f"critic_gradient_of must be {' or '.join(get_args(CriticChoice))}, got {critic_gradient_of!r}")
    return critic_gradient_of


def check_loss(objective: Objective) -> None:
    """Try an objective on a few windows of noise.

    Raises:
        ValueError: if `critic_gradient_of` is not valid, or the loss raises an exception, has a shape other than [P, B, T], does
            not depend on the policy's action, or has a gradient that is not finite.
    """
    check_critics(objective.critic_gradient_of)
    num_agents, num_windows, num_steps, num_actions = 2, 3, 4, 5  # all different, so that a mix-up of axes shows
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
    except Exception as error:  # a user's class may raise anything
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
