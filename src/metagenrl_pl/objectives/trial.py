"""Try an objective on a few windows of noise, before a run relies on it."""

import math

import torch
from torch import Tensor

from metagenrl_pl.agents.stacked_networks import Parameters
from metagenrl_pl.agents.windows import valid_states
from metagenrl_pl.common.attempt import attempt, compare
from metagenrl_pl.objectives.contract import Objective, ObjectiveInputs, check_critics

_VALID = "a loss alone, or a subclass of DirectedObjective with an action_gradient"


def check_loss(objective: Objective) -> None:
    """Compare an objective's loss with what the updates need of it.

    Raises:
        ValueError: if `critic_gradient_of` is not valid, or the loss raises an exception, has a shape other than [P, B, T], does
            not depend on the policy's action or on a parameter, depends on padded steps or on other agents, has a gradient that is not
            finite, or other derivatives than the updates use.
    """
    check_critics(objective.critic_gradient_of)
    num_agents, num_windows, num_steps, num_actions = 2, 3, 4, 5  # all different, so that a mix-up of axes shows
    noise = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.rand(num_agents, num_windows, *shape, generator=noise) - 0.5

    valid = torch.ones(num_agents, num_windows, num_steps)
    valid[:, -1, num_steps // 2 :] = 0  # the last window of each agent has ended
    inputs = ObjectiveInputs(
        policy_action=random(num_steps, num_actions),
        replay_action=random(num_steps, num_actions) * valid[..., None],
        reward=random(num_steps) * valid,
        value=random(num_steps + 1) if objective.needs_value else None,
        terminated=torch.zeros(num_agents, num_windows, num_steps),
        valid=valid,
        action_weight=torch.full((num_agents, num_actions), 1 / num_actions),
        critic_gradient=random(num_steps, num_actions) if objective.needs_critic_gradient else None,
    )
    parameters = objective.stacked_parameters(num_agents)
    loss = attempt("loss", "a loss of [P, B, T]", lambda: objective.loss(parameters, inputs))
    if loss.shape != inputs.reward.shape:
        raise ValueError(
            f"its loss has the shape {tuple(loss.shape)} for {num_agents} agents, {num_windows} windows, {num_steps} steps and "
            f"{num_actions} action dimensions; valid is {tuple(inputs.reward.shape)}, [P, B, T]"
        )
    gradient = objective.action_gradient(parameters, inputs)
    if not gradient.isfinite().all():
        raise ValueError("the gradient of its loss in the policy's action is not finite")
    if not objective.action_gradient(parameters, inputs._replace(reward=valid)).isfinite().all():
        raise ValueError(
            "the gradient of its loss in the policy's action is not finite where all rewards are 1, as in many environments until an "
            "episode ends; valid is a division by a standard deviation to which a small number is added"
        )
    if not gradient.any():
        raise ValueError("its loss does not depend on inputs.policy_action, so policies would learn nothing")
    _check_agents_and_padding(objective, parameters, inputs, gradient)
    # Initial weights hide faults: biases are 0, and norms scale by 1. So the weights move, and only up, since some may have to be positive.
    parameters = {name: p + 0.1 * torch.rand(p.shape, generator=noise) for name, p in parameters.items()}
    _check_parameters(objective, parameters, inputs)
    _check_derivatives(objective, parameters, inputs, random(num_steps, num_actions))


def _check_agents_and_padding(objective: Objective, parameters: Parameters, inputs: ObjectiveInputs, gradient: Tensor) -> None:
    """Compare the action gradient of an agent's real steps with that beside other padding, and with that of the agent alone."""
    if gradient[inputs.valid == 0].any():
        raise ValueError("its loss depends on the actions of padded steps; valid is a loss that is 0 where inputs.valid is 0")
    is_padded, is_after = 1 - inputs.valid[..., None], 1 - valid_states(inputs.valid)
    with_other_padding = inputs._replace(  # which is not 0 where policy and critics have run on it
        policy_action=inputs.policy_action + 0.1 * is_padded,
        value=None if inputs.value is None else inputs.value + is_after,
        critic_gradient=None if inputs.critic_gradient is None else inputs.critic_gradient + is_padded,
    )
    if not _are_close(objective.action_gradient(parameters, with_other_padding), gradient):
        raise ValueError("its loss at real steps depends on padded ones; valid are sums and means where inputs.valid is 1")
    first = ObjectiveInputs._make(None if tensor is None else tensor[:1] for tensor in inputs)
    of_first = {name: p[:1] for name, p in parameters.items()}
    alone = attempt("loss of one agent", "a loss of [1, B, T]", lambda: objective.action_gradient(of_first, first))
    if not _are_close(alone, gradient[:1]):
        raise ValueError("the loss of an agent depends on other agents; valid are sums and means over windows and steps only")


def _are_close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).norm() <= 1e-3 * expected.norm())


def _check_parameters(objective: Objective, parameters: Parameters, inputs: ObjectiveInputs) -> None:
    """Refuse a learned parameter that the loss does not read: neither NaN, nor a large or a small number in its place changes the loss.

    The gradient alone does not tell: it may be 0 for these inputs, as that of a threshold.
    """
    learned = {name: parameters[name] for name, p in objective.named_parameters() if p.requires_grad}
    if not learned:
        return
    gradients = torch.func.grad(lambda learned: objective.loss({**parameters, **learned}, inputs).sum())(learned)
    loss = objective.loss(parameters, inputs)
    for name in (name for name, gradient in gradients.items() if not gradient.any()):
        others = [{**parameters, name: torch.full_like(parameters[name], number)} for number in (math.nan, 1e3, -1e3)]
        if all(torch.equal(objective.loss(other, inputs), loss) for other in others):
            raise ValueError(
                f"its loss does not depend on the parameter {name}, which would never be learned; valid is a loss that reads it from "
                "its argument `parameters`, not from the module"
            )


def _check_derivatives(objective: Objective, parameters: Parameters, inputs: ObjectiveInputs, direction: Tensor) -> None:
    """Compare the derivatives that the updates use with autograd's derivatives of the loss."""
    gradient, pull_back = objective.action_gradient_and_pull_back(parameters, inputs)
    expected = Objective.action_gradient(objective, parameters, inputs)
    for found in (gradient, objective.loss_and_action_gradient(parameters, inputs)[1]):
        compare("action gradient", found, expected, _VALID)
    if parameters and type(objective).action_gradient_and_pull_back is not Objective.action_gradient_and_pull_back:
        changes = attempt("pull-back", "a gradient for each parameter", lambda: pull_back(direction))
        by_autograd = Objective.action_gradient_and_pull_back(objective, parameters, inputs)[1](direction)
        if missing := [name for name, g in by_autograd.items() if name not in changes or changes[name].shape != g.shape]:
            raise ValueError(f"its pull-back gives no gradient of {missing[0]}; valid is one for each parameter, [P, ...]")
        pulled, expected = (torch.cat([one[name].flatten() for name in by_autograd]) for one in (changes, by_autograd))
        compare("pull-back", pulled, expected, _VALID)
