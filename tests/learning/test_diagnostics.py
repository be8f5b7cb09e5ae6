"""Agreement with the critic, saturation, and the signal-to-noise ratio of meta-gradients."""

from typing import Any

import pytest
import torch
from objectives_inputs import small
from random_population import random_windows, small_population
from torch import Tensor

from metagenrl_pl.learning.diagnostics import MetaGradients, action_gradient_agreement, saturation, signal_to_noise
from metagenrl_pl.objectives import CriticObjective, Objective


def agreement_of(objective: Objective) -> Tensor:
    population, windows = small_population(), random_windows(3)
    alpha = objective.stacked_parameters(3)
    return action_gradient_agreement(population.networks, objective, alpha, population.policy, population.critics, windows)


def test_agreement() -> None:
    torch.testing.assert_close(agreement_of(CriticObjective()), torch.ones(3))
    assert (agreement_of(CriticObjective("both")) < 0.99).all()  # with the first critic, not with what the objective sees
    cosine = agreement_of(small())
    assert cosine.shape == (3,) and cosine.abs().lt(0.999).all() and cosine.ne(0).all()


def test_saturation_is_a_share_of_real_action_entries_on_valid_steps() -> None:
    population, windows = small_population(), random_windows(3)
    policy: dict[str, Any] = {name: p.clone() for name, p in population.policy.items()}
    policy["out.weight"] /= 10
    assert saturation(population.networks, policy, windows).eq(0).all()
    policy["out.bias"][1] += 100.0  # the second agent has one real action dimension
    policy["out.bias"][0, 0] -= 100.0  # the first has two
    torch.testing.assert_close(saturation(population.networks, policy, windows), torch.tensor([0.5, 1.0, 0.0]))


def test_signal_to_noise() -> None:
    """Two agents: noise alone, and a mean of norm 5 with a spread of 2 sqrt(N)."""
    generator, num_entries = torch.Generator().manual_seed(0), 400
    mean = torch.zeros(2, num_entries)
    mean[1, 0] = 5.0
    samples = [mean + torch.tensor([[1.0], [2.0]]) * torch.randn(2, num_entries, generator=generator) for _ in range(2000)]
    ratio = signal_to_noise(samples)
    assert ratio[0] < 0.02 and ratio[1] == pytest.approx(5 / (2 * num_entries**0.5), rel=0.05)
    few = torch.stack([signal_to_noise(samples[i : i + 8]) for i in range(0, 2000, 8)])
    assert few[:, 0].square().mean() < 0.02  # the mean's own noise, 1 / 8, does not count as signal
    assert signal_to_noise([mean, mean]).eq(0).all()


def test_the_cosine_between_agents_is_that_of_their_expected_gradients() -> None:
    """Of vectors with norms 2, 1 and 3, the first two at right angles, the third along the first; `signal` is given without noise."""
    mean = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    gradients = MetaGradients(mean @ mean.T, mean.square().sum(1), combined_snr=1.0)
    assert gradients.cosine([(0, 1)]) == 0 and gradients.cosine([(0, 2)]) == pytest.approx(1)
    assert gradients.cosine([(0, 1), (0, 2)]) == pytest.approx(6 / (2 + 6))
    assert gradients._replace(signal=torch.zeros(3)).cosine([(0, 2)]) == 0
