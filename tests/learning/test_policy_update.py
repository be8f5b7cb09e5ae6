"""The policy update: which critics an objective sees, and which one the annealing begins with."""

from typing import Any

import pytest
import torch
from objectives_inputs import small, small_mixture
from random_population import random_windows, small_population

from metagenrl_pl.learning.policy_update import objective_inputs, policy_gradients
from metagenrl_pl.objectives import CriticObjective, LearnedObjective

pytestmark = pytest.mark.usefixtures("float64")


def test_an_objective_sees_the_gradient_of_the_critics_that_it_names() -> None:
    """Of both: the mean of two plain autograd gradients."""
    population, windows = small_population(), random_windows(4)
    networks, policy, critics = population.networks, population.policy, population.critics
    action = networks.action(policy, windows.observation)
    slopes = []
    for twin in range(2):
        leaf = action.clone().requires_grad_()
        networks.q({name: p[:, twin] for name, p in critics.items()}, windows.observation, leaf).sum().backward()
        slopes.append(leaf.grad * networks.action_mask[:, None, None])  # type: ignore[operator]
    assert not torch.allclose(*slopes)
    for of, expected in (("first", slopes[0]), ("both", (slopes[0] + slopes[1]) / 2)):
        for objective in (
            small(use_critic_gradient=True, critic_gradient_of=of),
            small_mixture(critic_gradient_of=of),
            CriticObjective(of),
        ):
            inputs = objective_inputs(networks, objective, policy, critics, windows, action)
            assert inputs.critic_gradient is not None
            torch.testing.assert_close(inputs.critic_gradient, expected)
            if isinstance(objective, LearnedObjective):
                assert objective.architecture["critic_gradient_of"] == of


def test_annealing_is_from_the_first_critic_whatever_the_objective_looks_at() -> None:
    population, windows = small_population(), random_windows(4)
    arguments = (population.policy, population.critics, windows)
    alpha = small_mixture().stacked_parameters(3)
    annealed = [
        policy_gradients(population.networks, objective, alpha, *arguments, objective_share=torch.zeros(()))
        for objective in (CriticObjective(), small_mixture(critic_gradient_of="both"))
    ]
    for name, gradient in annealed[0].items():
        torch.testing.assert_close(annealed[1][name], gradient)


def test_a_penalty_brings_saturated_policies_back() -> None:
    """Its gradient is that of c max(0, |z| - 2)^2, averaged over valid steps, by autograd."""
    population, windows = small_population(), random_windows(4)
    networks, policy = population.networks, {name: p.clone() for name, p in population.policy.items()}
    policy["out.bias"] += 30.0
    alpha = CriticObjective().stacked_parameters(3)
    arguments = (networks, CriticObjective(), alpha, policy, population.critics, windows)
    without = policy_gradients(*arguments)
    assert all(gradient.abs().max() < 1e-12 for gradient in without.values())

    def penalty(policy: Any) -> Any:
        z = networks.mlp(policy, windows.observation.flatten(1, 2)).view(*windows.valid.shape, -1)
        excess = (z.abs() - 2).clamp(min=0) * networks.action_mask[:, None, None] * windows.valid[..., None]
        return (0.1 * excess.square().sum((1, 2, 3)) / windows.num_valid).sum()

    expected = torch.func.grad(penalty)(policy)
    for name, gradient in policy_gradients(*arguments, saturation_penalty=0.1).items():
        torch.testing.assert_close(gradient - without[name], expected[name])
    calm = (*arguments[:3], {**population.policy, "out.weight": population.policy["out.weight"] / 10}, *arguments[4:])
    for name, gradient in policy_gradients(*calm, saturation_penalty=0.1).items():
        assert torch.equal(gradient, policy_gradients(*calm)[name]), name
