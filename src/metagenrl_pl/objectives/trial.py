"""Try an objective on a few windows of noise, before a run relies on it."""

import torch
from torch import Tensor

from metagenrl_pl.agents.stacked_networks import Parameters
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
    if not gradient.any():
        raise ValueError("its loss does not depend on inputs.policy_action, so policies would learn nothing")
    if gradient[valid == 0].any():
        raise ValueError("its loss depends on the actions of padded steps; valid is a loss that is 0 where inputs.valid is 0")
    first = ObjectiveInputs._make(None if tensor is None else tensor[:1] for tensor in inputs)
    alone = objective.action_gradient({name: p[:1] for name, p in parameters.items()}, first)
    if not torch.allclose(alone, gradient[:1], rtol=1e-3, atol=1e-6):
        raise ValueError("the loss of an agent depends on other agents; valid are sums and means over windows and steps only")
    # Initial weights hide faults: biases are 0, and norms scale by 1. So the weights move, and only up, since some may have to be positive.
    parameters = {name: p + 0.1 * torch.rand(p.shape, generator=noise) for name, p in parameters.items()}
    changes = torch.func.grad(lambda parameters: objective.loss(parameters, inputs).sum())(parameters) if parameters else {}
    if unread := [name for name, change in changes.items() if objective.get_parameter(name).requires_grad and not change.any()]:
        raise ValueError(
            f"its loss does not depend on the parameter {unread[0]}, which would never be learned; valid is a loss that reads it from "
            "its argument `parameters`, not from the module"
        )
    _check_derivatives(objective, parameters, inputs, random(num_steps, num_actions))


def _check_derivatives(objective: Objective, parameters: Parameters, inputs: ObjectiveInputs, direction: Tensor) -> None:
    """Compare the derivatives that the updates use with autograd's derivatives of the loss."""
    gradient, pull_back = objective.action_gradient_and_pull_back(parameters, inputs)
    expected = Objective.action_gradient(objective, parameters, inputs)
    for found in (gradient, objective.constant_action_gradient(parameters, inputs)):
        compare("action gradient", found, expected, _VALID)
    if parameters and type(objective).action_gradient_and_pull_back is not Objective.action_gradient_and_pull_back:
        changes = attempt("pull-back", "a gradient for each parameter", lambda: pull_back(direction))
        by_autograd = Objective.action_gradient_and_pull_back(objective, parameters, inputs)[1](direction)
        if missing := [name for name, g in by_autograd.items() if name not in changes or changes[name].shape != g.shape]:
            raise ValueError(f"its pull-back gives no gradient of {missing[0]}; valid is one for each parameter, [P, ...]")
        pulled, expected = (torch.cat([one[name].flatten() for name in by_autograd]) for one in (changes, by_autograd))
        compare("pull-back", pulled, expected, _VALID)
