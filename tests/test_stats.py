"""Interval estimates, against scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from metagenrl_pl.stats import mean_interval


@pytest.mark.parametrize("num_values", [2, 3, 4, 5, 6, 7, 30, 31, 1000])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_agrees_with_scipy(num_values: int, confidence: float) -> None:
    values = np.random.default_rng(num_values).normal(100.0, 20.0, num_values)
    expected = stats.t.interval(confidence, num_values - 1, loc=values.mean(), scale=stats.sem(values))

    interval = mean_interval(values, confidence)

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


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [1.0, math.inf]])
def test_refuses_what_has_no_mean(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        mean_interval(values)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_refuses_an_impossible_confidence(confidence: float) -> None:
    with pytest.raises(ValueError, match=f"confidence={confidence}"):
        mean_interval([1.0, 2.0], confidence)
