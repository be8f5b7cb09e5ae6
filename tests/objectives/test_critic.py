"""The critic as an objective."""

import torch
from random_population import random_windows, small_population

from metagenrl_pl.agents.networks import first_critic
from metagenrl_pl.agents.stacked_networks import Parameters, norm_per_agent
from metagenrl_pl.learning.policy_update import objective_inputs, policy_gradients
from metagenrl_pl.objectives import CriticObjective


def test_critic_objective_is_the_deterministic_policy_gradient() -> None:
    """Against plain autograd: -dQ1/da of each step, and the policy gradient of -mean Q1(s, pi(s))."""
    population, windows = small_population(), random_windows(4)
    networks, critics, objective = population.networks, population.critics, CriticObjective()
    critic = first_critic(critics)
    action = networks.action(population.policy, windows.observation)
    inputs = objective_inputs(networks, objective, population.policy, critics, windows, action)

    leaf = action.clone().requires_grad_()
    (networks.q(critic, windows.observation, leaf) * windows.valid).sum().backward()
    expected = -leaf.grad * networks.action_mask[:, None, None]  # type: ignore[operator]
    torch.testing.assert_close(objective.action_gradient({}, inputs), expected)
    assert expected.abs().max() > 1e-3

    policy: Parameters = {name: p.clone().requires_grad_() for name, p in population.policy.items()}
    value = networks.q(critic, windows.observation, networks.action(policy, windows.observation))
    ((-value * windows.valid).sum((1, 2)) / windows.num_valid).sum().backward()
    gradients = policy_gradients(networks, objective, {}, population.policy, critics, windows)
    assert (norm_per_agent(gradients) > 1e-3).all()
    for name, p in policy.items():
        torch.testing.assert_close(gradients[name], p.grad)
