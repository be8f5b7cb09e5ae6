"""Meta update: improve the objective by asking the critic what a policy step down its gradient would be worth (paper eq. 5 and 6).

Two exact paths to the same gradient. `inner_stepped` differentiates through the whole inner loop. With one inner step the second order
lives in the objective alone: with g(alpha) = dL/da, J = d pi / d phi and phi' = step(phi, J^T g),

    d(-Q)/d alpha = d/d alpha < g(alpha), J w >,    w = d(-Q(phi')) / d(J^T g),

where w needs one backward pass through critic, policy and the inner step, and J w one forward pass of derivatives through the policy.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from metagenrl_pl.batch import Windows
from metagenrl_pl.inner import AdamMoments, InnerStep
from metagenrl_pl.networks import Networks, TracedCritics, TracedPolicy, first_critics
from metagenrl_pl.nn import Parameters, inverse_root_mean_square, norm_per_agent, scale_per_agent
from metagenrl_pl.objectives import Objective, Reinforce
from metagenrl_pl.updates.policy import objective_inputs


class MetaTask(NamedTuple):
    """What the objective's gradient is computed from; all of it constant."""

    policy: Parameters  # [P, ...]
    critics: Parameters  # the twins, [P, 2, ...]
    windows: Windows  # (K + 1) B windows: inner step k uses windows k B to (k + 1) B, the meta-loss all of them
    moments: AdamMoments | None = None
    judges: Parameters | None = None  # E critics, [P, E, ...], whose minimum the meta-loss takes; None for the first of `critics`
    advantage: Reinforce | None = None  # judges as well, by the returns of replayed actions
    advantage_share: float = 0.0  # of its say


def meta_loss(networks: Networks, policy: Parameters, task: MetaTask) -> Tensor:
    """How bad a policy is, [P].

    -mean over valid steps of Q(s, pi(s)) of the task's first critic or of the minimum of its judges. With an advantage that judges as well,
    the same mean of its loss, which is low for actions near to replayed ones that had better returns than the critic expected; both
    over the root mean square of their action gradients at the policy before its step, and weighted by their shares.
    """
    return meta_loss_and_gradient(networks, networks.action(policy, task.windows.observation), task)[0]


def meta_loss_and_gradient(networks: Networks, action: Tensor, task: MetaTask) -> tuple[Tensor, Tensor]:
    """`meta_loss` of a policy by its actions, [P], and its gradient in them, [P, B, T, A]."""
    windows, advantage = task.windows, task.advantage
    per_step = windows.valid / windows.num_valid.view(-1, 1, 1)
    value, slope = _judged_value(networks, task, action)
    loss, gradient = -(value * per_step).sum((1, 2)), -slope * per_step.unsqueeze(-1)
    if advantage is None:
        return loss, gradient
    before = networks.action(task.policy, windows.observation)
    inputs = objective_inputs(networks, advantage, task.policy, task.critics, windows, before)
    weights = [
        share * inverse_root_mean_square(x, inputs.action_weight, windows.valid)
        for share, x in (
            (1 - task.advantage_share, _judged_value(networks, task, before)[1]),
            (task.advantage_share, advantage.action_gradient({}, inputs)),
        )
    ]
    inputs = inputs._replace(policy_action=action)
    by_advantage = (advantage.loss({}, inputs) * per_step).sum((1, 2))
    gradient_by_advantage = advantage.action_gradient({}, inputs) * per_step.unsqueeze(-1)
    of_critic, of_advantage = (weight.view(-1, 1, 1, 1) for weight in weights)
    return weights[0] * loss + weights[1] * by_advantage, of_critic * gradient + of_advantage * gradient_by_advantage


def _judged_value(networks: Networks, task: MetaTask, action: Tensor) -> tuple[Tensor, Tensor]:
    """Q of the task's first critic or the minimum of its judges', [P, B, T], and its slope in the actions, [P, B, T, A]."""
    judges = first_critics(task.critics) if task.judges is None else task.judges
    critics = TracedCritics(networks, judges, task.windows.observation, action)
    value = critics.value.amin(1)
    is_lowest = (critics.value == value.unsqueeze(1)).to(value.dtype)
    return value, critics.action_gradient(is_lowest / is_lowest.sum(1, keepdim=True))


def inner_stepped(networks: Networks, objective: Objective, inner: InnerStep, alpha: Parameters, task: MetaTask) -> Parameters:
    """The policies after K inner steps, differentiable in alpha."""
    num_windows = task.windows.reward.shape[1] // (inner.num_steps + 1)
    policy = task.policy
    for k in range(inner.num_steps):
        windows = task.windows.part(k * num_windows, (k + 1) * num_windows)
        action, pull_back = torch.func.vjp(  # type: ignore[misc]
            lambda phi, windows=windows: networks.action(phi, windows.observation), policy
        )
        inputs = objective_inputs(networks, objective, policy, task.critics, windows, action)
        # Values and dQ/da enter the objective as constants, also where the policy depends on alpha through earlier steps.
        inputs = inputs._replace(
            value=None if inputs.value is None else inputs.value.detach(),
            critic_gradient=None if inputs.critic_gradient is None else inputs.critic_gradient.detach(),
        )
        (gradient,) = pull_back(objective.action_gradient(alpha, inputs))
        policy = inner(policy, gradient, windows.num_valid, task.moments)
    return policy


def general_meta_gradients(
    networks: Networks, objective: Objective, inner: InnerStep, alpha: Parameters, task: MetaTask
) -> tuple[Parameters, Tensor]:
    """Gradient of each agent's meta-loss in its copy of alpha, [P, ...], through the whole inner loop, and the losses, [P]."""

    def total(alpha: Parameters) -> tuple[Tensor, Tensor]:
        loss = meta_loss(networks, inner_stepped(networks, objective, inner, alpha, task), task)
        return loss.sum(), loss

    return torch.func.grad(total, has_aux=True)(alpha)


def policy_and_meta_gradients(
    networks: Networks, objective: Objective, inner: InnerStep, alpha: Parameters, task: MetaTask
) -> tuple[Parameters, Parameters, Tensor]:
    """With `factored_meta_gradients` also the gradient that the inner step descends, as the mean over valid steps, [P, ...].

    It is what `policy_gradients` gives for the inner step's windows, at no further cost.
    """
    gradient, meta_gradient, loss = _inner_and_meta_gradients(networks, objective, inner, alpha, task)
    num_valid = task.windows.part(0, task.windows.reward.shape[1] // 2).num_valid
    return scale_per_agent(gradient, 1 / num_valid), meta_gradient, loss


def factored_meta_gradients(
    networks: Networks, objective: Objective, inner: InnerStep, alpha: Parameters, task: MetaTask
) -> tuple[Parameters, Tensor]:
    """The same as `general_meta_gradients` for one inner step, without differentiating twice through policy or critic."""
    return _inner_and_meta_gradients(networks, objective, inner, alpha, task)[1:]


def _inner_and_meta_gradients(
    networks: Networks, objective: Objective, inner: InnerStep, alpha: Parameters, task: MetaTask
) -> tuple[Parameters, Parameters, Tensor]:
    """The gradient of the summed loss that the inner step descends, the meta-gradient and the meta-loss."""
    windows = task.windows.part(0, task.windows.reward.shape[1] // 2)

    traced = TracedPolicy(networks, task.policy, windows.observation)
    inputs = objective_inputs(networks, objective, task.policy, task.critics, windows, traced.action)
    action_gradient, pull_back_objective = objective.action_gradient_and_pull_back(alpha, inputs)
    gradient = traced.pull_back(action_gradient)  # J^T g

    stepped, pull_back_step = inner.step_and_pull_back(task.policy, gradient, windows.num_valid, task.moments)
    judged = TracedPolicy(networks, stepped, task.windows.observation)
    loss, daction = meta_loss_and_gradient(networks, judged.action, task)
    cotangent = pull_back_step(judged.pull_back(daction))  # w

    meta_gradient = pull_back_objective(traced.push_forward(cotangent))  # d < g, J w > / d alpha
    return gradient, meta_gradient, loss


def meta_gradients(
    networks: Networks, objective: Objective, inner: InnerStep, alpha: Parameters, task: MetaTask
) -> tuple[Parameters, Tensor]:
    """Gradient of each agent's meta-loss in its copy of alpha, [P, ...], and the losses, [P], by the cheapest exact path."""
    path = factored_meta_gradients if inner.num_steps == 1 else general_meta_gradients
    return path(networks, objective, inner, alpha, task)


def combine_meta_gradients(
    gradients: Parameters,
    rule: Literal["clip", "normalize"],
    gather: Callable[[Tensor], Tensor] = lambda rows: rows,
    weight: Tensor | None = None,
) -> tuple[Parameters, Tensor]:
    """Mean over agents of their gradients, each clipped or normalised to norm 1 first, [...], and the raw norms, [P].

    The paper clips. Where norms are far below 1 clipping does nothing and agents with large values drown the others; normalising
    gives each agent the same say.

    Args:
        gradients: of P agents, [P, ...].
        rule: what is done to each.
        gather: makes rows of all agents of the rows of these, where others are computed elsewhere.
        weight: of each agent of all in the mean, positive; the same by default.
    """
    flat = {"": torch.cat([g.flatten(1) for g in gradients.values()], 1)}  # in one piece: fewer operations, and one to gather
    norm = norm_per_agent(flat)
    every = gather(scale_per_agent(flat, 1 / norm.clamp(min=1.0 if rule == "clip" else 1e-12))[""])
    mean = every.mean(0) if weight is None else (weight / weight.sum()).to(every.dtype) @ every
    parts = mean.split([g[0].numel() for g in gradients.values()])
    return {name: part.view(g.shape[1:]) for (name, g), part in zip(gradients.items(), parts, strict=True)}, norm
