"""The interface of objectives: a loss of the actions that the current policy would take."""

import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from metagenrl_pl.agents.stacked_networks import Parameters

CriticChoice = Literal["first", "both"]
"""Which action gradient dQ/da to use: the first critic's, or the mean of both twins. Their errors partly cancel in the mean."""

_NOT_THE_USERS = (str(Path(__file__).parents[1]), str(Path(torch.__file__).parent))

PullBack = Callable[[Tensor], Parameters]
"""From a constant c, [P, B, T, A], the gradient of <g, c> in an objective's stacked parameters, [P, ...]."""


class ObjectiveInputs(NamedTuple):
    """All inputs of an objective. Only `policy_action` carries a gradient; the other tensors are constants.

    `value[..., t]` is V(s_t) = Q1(s_t, pi(s_t)). Entry `length` of a window belongs to the state after its last valid step; later
    entries are 0. `critic_gradient` is dQ/da at the policy's action, of the critics that the objective names in `critic_gradient_of`.
    Both are None unless the objective sets `needs_value` or `needs_critic_gradient`, respectively.
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

    #: The critics whose dQ/da is `ObjectiveInputs.critic_gradient`.
    critic_gradient_of: CriticChoice = "first"

    #: How it was made, if it was read from a file.
    card: Mapping[str, Any] = MappingProxyType({})

    _was_called = False

    def forward(
        self,
        policy_action: Tensor,
        replay_action: Tensor,
        reward: Tensor,
        value: Tensor | None,
        terminated: Tensor,
        valid: Tensor | None = None,
        critic_gradient: Tensor | None = None,
        reduction: Literal["none", "mean"] = "none",
    ) -> Tensor:
        """Loss for a single PyTorch policy, which descends its mean over valid steps.

        The loss is computed without autocast: in bfloat16 its gradient would be off by several percent. Call `backward` outside of
        autocast, too, as PyTorch recommends.

        Learned objectives normalise rewards, values and the critic's gradient over all windows of the batch. So the loss of a
        step depends on the other steps. Use batches of the size that the objective was meta-trained with, not single windows.

        Args:
            policy_action: actions of the current policy, in [-1, 1], [B, T, A]. Gradients flow only through this argument.
            replay_action: actions in the replay, [B, T, A].
            reward: [B, T].
            value: Q1(s, pi(s)) of the T + 1 states, [B, T + 1]. Entry `length` belongs to the state after the last valid step.
                None if the objective does not use it.
            terminated: 1 or true if the episode terminated after the step (not if a time limit truncated it), [B, T].
            valid: 1 or true on real steps, which come first, 0 on padding, [B, T]; all valid by default.
            critic_gradient: dQ1/da at `policy_action`, [B, T, A], or the mean of both critics' if `critic_gradient_of` is `both`.
                None if the objective does not use it.
            reduction: `mean` for the mean over valid steps, `none` for the loss of each step.

        Returns:
            The loss, [B, T], 0 where padded; with `reduction="mean"` a scalar.

        Raises:
            ValueError: if an input that the objective uses is missing, an input has the wrong shape or dtype, or `reduction` is neither.
        """
        if reduction not in ("none", "mean"):
            raise ValueError(f"reduction={reduction!r}: valid is 'none' or 'mean'")
        inputs = self.inputs_of_one(policy_action, replay_action, reward, value, terminated, valid, critic_gradient)
        with torch.autocast(policy_action.device.type, enabled=False):
            loss = self.loss(self.stacked_parameters(1), inputs)[0]
        return loss.sum() / inputs.valid.sum() if reduction == "mean" else loss

    def inputs_of_one(
        self,
        policy_action: Tensor,
        replay_action: Tensor,
        reward: Tensor,
        value: Tensor | None,
        terminated: Tensor,
        valid: Tensor | None = None,
        critic_gradient: Tensor | None = None,
    ) -> ObjectiveInputs:
        """The inputs of `loss` for a single policy, with an agent axis in front. Arguments and errors are those of `forward`."""
        if policy_action.ndim != 3:
            raise ValueError(f"policy_action: expected [B, T, A], got {tuple(policy_action.shape)}")
        weight = next(self.parameters(), policy_action)
        if weight.dtype != policy_action.dtype:
            raise ValueError(f"policy_action is {policy_action.dtype}; valid is {weight.dtype}, as the objective's weights")
        steps = policy_action.shape[:-1]
        expected = {
            "replay_action": (replay_action, policy_action.shape),
            "reward": (reward, steps),
            "value": (value, (*steps[:-1], steps[-1] + 1)),
            "terminated": (terminated, steps),
            "valid": (valid, steps),
            "critic_gradient": (critic_gradient, policy_action.shape),
        }
        for name, (tensor, shape) in expected.items():
            if tensor is None and getattr(self, f"needs_{name}", False):
                raise ValueError(f"{name}=None: this objective needs it; valid is a tensor of {tuple(shape)}")
            if tensor is not None and tensor.shape != shape:
                raise ValueError(
                    f"{name}: expected {tuple(shape)} beside actions of {tuple(policy_action.shape)}, got {tuple(tensor.shape)}"
                )

        def constant(tensor: Tensor) -> Tensor:
            return tensor.detach().to(policy_action.dtype)[None]

        valid = torch.ones_like(reward) if valid is None else valid
        if not self._was_called:  # once, since looking at values costs time on a GPU
            self._was_called = True
            warn_of(self, policy_action, replay_action, valid)
        num_actions = policy_action.shape[-1]
        return ObjectiveInputs(
            policy_action[None],
            replay_action=constant(replay_action),
            reward=constant(reward),
            value=None if value is None else constant(value),
            terminated=constant(terminated),
            valid=constant(valid),
            action_weight=policy_action.new_full((1, num_actions), 1 / num_actions),
            critic_gradient=None if critic_gradient is None else constant(critic_gradient),
        )

    @abstractmethod
    def loss(self, parameters: Parameters, inputs: ObjectiveInputs) -> Tensor:
        """Loss of every step, [P, B, T], 0 where padded. `parameters` are stacked, [P, ...]."""

    def action_gradient(self, parameters: Parameters, inputs: ObjectiveInputs) -> Tensor:
        """Gradient of the summed loss with respect to the policy's action, g = dL/da, [P, B, T, A]."""
        return torch.func.grad(lambda action: self.loss(parameters, inputs._replace(policy_action=action)).sum())(
            inputs.policy_action
        )

    def loss_and_action_gradient(self, parameters: Parameters, inputs: ObjectiveInputs) -> tuple[Tensor, Tensor]:
        """`loss`, [P, B, T], and g, [P, B, T, A], as constants, for the policy update: in one pass, unless a subclass writes g itself."""
        if type(self).action_gradient is not Objective.action_gradient:
            with torch.no_grad():
                return self.loss(parameters, inputs), self.action_gradient(parameters, inputs)

        def summed(action: Tensor) -> tuple[Tensor, Tensor]:
            loss = self.loss(parameters, inputs._replace(policy_action=action))
            return loss.sum(), loss

        with torch.no_grad():
            gradient, loss = torch.func.grad(summed, has_aux=True)(inputs.policy_action)
        return loss, gradient

    def action_gradient_and_pull_back(self, parameters: Parameters, inputs: ObjectiveInputs) -> tuple[Tensor, PullBack]:
        """g = dL/da, and how <g, c> depends on the parameters for a constant c. By autograd, unless a subclass writes it by hand."""
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

    def loss_and_action_gradient(self, parameters: Parameters, inputs: ObjectiveInputs) -> tuple[Tensor, Tensor]:
        """See `Objective`."""
        with torch.no_grad():
            gradient = self.action_gradient(parameters, inputs)
            return (gradient * inputs.policy_action).sum(-1), gradient


def warn_of(objective: Objective, policy_action: Tensor, replay_action: Tensor, valid: Tensor) -> None:
    """Warn, in one line each, of inputs that are allowed but probably a mistake. Shapes are those of `Objective.forward`."""
    try:
        largest = float(torch.stack([policy_action.detach().abs().max(), replay_action.detach().abs().max()]).max())
        is_prefix = not bool((valid[:, 1:].float() > valid[:, :-1].float()).any())
    except RuntimeError:  # inside of torch.func.vmap, values cannot be looked at
        return
    messages = []
    if largest > 1.01:
        messages.append(f"actions reach {largest:.3g}; an objective expects them in [-1, 1]")
    if not is_prefix:
        messages.append("valid has ones after a zero; an objective expects the real steps of a window first, then padding")
    trained = (objective.card.get("settings", {}).get("agent.num_windows"), objective.card.get("window_length"))
    if all(trained) and not all(size / 4 <= now <= size * 4 for size, now in zip(trained, valid.shape, strict=True)):
        num_windows, length = valid.shape
        messages.append(
            f"{num_windows} windows of {length} steps are far from the {trained[0]} of {trained[1]} of this objective's meta-training"
        )
    if messages:
        files = (frame.filename for frame in inspect.stack(context=0))
        level = next((n for n, file in enumerate(files, 1) if not file.startswith(_NOT_THE_USERS)), 1)
        for message in messages:
            warnings.warn(message, stacklevel=level)  # where the objective is called


def check_critics(critic_gradient_of: CriticChoice) -> CriticChoice:
    """Return `critic_gradient_of` if it is valid.

    Raises:
        ValueError: if it is not one of `CriticChoice`.
    """
    if critic_gradient_of not in get_args(CriticChoice):
        raise ValueError(f"critic_gradient_of must be {' or '.join(get_args(CriticChoice))}, got {critic_gradient_of!r}")
    return critic_gradient_of
