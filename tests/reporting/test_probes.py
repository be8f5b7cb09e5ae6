"""Pictures of objectives, against REINFORCE's formula."""

import math

import numpy as np
import pytest
import torch

from metagenrl_pl.objectives import CriticObjective, LearnedMixture, LearnedObjective, Reinforce
from metagenrl_pl.objectives.reinforce import generalised_advantage
from metagenrl_pl.reporting.probes import (
    PROBES,
    action_gradient_map,
    credit_by_delay,
    credit_matrix,
    critic_share_by_step,
    similarity,
)


def test_reinforce_pulls_to_rewarded_actions() -> None:
    picture = action_gradient_map(Reinforce(), "reward", num_steps=6, num_points=5, num_windows=4)
    # d/da (a_replay - a)^2 A = 2 (a - a_replay) A, and the advantage is the reward of the step: all else cancels
    assert picture.distances.tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]
    np.testing.assert_allclose(picture.gradient, 2 * np.outer(picture.distances, picture.probed), atol=1e-5)
    assert picture.probed[-1] == -picture.probed[0] > 1.5


@pytest.mark.parametrize(("probe", "factor"), [("value", -1.0), ("next_value", 0.9 * (1 - 0.8))])
def test_reinforce_measures_by_values(probe: str, factor: float) -> None:
    picture = action_gradient_map(Reinforce(discount=0.9, gae_lambda=0.8), probe, num_steps=6, num_points=5, num_windows=4)
    # A = r + discount V' - V + discount lambda (r' + discount V'' - V') + ..: V' has the factor discount (1 - lambda)
    np.testing.assert_allclose(picture.gradient, 2 * factor * np.outer(picture.distances, picture.probed), atol=1e-5)


def test_the_critic_is_followed_wherever_the_replayed_action_is() -> None:
    picture = action_gradient_map(CriticObjective(), "critic_gradient", num_steps=6, num_points=5, num_windows=4)
    np.testing.assert_allclose(picture.gradient, -np.tile(picture.probed, (5, 1)), atol=1e-5)
    assert not action_gradient_map(CriticObjective(), "reward", num_steps=6, num_points=5, num_windows=4).gradient.any()


def test_probes_are_standardised() -> None:
    seen: list[tuple[float, float]] = []

    class Spy(LearnedObjective):
        def action_gradient(self, parameters, inputs):  # type: ignore[no-untyped-def]
            seen.append((float(inputs.reward.mean()), float(inputs.reward.std(correction=0))))
            seen.append((float(inputs.value.mean()), float(inputs.value.std(correction=0))))
            return super().action_gradient(parameters, inputs)

    spy = Spy(hidden_units=8)
    for probe in list(PROBES)[:3]:
        action_gradient_map(spy, probe, num_steps=5, num_points=3, num_windows=2)
    assert len(seen) == 6
    for mean, deviation in seen:
        assert (mean, deviation) == pytest.approx((0.0, 1.0), abs=1e-5)


def test_credit_of_reinforce_is_discounted_and_looks_ahead() -> None:
    matrix = credit_matrix(Reinforce(discount=0.9, gae_lambda=0.8), num_steps=4, num_windows=3)
    # 2 * 0.5 * (discount lambda)^(k - t) for k >= t
    expected = np.triu(np.array([[0.72 ** (k - t) if k >= t else 0.0 for k in range(4)] for t in range(4)]))
    np.testing.assert_allclose(matrix, expected, atol=1e-5)


def test_credit_of_an_objective_without_lstm_is_diagonal() -> None:
    alone = credit_matrix(LearnedObjective(hidden_units=8, use_lstm=False), num_steps=4, num_windows=3)
    ahead = credit_matrix(LearnedObjective(hidden_units=8), num_steps=4, num_windows=3)
    off_diagonal = ~np.eye(4, dtype=bool)
    assert np.abs(alone[off_diagonal]).max() < 1e-4 * np.abs(np.diagonal(alone)).max()
    assert np.abs(ahead[off_diagonal]).max() > 1e-2 * np.abs(np.diagonal(ahead)).max()


def test_an_objective_that_looks_at_the_critic_is_shown_without_it() -> None:
    matrix = credit_matrix(LearnedObjective(hidden_units=8, use_critic_gradient=True), num_steps=4, num_windows=3)
    assert matrix.shape == (4, 4) and np.isfinite(matrix).all() and matrix.any()


def test_similarity() -> None:
    one = np.array([[1.0, 2.0], [0.0, -1.0]])
    assert similarity(one, 3 * one) == pytest.approx(1.0)
    assert similarity(one, -one) == pytest.approx(-1.0)
    assert similarity(one, np.array([[2.0, -1.0], [5.0, 0.0]])) == 0.0
    assert math.isnan(similarity(one, 0 * one))


class FollowsTheReturns(LearnedMixture):
    """Weighs DDPG 1 and REINFORCE 3 where the advantage is positive, and the other way about elsewhere."""

    def weights(self, parameters, inputs):  # type: ignore[no-untyped-def]
        one_where_better = (generalised_advantage(inputs, 0.9, 0.8) > 0).float()
        return torch.stack([3 - 2 * one_where_better, 1 + 2 * one_where_better], -1)


def test_the_critics_share_of_a_mixture() -> None:
    shares = critic_share_by_step(FollowsTheReturns(discount=0.9, gae_lambda=0.8, hidden_units=4), num_steps=5, num_windows=8)
    np.testing.assert_allclose(shares, np.repeat([[0.25], [0.75]], 5, axis=1), rtol=1e-6)


def test_credit_by_delay_is_the_mean_of_the_diagonals() -> None:
    delays, credit = credit_by_delay(np.array([[4.0, 1.0], [2.0, 0.0]]))
    # delays -1, 0 and 1, divided by the largest, 2
    assert delays.tolist() == [-1, 0, 1]
    assert credit.tolist() == [1.0, 1.0, 0.5]
