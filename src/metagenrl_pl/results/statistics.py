"""Interval estimates over seeds, and over several environments as Agarwal et al. 2021 (arXiv 2108.13264) recommend."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

Strata = Sequence[Sequence[float]]
"""One number per run, environment by environment; environments may have different numbers of runs."""


class Interval(NamedTuple):
    """A mean (or what stands for it) and the confidence interval round it; `low` and `high` are NaN where there is none."""

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
    quantile = float(stdtrit(len(sample) - 1, (1 + confidence) / 2))
    half_width = quantile * statistics.stdev(sample) / math.sqrt(len(sample))
    return Interval(mean, mean - half_width, mean + half_width)


def interquartile_mean(strata: Strata, confidence: float = 0.95, num_resamples: int = 5000, seed: int = 0) -> Interval:
    """Mean of the middle half of all runs of all environments, with its stratified percentile bootstrap interval.

    A quarter of the runs, rounded down, is cut off at either end, so up to three runs have their plain mean. An environment with more
    runs weighs more. Resampling draws runs within each environment, as many as it has.

    Args:
        strata: finite numbers, one or more of each environment.
        confidence: of the interval.
        num_resamples: draws of the bootstrap.
        seed: of the draws.

    Returns:
        The estimate and its interval; no interval if every environment has one run only, since there is nothing to resample.

    Raises:
        ValueError: no environment, one without runs, a number that is NaN or infinite, or a confidence outside (0, 1).
    """
    samples = _check_samples(strata, confidence)
    return _bootstrap(lambda *drawn: _trimmed_mean(np.concatenate(drawn, -1)), samples, confidence, num_resamples, seed)


def probability_of_improvement(
    strata: Strata, other: Strata, confidence: float = 0.95, num_resamples: int = 5000, seed: int = 0
) -> Interval:
    """P(X > Y), the chance that a run of `strata` beats one of `other`: a tie is half a win, every environment weighs the same.

    In each environment it is the Mann-Whitney U statistic over the number of pairs. The interval is a stratified percentile
    bootstrap; runs of X and Y are drawn independently.

    Args:
        strata, other: finite numbers of X and of Y, for the same environments in the same order.
        confidence: of the interval.
        num_resamples: draws of the bootstrap.
        seed: of the draws.

    Returns:
        The estimate and its interval; no interval if every environment has one run of each only.

    Raises:
        ValueError: different numbers of environments, or what `interquartile_mean` refuses.
    """
    xs, ys = _check_samples(strata, confidence), _check_samples(other, confidence)
    if len(xs) != len(ys):
        raise ValueError(f"{len(xs)} environments are compared with {len(ys)}: valid are the same ones on both sides")
    pairs = [sample for pair in zip(xs, ys, strict=True) for sample in pair]
    return _bootstrap(_mean_win_share, pairs, confidence, num_resamples, seed)


def _check_samples(strata: Strata, confidence: float) -> list[np.ndarray]:
    samples = [np.asarray(values, float) for values in strata]
    if not samples or not all(len(sample) and np.isfinite(sample).all() for sample in samples):
        raise ValueError(f"strata={[list(values) for values in strata]}: every environment needs one or more finite numbers")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence={confidence}: valid are numbers between 0 and 1, both excluded")
    return samples


def _bootstrap(
    statistic: Callable[..., np.ndarray], samples: Sequence[np.ndarray], confidence: float, num_resamples: int, seed: int
) -> Interval:
    """The statistic of samples [..., runs] with its percentile bootstrap interval, each sample resampled by itself."""
    from scipy.stats import bootstrap  # takes a second, which a training need not wait for

    estimate = float(statistic(*samples))
    varying = [i for i, sample in enumerate(samples) if len(sample) > 1]  # scipy refuses to resample a single run
    if not varying:
        return Interval(estimate, math.nan, math.nan)

    def of_varying(*drawn: np.ndarray, axis: int) -> np.ndarray:
        assert axis == -1
        every = [np.broadcast_to(sample, (*drawn[0].shape[:-1], len(sample))) for sample in samples]
        for i, sample in zip(varying, drawn, strict=True):
            every[i] = sample
        return statistic(*every)

    interval = bootstrap(
        [samples[i] for i in varying],
        of_varying,
        vectorized=True,
        paired=False,
        axis=-1,
        n_resamples=num_resamples,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(estimate, float(interval.low), float(interval.high))


def _trimmed_mean(values: np.ndarray) -> np.ndarray:
    """Mean of the middle half, [..., runs] -> [...]."""
    num_runs = values.shape[-1]
    cut = num_runs // 4
    return np.sort(values, -1)[..., cut : num_runs - cut].mean(-1)


def _mean_win_share(*pairs: np.ndarray) -> np.ndarray:
    """Mean over environments of the share of the pairs that X wins; X and Y of the first environment, of the second ..., [..., runs]."""
    return np.mean([_win_share(x, y) for x, y in zip(pairs[::2], pairs[1::2], strict=True)], 0)


def _win_share(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[..., runs of X], [..., runs of Y] -> [...]."""
    x, y = x[..., :, None], y[..., None, :]
    return ((x > y) + 0.5 * (x == y)).mean((-2, -1))
