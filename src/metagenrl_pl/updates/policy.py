"""Policy update: descend the objective, annealed from the critic (paper eq. 4 and section 3.3)."""

import torch
from torch import Tensor

from metagenrl_pl.batch import Windows
from metagenrl_pl.networks import Networks, window_values
from metagenrl_pl.nn import Parameters
from metagenrl_pl.objectives import Objective, ObjectiveInputs


def objective_inputs(
    networks: Networks,
    policy: Parameters,
    critic: Parameters,
    windows: Windows,
    action: Tensor,
    with_critic_gradient: bool,
    with_value: bool = True,
) -> ObjectiveInputs:
    """What the objective sees of some windows, all of it constant.

    Args:
        networks, policy, windows: of P agents.
        critic: the first critic, [P, ...].
        action: pi(s) on the windows' observations, [P, B, T, A].
        with_critic_gradient: whether dQ1/da is computed.
        with_value: whether V(s) is computed.
    """
    critic_gradient = None
    if with_critic_gradient:
        critic_gradient = torch.func.grad(lambda a: networks.q(critic, windows.observation, a).sum())(action)
        critic_gradient = critic_gradient * networks.action_mask[:, None, None]
    return ObjectiveInputs(
        policy_action=action,
        replay_action=windows.action,
        reward=windows.reward,
        value=window_values(networks, policy, critic, windows, action) if with_value else None,
        terminated=windows.terminated,
        valid=windows.valid,
        action_weight=networks.action_weight,
        critic_gradient=critic_gradient,
    )


def policy_gradients(
    networks: Networks,
    objective: Objective,
    alpha: Parameters,
    policy: Parameters,
    critic: Parameters,
    windows: Windows,
    objective_share: Tensor | None = None,
) -> Parameters:
    """Gradient of the mean over valid steps of p L_alpha - (1 - p) Q1(s, pi(s)) in each agent's policy, [P, ...], unclipped.

    Since the policy enters the objective through its actions alone, this is J^T g with the action gradient g and J = d pi / d phi.

    Args:
        networks, policy, windows: of P agents.
        objective, alpha: the objective and its stacked parameters, [P, ...].
        critic: the first critic, [P, ...].
        objective_share: p, a scalar or one for each agent [P]; None for 1, which spares the critic's gradient.
    """
    action, pull_back = torch.func.vjp(  # type: ignore[misc]
        lambda phi: networks.action(phi, windows.observation), policy
    )
    with_critic_gradient = objective.needs_critic_gradient or objective_share is not None
    inputs = objective_inputs(networks, policy, critic, windows, action, with_critic_gradient, objective.needs_value)
    gradient = objective.action_gradient(alpha, inputs)  # [P, B, T, A]
    if objective_share is not None:
        assert inputs.critic_gradient is not None
        share = objective_share.view(-1, 1, 1, 1)
        gradient = share * gradient - (1 - share) * inputs.critic_gradient * windows.valid[..., None]
    (policy_gradient,) = pull_back(gradient / windows.num_valid.view(-1, 1, 1, 1))
    return policy_gradient


def action_gradient_agreement(
    networks: Networks, objective: Objective, alpha: Parameters, policy: Parameters, critic: Parameters, windows: Windows
) -> Tensor:
    """Cosine of the objective's action gradient with -dQ1/da over all valid steps of each agent, [P]."""
    action = networks.action(policy, windows.observation)
    inputs = objective_inputs(networks, policy, critic, windows, action, True, objective.needs_value)
    assert inputs.critic_gradient is not None
    gradient = objective.action_gradient(alpha, inputs).flatten(1)
    descent = -(inputs.critic_gradient * windows.valid[..., None]).flatten(1)
    return torch.nn.functional.cosine_similarity(gradient, descent, dim=1)
