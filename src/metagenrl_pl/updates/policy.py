"""Policy update: descend the objective, annealed from the critic (paper eq. 4 and section 3.3)."""

from typing import Literal

import torch
from torch import Tensor

from metagenrl_pl.batch import Windows
from metagenrl_pl.networks import Networks, TracedCritics, TracedPolicy, first_critic, first_critics, window_values
from metagenrl_pl.nn import Parameters
from metagenrl_pl.objectives import Objective, ObjectiveInputs


def objective_inputs(
    networks: Networks, objective: Objective, policy: Parameters, critics: Parameters, windows: Windows, action: Tensor
) -> ObjectiveInputs:
    """What the objective looks at of some windows, all of it constant.

    Args:
        networks, policy, windows: of P agents.
        objective: whose needs say what is computed.
        critics: the twins, [P, 2, ...].
        action: pi(s) on the windows' observations, [P, B, T, A].
    """
    value = critic_gradient = None
    if objective.needs_critic_gradient:
        value, critic_gradient = values_and_action_gradient(networks, critics, windows, action, objective.critic_gradient_of)
    if objective.needs_value:
        value = window_values(networks, policy, first_critic(critics), windows, action, value)
    return ObjectiveInputs(
        policy_action=action,
        replay_action=windows.action,
        reward=windows.reward,
        value=value if objective.needs_value else None,
        terminated=windows.terminated,
        valid=windows.valid,
        action_weight=networks.action_weight,
        critic_gradient=critic_gradient,
    )


def values_and_action_gradient(
    networks: Networks, critics: Parameters, windows: Windows, action: Tensor, of: Literal["first", "both"]
) -> tuple[Tensor, Tensor]:
    """Q1 at some actions, [P, B, T], and dQ/da of the first critic or the mean of both, [P, B, T, A], 0 in padded dimensions."""
    looked_at = first_critics(critics) if of == "first" else critics
    traced = TracedCritics(networks, looked_at, windows.observation, action)
    return traced.value[:, 0], traced.action_gradient(torch.full_like(traced.value, 1 / traced.value.shape[1]))


def _first_slope(
    networks: Networks, objective: Objective, critics: Parameters, windows: Windows, action: Tensor, inputs: ObjectiveInputs
) -> Tensor:
    """dQ1/da, which the objective may have been given already, [P, B, T, A]."""
    if inputs.critic_gradient is not None and objective.critic_gradient_of == "first":
        return inputs.critic_gradient
    return values_and_action_gradient(networks, critics, windows, action, "first")[1]


def policy_gradients(
    networks: Networks,
    objective: Objective,
    alpha: Parameters,
    policy: Parameters,
    critics: Parameters,
    windows: Windows,
    objective_share: Tensor | None = None,
) -> Parameters:
    """Gradient of the mean over valid steps of p L_alpha - (1 - p) Q1(s, pi(s)) in each agent's policy, [P, ...], unclipped.

    Since the policy enters the objective through its actions alone, this is J^T g with the action gradient g and J = d pi / d phi.

    Args:
        networks, policy, windows: of P agents.
        objective, alpha: the objective and its stacked parameters, [P, ...].
        critics: the twins, [P, 2, ...].
        objective_share: p, a scalar or one for each agent [P]; None for 1.
    """
    traced = TracedPolicy(networks, policy, windows.observation)
    inputs = objective_inputs(networks, objective, policy, critics, windows, traced.action)
    gradient, _ = objective.action_gradient_and_pull_back(alpha, inputs)  # [P, B, T, A]
    if objective_share is not None:
        slope = _first_slope(networks, objective, critics, windows, traced.action, inputs)
        share = objective_share.view(-1, 1, 1, 1)
        gradient = share * gradient - (1 - share) * slope * windows.valid[..., None]
    return traced.pull_back(gradient / windows.num_valid.view(-1, 1, 1, 1))


def action_gradient_agreement(
    networks: Networks, objective: Objective, alpha: Parameters, policy: Parameters, critics: Parameters, windows: Windows
) -> Tensor:
    """Cosine of the objective's action gradient with -dQ1/da over all valid steps of each agent, [P]."""
    action = networks.action(policy, windows.observation)
    inputs = objective_inputs(networks, objective, policy, critics, windows, action)
    gradient = objective.action_gradient(alpha, inputs).flatten(1)
    slope = _first_slope(networks, objective, critics, windows, action, inputs)
    descent = -(slope * windows.valid[..., None]).flatten(1)
    return torch.nn.functional.cosine_similarity(gradient, descent, dim=1)
