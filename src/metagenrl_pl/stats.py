"""Interval estimates over seeds."""

import math
import statistics
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple


class Interval(NamedTuple):
    """A mean and the confidence interval round it, in the unit of the values; `low` and `high` are NaN where there is none."""

    mean: float
    low: float
    high: float


def mean_interval(values: Iterable[float], confidence: float = 0.95) -> Interval:
    """Mean of independent values (one per seed) with its two-sided Student-t confidence interval.

    Args:
        values: one finite number per seed. A single one has a mean and no interval: `low` and `high` are NaN.
        confidence: probability that the interval covers the true mean if the values are normally distributed.

    Raises:
        ValueError: no value, a value that is NaN or infinite, or a confidence outside (0, 1).
    """
    sample = [float(value) for value in values]
    if not sample or not all(map(math.isfinite, sample)):
        raise ValueError(f"values={sample}: a mean over seeds needs one or more finite numbers")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence={confidence}: valid are numbers between 0 and 1, both excluded")
    mean = statistics.fmean(sample)
    if len(sample) == 1:
        return Interval(mean, math.nan, math.nan)
    half_width = _student_t(confidence, len(sample) - 1) * statistics.stdev(sample) / math.sqrt(len(sample))
    return Interval(mean, mean - half_width, mean + half_width)


@lru_cache
def _student_t(confidence: float, degrees: int) -> float:
    """The t with P(|T| < t) = confidence, by bisection over theta = atan(t / sqrt(degrees)) down to neighbouring floats."""
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        if _central_probability(middle, degrees) < confidence:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan(low)


def _central_probability(theta: float, degrees: int) -> float:
    """P(|T| < sqrt(degrees) tan(theta)): the finite sums for whole degrees of freedom, Abramowitz & Stegun 26.7.3 and 26.7.4."""
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = degrees % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for power in range(odd, degrees - 1, 2):  # term = c_power cos^power, power = 1, 3, .. or 0, 2, .. up to degrees - 2
        total += term
        term *= cosine * cosine * (power + 1) / (power + 2)
    return (theta + sine * total) * 2 / math.pi if odd else sine * total
