"""Meta update: improve the objective by judging the policies that it produces (paper eq. 5 and 6).

We take one policy step down the objective, compute the judge's loss of the new policy (in the paper: minus its value under the
critic), and backpropagate that loss into the objective. Two exact methods give the same gradient: `general_meta_gradients`
differentiates through the whole inner loop; `factored_meta_gradients` is for a single inner step and is cheaper.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from metagenrl_pl.agents.networks import Networks, TracedPolicy
from metagenrl_pl.agents.stacked_networks import Parameters, norm_per_agent, scale_per_agent
from metagenrl_pl.agents.windows import Windows
from metagenrl_pl.learning.inner_step import AdamMoments, InnerStep
from metagenrl_pl.learning.judges import Judge
from metagenrl_pl.learning.policy_update import objective_inputs
from metagenrl_pl.learning.settings import GradientRule
from metagenrl_pl.objectives import Objective


class MetaTask(NamedTuple):
    """What the objective's gradient is computed from; all of it constant."""

    policy: Parameters  # [P, ...]
    critics: Parameters  # the twins, [P, 2, ...]
    windows: Windows  # (K + 1) B windows: inner step k uses windows k B to (k + 1) B, the judge all of them
    moments: AdamMoments | None = None


def meta_loss(networks: Networks, judge: Judge, stepped: Parameters, task: MetaTask) -> Tensor:
    """How bad the policies are after the inner loop, [P]."""
    action = networks.action(stepped, task.windows.observation)
    return judge.loss(networks, action, task.policy, task.critics, task.windows)


def run_inner_loop(networks: Networks, objective: Objective, inner: InnerStep, alpha: Parameters, task: MetaTask) -> Parameters:
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
    networks: Networks, objective: Objective, inner: InnerStep, judge: Judge, alpha: Parameters, task: MetaTask
) -> tuple[Parameters, Tensor]:
    """Gradient of each agent's meta-loss in its copy of alpha, [P, ...], through the whole inner loop, and the losses, [P]."""

    def total(alpha: Parameters) -> tuple[Tensor, Tensor]:
        loss = meta_loss(networks, judge, run_inner_loop(networks, objective, inner, alpha, task), task)
        return loss.sum(), loss

    return torch.func.grad(total, has_aux=True)(alpha)


def factored_meta_gradients(
    networks: Networks, objective: Objective, inner: InnerStep, judge: Judge, alpha: Parameters, task: MetaTask
) -> tuple[Parameters, Tensor]:
    """The same as `general_meta_gradients` for one inner step, without differentiating twice through policy or critic.

    Write a = pi_phi(s) for the actions, J = d a / d phi, g(alpha) = dL_alpha / da for the action gradient, G = J^T g for the policy's
    gradient, phi' = step(phi, G) for the inner step and M(phi') for the judge's loss. Neither J nor phi depends on alpha, so by the
    chain rule, with w = dM / dG held constant,

        dM / d alpha = d/d alpha < G(alpha), w > = d/d alpha < J^T g(alpha), w > = d/d alpha < g(alpha), J w >.
    """
    windows = task.windows.part(0, task.windows.reward.shape[1] // 2)

    # 1. The actions, g(alpha), and the function that takes a constant c to d/d alpha < g(alpha), c >. The second order is in here alone.
    traced = TracedPolicy(networks, task.policy, windows.observation)
    inputs = objective_inputs(networks, objective, task.policy, task.critics, windows, traced.action)
    action_gradient, pull_back_objective = objective.action_gradient_and_pull_back(alpha, inputs)

    # 2. The policy's gradient G = J^T g, and the inner step phi' = step(phi, G).
    gradient = traced.pull_back(action_gradient)
    stepped, pull_back_step = inner.step_and_pull_back(task.policy, gradient, windows.num_valid, task.moments)

    # 3. w = dM / dG: one ordinary backward pass through the judge, the policy at phi' and the inner step.
    judged = TracedPolicy(networks, stepped, task.windows.observation)
    loss, daction = judge.loss_and_gradient(networks, judged.action, task.policy, task.critics, task.windows)
    cotangent = pull_back_step(judged.pull_back(daction))

    # 4. J w, [P, B, T, A], and from it the gradient of alpha.
    return pull_back_objective(traced.push_forward(cotangent)), loss


def meta_gradients(
    networks: Networks, objective: Objective, inner: InnerStep, judge: Judge, alpha: Parameters, task: MetaTask
) -> tuple[Parameters, Tensor]:
    """Gradient of each agent's meta-loss in its copy of alpha, [P, ...], and the losses, [P], by the cheapest exact path."""
    path = factored_meta_gradients if inner.num_steps == 1 else general_meta_gradients
    return path(networks, objective, inner, judge, alpha, task)


def combine_meta_gradients(
    gradients: Parameters, rule: GradientRule, gather: Callable[[Tensor], Tensor] = lambda rows: rows
) -> tuple[Parameters, Tensor]:
    """Mean over agents of their gradients, each clipped or normalised to norm 1 first, [...], and the raw norms, [P].

    The paper clips. If norms are far below 1, clipping has no effect, and agents with large values dominate. Normalising gives every
    agent the same weight.

    Args:
        gradients: of P agents, [P, ...].
        rule: whether each is clipped or normalised.
        gather: from the rows of these agents, makes the rows of all agents of all processes.
    """
    flat = {
        "": torch.cat([g.reshape(len(g), -1) for g in gradients.values()], 1)
    }  # in one piece: fewer operations, and one to gather
    norm = norm_per_agent(flat)
    every = gather(scale_per_agent(flat, 1 / norm.clamp(min=1.0 if rule == "clip" else 1e-12))[""])
    parts = every.mean(0).split([g[0].numel() for g in gradients.values()])
    return {name: part.view(g.shape[1:]) for (name, g), part in zip(gradients.items(), parts, strict=True)}, norm
