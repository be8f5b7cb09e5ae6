"""Policy update: descend the objective, annealed from the critic (paper eq. 4 and section 3.3)."""

import torch
from torch import Tensor

from metagenrl_pl.agents.networks import Networks, TracedCritics, TracedPolicy, first_critic, first_critics, window_values
from metagenrl_pl.agents.stacked_networks import Parameters
from metagenrl_pl.agents.windows import Windows
from metagenrl_pl.objectives import Objective, ObjectiveInputs
from metagenrl_pl.objectives.contract import CriticChoice

_FREE_UP_TO = 2.0  # pre-activations without a penalty: tanh(2) is 0.96


def objective_inputs(
    networks: Networks, objective: Objective, policy: Parameters, critics: Parameters, windows: Windows, action: Tensor
) -> ObjectiveInputs:
    """The objective's inputs for some windows. Only inputs that the objective needs are computed; all of them are constants.

    Args:
        networks, policy, windows: of P agents.
        objective: declares what it needs, see `Objective`.
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
    networks: Networks, critics: Parameters, windows: Windows, action: Tensor, of: CriticChoice
) -> tuple[Tensor, Tensor]:
    """Q1 at `action`, [P, B, T], and dQ/da of the first critic or the mean of both, [P, B, T, A], 0 in padded dimensions."""
    chosen = first_critics(critics) if of == "first" else critics
    traced = TracedCritics(networks, chosen, windows.observation, action)
    return traced.value[:, 0], traced.action_gradient(torch.full_like(traced.value, 1 / traced.value.shape[1]))


def first_slope(
    networks: Networks, objective: Objective, critics: Parameters, windows: Windows, action: Tensor, inputs: ObjectiveInputs
) -> Tensor:
    """dQ1/da, [P, B, T, A]. Taken from the objective's inputs if they contain it."""
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
    saturation_penalty: float = 0.0,
) -> Parameters:
    """Gradient of the policies' loss with respect to their parameters, [P, ...], unclipped.

    The loss is p L_alpha - (1 - p) Q1(s, pi(s)), averaged over each agent's valid steps (paper eq. 4 and section 3.3). The
    objective depends on the policy only through its actions. So the gradient is J^T g, with the action gradient g and J = d pi /
    d phi.

    Args:
        networks, policy, windows: of P agents.
        objective, alpha: the objective and its stacked parameters, [P, ...].
        critics: the twins, [P, 2, ...].
        objective_share: p, a scalar or one number per agent, [P]; None means 1.
        saturation_penalty: see `AgentSettings`.
    """
    traced = TracedPolicy(networks, policy, windows.observation)
    inputs = objective_inputs(networks, objective, policy, critics, windows, traced.action)
    _, gradient = objective.loss_and_action_gradient(alpha, inputs)  # [P, B, T, A]
    if objective_share is not None:
        slope = first_slope(networks, objective, critics, windows, traced.action, inputs)
        share = objective_share.view(-1, 1, 1, 1)
        gradient = share * gradient - (1 - share) * slope * windows.valid[..., None]
    num_valid = windows.num_valid.view(-1, 1, 1, 1)
    penalty = None
    if saturation_penalty:
        z = traced.preactivation
        excess = (z - z.clamp(-_FREE_UP_TO, _FREE_UP_TO)) * windows.valid[..., None]
        penalty = 2 * saturation_penalty * excess / num_valid
    return traced.pull_back(gradient / num_valid, penalty)
