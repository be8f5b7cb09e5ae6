"""The policy update: which critics an objective sees, and which one the annealing begins with."""

from typing import Any

import pytest
import torch
from objectives_inputs import small, small_mixture
from random_population import random_windows, small_population

from metagenrl_pl.learning.policy_update import objective_inputs, policy_gradients
from metagenrl_pl.objectives import CriticObjective, LearnedObjective


@pytest.fixture(autouse=True)
def float64() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


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
