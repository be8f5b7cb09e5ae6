"""The actor's loss: values, action gradients, scales and masks around a learned objective."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metagenrl_pl.agents.windows import valid_states
from metagenrl_pl.common.files import path_argument
from metagenrl_pl.common.streams import to_device
from metagenrl_pl.integrations.windows import WindowBatch
from metagenrl_pl.objectives import Objective, ParametricObjective
from metagenrl_pl.objectives.contract import ObjectiveInputs
from metagenrl_pl.objectives.pretrained import pretrained_names

Policy = Callable[[Tensor], Tensor]
"""From observations, [N, ...], to actions, [N, A]."""

Critic = Callable[[Tensor, Tensor], Tensor]
"""From observations, [N, ...], and actions, [N, A], to values, [N] or [N, 1]."""


def actor_loss(
    objective: Objective,
    policy: Policy,
    critics: Sequence[Critic],
    windows: WindowBatch,
    action_low: Any = -1.0,
    action_high: Any = 1.0,
) -> Tensor:
    """The loss that a policy descends, a scalar. Its gradient reaches the policy alone, not the critics.

    Clip the norm of this gradient, as meta-training did (see `meta_trained_with`).

    Args:
        objective: learned or hand-made.
        policy: gives actions in the environment's units.
        critics: one, or the twins, for actions in the environment's units. The first one gives the values.
        windows: from a `WindowBuffer`.
        action_low, action_high: bounds of the environment's actions, numbers or arrays of [A]. The objective sees actions in [-1, 1].

    Raises:
        ValueError: if there is no critic or its values have another shape, an argument is something else, or a bound is not finite,
            not below the other one or of another shape.
    """
    critics = _check(objective, critics)
    if not isinstance(windows, WindowBatch):
        raise ValueError(f"windows={type(windows).__name__}: valid is a WindowBatch, as WindowBuffer.sample gives")
    is_real = valid_states(windows.valid) > 0  # [B, T + 1], with the state after the last step, which has a value, too
    real = is_real.nonzero(as_tuple=True)  # once, since a GPU's host waits for it
    states = windows.states[real]  # padding would spoil the statistics of batch normalisation
    action = policy(states).to(windows.reward.dtype)  # that of the objective, also under autocast
    middle, half = _middle_and_half_range(action_low, action_high, action)
    value, slope = _value_and_slope(critics if objective.critic_gradient_of == "both" else critics[:1], states, action, objective)

    def pad(of_states: Tensor) -> Tensor:
        return of_states.new_zeros(*is_real.shape, *of_states.shape[1:]).index_put(real, of_states)

    inputs = objective.inputs_of_one(
        policy_action=pad((action - middle) / half)[:, :-1],
        replay_action=(windows.action - middle) / half * windows.valid[..., None],
        reward=windows.reward,
        value=None if value is None else pad(value),
        terminated=windows.terminated,
        valid=windows.valid,
        critic_gradient=None if slope is None else pad(slope * half)[:, :-1],  # per unit of [-1, 1]
    )
    return _MeanLoss.apply(inputs.policy_action, objective, inputs)


def _middle_and_half_range(low: Any, high: Any, action: Tensor) -> tuple[Tensor, Tensor]:
    """Of the interval between two bounds: middle and half of its length, [] or [A], on the device of actions, [N, A].

    Raises:
        ValueError: if the bounds are none.
    """
    given = f"action_low={low}, action_high={high}"
    low, high = (torch.as_tensor(bound, dtype=action.dtype, device="cpu") for bound in (low, high))
    if any(bound.shape not in ((), (1,), action.shape[1:]) for bound in (low, high)):
        raise ValueError(f"{given}: valid are numbers, or {action.shape[1]} of them, one for each action")
    middle, half = (high + low) / 2, (high - low) / 2
    if not bool((half.isfinite() & (half > 0)).all()):  # looked at on the CPU, or every call would wait for a GPU
        raise ValueError(f"{given}: valid are finite bounds, low ones below high ones")
    return to_device(middle, action.device), to_device(half, action.device)


def _check(objective: Objective, critics: Sequence[Critic]) -> list[Critic]:
    if not isinstance(objective, Objective):
        raise ValueError(f"objective={objective!r}: valid is an objective, as find_objective gives")
    try:
        found = list(critics)
    except TypeError:
        raise ValueError(f"critics={type(critics).__name__}: valid is a list of one critic, or of the twins") from None
    if not found:
        raise ValueError("critics=[]: valid is one critic, or the twins")
    return found


class _MeanLoss(torch.autograd.Function):
    """The mean of an objective's loss over valid steps. Its derivative is the action gradient, which is cheaper than autograd's."""

    @staticmethod
    def forward(ctx: Any, policy_action: Tensor, objective: Objective, inputs: ObjectiveInputs) -> Tensor:
        constants = inputs._replace(policy_action=policy_action.detach())
        with torch.autocast(policy_action.device.type, enabled=False):  # see `Objective.forward`
            loss, gradient = objective.loss_and_action_gradient(objective.stacked_parameters(1), constants)
        num_valid = inputs.valid.sum()
        ctx.save_for_backward(gradient / num_valid)
        return loss.sum() / num_valid

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor, None, None]:
        return dloss * ctx.saved_tensors[0], None, None


def _value_and_slope(
    critics: Sequence[Critic], states: Tensor, action: Tensor, objective: Objective
) -> tuple[Tensor | None, Tensor | None]:
    """Q1(s, a), [N], and dQ/da of the mean over `critics`, [N, A], as constants; None if the objective does not use it."""
    if not objective.needs_critic_gradient:
        if not objective.needs_value:
            return None, None
        with torch.no_grad():  # a constant in the objective
            return _values_of(critics[0], states, action), None
    with torch.enable_grad():
        leaf = action.detach().requires_grad_()  # so the gradient is that of the critics alone
        values = [_values_of(critic, states, leaf) for critic in critics]
        mean = torch.stack(values).mean(0).sum()
        (slope,) = torch.autograd.grad(mean, leaf, allow_unused=True) if mean.requires_grad else (None,)
        if slope is None:
            raise ValueError(
                "critics: their values do not depend on the action; valid are critics of states and actions, not detached"
            )
    return (values[0].detach() if objective.needs_value else None), slope


def _values_of(critic: Critic, states: Tensor, action: Tensor) -> Tensor:
    """Q(s, a), [N]."""
    value = critic(states, action)
    if not isinstance(value, Tensor) or value.numel() != len(states):
        found = f"the shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ValueError(f"critics: a critic gives {found} for {len(states)} states; valid is a tensor of [N] or [N, 1]")
    return value.flatten().to(action.dtype)


class MetaTrainedWith(NamedTuple):
    """The settings of the agents that an objective was meta-trained with."""

    num_windows: int
    window_length: int
    max_grad_norm: float


def meta_trained_with(objective: Objective) -> MetaTrainedWith:
    """The number and length of windows, and the largest norm of the policy's gradient, from an objective's card.

    An objective without a card gets those of the pretrained ones: 16 windows of 10 steps, and 1.
    """
    card, settings = objective.card, objective.card.get("settings", {})
    return MetaTrainedWith(
        settings.get("agent.num_windows", 16),
        card.get("window_length", 10),
        settings.get("agent.policy_max_gradient_norm", 1.0),
    )


def find_objective(objective: Objective | Path | str) -> Objective:
    """An objective itself, one from a file or from the folder of its run, or a pretrained one by its name.

    Raises:
        ValueError: if there is no such file and no such name, the file cannot be read, or it is something else.
    """
    if isinstance(objective, Objective):
        return objective
    if not isinstance(objective, str | Path):
        raise ValueError(
            f"objective={objective!r}: valid is the name of a pretrained one, a .safetensors file, a run folder, or an objective"
        )
    path = path_argument(str(objective))
    if (own := path / "objective.safetensors").is_file() and objective not in pretrained_names():
        path = own
    is_name = isinstance(objective, str) and len(path.parts) == 1 and path.suffix != ".safetensors"
    return ParametricObjective.pretrained(str(objective)) if is_name else ParametricObjective.load(path)
