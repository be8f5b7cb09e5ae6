"""Interval estimates, against scipy."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from metagenrl_pl.results import statistics
from metagenrl_pl.results.statistics import Interval, mean_interval


def interquartile_mean(strata: Sequence[Sequence[float]], **options: Any) -> Interval:
    """Of runs that depend on no meta-training."""
    return statistics.interquartile_mean([{None: runs} for runs in strata], **options)


def probability_of_improvement(strata: Sequence[Any], other: Sequence[Any], **options: Any) -> Interval:
    """Of runs that depend on no meta-training."""
    return statistics.probability_of_improvement([{None: runs} for runs in strata], [{None: runs} for runs in other], **options)


@pytest.mark.parametrize("num_values", [2, 3, 4, 5, 6, 7, 30, 31, 1000])
def test_agrees_with_scipy(num_values: int) -> None:
    values = np.random.default_rng(num_values).normal(100.0, 20.0, num_values)
    expected = stats.t.interval(0.95, num_values - 1, loc=values.mean(), scale=stats.sem(values))

    interval = mean_interval(values)

    assert interval.mean == pytest.approx(values.mean(), rel=1e-12)
    assert (interval.low, interval.high) == pytest.approx(expected, rel=1e-10)


def test_covers_the_true_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    intervals = [mean_interval(rng.normal(3.0, 2.0, 4)) for _ in range(2000)]
    coverage = np.mean([interval.low < 3.0 < interval.high for interval in intervals])
    assert coverage == pytest.approx(0.95, abs=0.015)  # three standard errors: 3 sqrt(0.95 * 0.05 / 2000)


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert mean_interval([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0)


def test_one_value_has_no_interval() -> None:
    interval = mean_interval([7.0])
    assert interval.mean == 7.0
    assert math.isnan(interval.low) and math.isnan(interval.high)


def test_numbers_near_the_largest_one_have_a_mean() -> None:
    assert mean_interval([1e308, 1e308]).mean == math.inf


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [1.0, math.inf]])
def test_refuses_what_has_no_mean(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        mean_interval(values)


def _scores(num_runs: tuple[int, ...], centre: float = 0.0) -> list[list[float]]:
    rng = np.random.default_rng(1)
    return [list(rng.normal(centre + 5 * environment, 1.0, runs)) for environment, runs in enumerate(num_runs)]


@pytest.mark.parametrize("num_runs", [(1,), (3,), (4,), (7,), (5, 6), (3, 10, 1)])
def test_interquartile_mean_agrees_with_scipy(num_runs: tuple[int, ...]) -> None:
    strata = _scores(num_runs)
    assert interquartile_mean(strata).mean == pytest.approx(stats.trim_mean(np.concatenate(strata), 0.25), rel=1e-12)


def test_interquartile_mean_by_hand() -> None:
    assert interquartile_mean([[100.0, 2.0], [4.0, -50.0]]).mean == 3.0  # -50 and 100 are cut off
    assert interquartile_mean([[100.0, 2.0, 3.0]]).mean == 35.0  # a quarter of three is none


def test_bootstrap_of_one_environment_agrees_with_scipy() -> None:
    values = np.random.default_rng(3).normal(10.0, 4.0, 12)
    interval = interquartile_mean([list(values)], num_resamples=20_000)

    expected = stats.bootstrap(
        (values,),
        lambda x, axis: stats.trim_mean(x, 0.25, axis=axis),
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(4),
    ).confidence_interval

    width = expected.high - expected.low
    assert width > 2.0
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=0.04 * width)


def test_bootstrap_resamples_within_environments() -> None:
    # nothing varies inside an environment, though environments differ
    assert interquartile_mean([[0.0] * 4, [10.0] * 4]) == (5.0, 5.0, 5.0)
    # 1 or 3, each with chance 1/2: the mean of two draws is 1, 2 or 3, and 1 has chance 1/4
    assert interquartile_mean([[1.0, 3.0], [2.0]]) == pytest.approx((2.0, 4 / 3, 8 / 3))


def test_bootstrap_depends_on_its_seed_alone() -> None:
    strata = _scores((5, 6))
    one, again, other = (interquartile_mean(strata, num_resamples=50, seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert one.mean == other.mean and one.low != other.low


@pytest.mark.parametrize("num_runs", [(2, 5), (6, 6), (1, 3)])
def test_probability_of_improvement_agrees_with_mann_whitney(num_runs: tuple[int, int]) -> None:
    x, y = np.random.default_rng(5).integers(0, 4, num_runs[0]), np.random.default_rng(6).integers(0, 4, num_runs[1])  # ties
    expected = stats.mannwhitneyu(x, y).statistic / (len(x) * len(y))
    assert probability_of_improvement([x], [y]).mean == pytest.approx(expected, rel=1e-12)


def test_probability_of_improvement_weighs_environments_the_same() -> None:
    # 3 of 4 pairs and a tie: (3/4 + 1/2) / 2, though the first environment has four pairs
    assert probability_of_improvement([[1.0, 3.0], [7.0]], [[0.0, 2.0], [7.0]]).mean == 0.625


def test_probability_of_improvement_has_a_bootstrap_interval() -> None:
    # X is 0 or 2, Y is 1: P is the share of twos, so 0, 1/2 or 1 with chances 1/4, 1/2, 1/4
    assert probability_of_improvement([[0.0, 2.0]], [[1.0]]) == (0.5, 0.0, 1.0)
    # two environments: the mean of two such shares is 0 with chance 1/16, so 0 is inside 95 %
    assert probability_of_improvement([[0.0, 2.0]] * 2, [[1.0]] * 2) == (0.5, 0.0, 1.0)
    swapped = probability_of_improvement([[1.0]], [[0.0, 2.0, 2.0]])
    assert swapped.mean == pytest.approx(1 / 3)


def test_the_bootstrap_covers_the_truth_nearly_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    improvements = [
        probability_of_improvement(rng.normal(0, 1, (3, 8)), rng.normal(0, 1, (3, 8)), num_resamples=200) for _ in range(300)
    ]
    coverage = np.mean([interval.low <= 0.5 <= interval.high for interval in improvements])
    assert 0.87 < coverage < 0.99  # a percentile bootstrap of few runs is a little too narrow


def test_one_run_of_each_has_no_bootstrap_interval() -> None:
    for interval in (interquartile_mean([[1.0], [2.0]]), probability_of_improvement([[1.0], [2.0]], [[0.0], [3.0]])):
        assert interval.mean in (1.5, 0.5)
        assert math.isnan(interval.low) and math.isnan(interval.high)


@pytest.mark.parametrize("strata", [[], [[1.0], []], [[math.nan]], [[math.inf, 1.0]]])
def test_bootstrap_refuses_what_has_no_mean(strata: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="finite"):
        interquartile_mean(strata)
    with pytest.raises(ValueError, match="finite"):
        probability_of_improvement(strata, strata)


def test_refuses_to_compare_different_numbers_of_environments() -> None:
    with pytest.raises(ValueError, match="2 environments are compared with 1"):
        probability_of_improvement([[1.0], [2.0]], [[1.0]])


def test_the_bootstrap_draws_seeds_first_and_runs_within_them() -> None:
    # runs of a seed do not differ, so only the two seeds are resampled: 0 twice has chance 1/4
    by_seed = statistics.interquartile_mean([{0: [0.0] * 4, 1: [10.0] * 4}])
    assert by_seed == (5.0, 0.0, 10.0)
    independent = interquartile_mean([[0.0] * 40 + [10.0] * 40])
    assert independent.low > 0.0 and independent.high < 10.0
    # the same seeds in all environments: two environments make the interval no narrower
    assert statistics.interquartile_mean([{0: [0.0] * 4, 1: [10.0] * 4}] * 2) == by_seed
    wins = statistics.probability_of_improvement([{0: [0.0] * 9, 1: [2.0] * 9}] * 2, [{None: [1.0] * 9}] * 2)
    assert wins == (0.5, 0.0, 1.0)


def test_the_hierarchical_bootstrap_covers_the_truth_where_seeds_differ() -> None:
    """Eight objectives of nine agents each: an interval over independent agents is far too narrow."""
    rng = np.random.default_rng(0)
    hits = {"seeds": 0, "agents alone": 0}
    for _ in range(80):
        runs = rng.normal(0, 1, (8, 1)) + rng.normal(0, 1, (8, 9))
        strata = {"seeds": {seed: list(own) for seed, own in enumerate(runs)}, "agents alone": {None: list(runs.ravel())}}
        for name, of_environment in strata.items():
            interval = statistics.interquartile_mean([of_environment], num_resamples=200)
            hits[name] += interval.low <= 0 <= interval.high
    assert hits["seeds"] > 0.85 * 80 and hits["agents alone"] < 0.7 * 80


def test_seeds_may_lack_an_environment() -> None:
    interval = statistics.probability_of_improvement([{0: [3.0]}, {1: [3.0, 0.0]}], [{None: [1.0]}, {None: [1.0]}])
    assert interval.mean == 0.75 and 0.0 <= interval.low < 0.75 < interval.high == 1.0
    assert not math.isnan(statistics.interquartile_mean([{0: [1.0], 1: [2.0]}]).low)  # one run of each seed can be resampled
