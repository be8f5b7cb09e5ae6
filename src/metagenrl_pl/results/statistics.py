"""Interval estimates over seeds, and over several environments as Agarwal et al. 2021 (arXiv 2108.13264) recommend."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

Strata = Sequence[Mapping[Any, Sequence[float]]]
"""One number per run, environment by environment, by the meta-training seed of the objective that trained it.

Runs that depend on no meta-training share one key, such as None. Environments may have different keys and numbers of runs.
"""

_UPPER = 0.975
"""The quantile at the upper end of a 95 % interval."""


def by_seed(values: Iterable[tuple[Any, float]]) -> dict[Any, list[float]]:
    """One environment of `Strata`, from pairs of a meta-training seed and a number."""
    groups: dict[Any, list[float]] = {}
    for seed, value in values:
        groups.setdefault(seed, []).append(value)
    return groups


class Interval(NamedTuple):
    """A mean (or what stands for it) and the 95 % confidence interval round it; `low` and `high` are NaN where there is none."""

    mean: float
    low: float
    high: float


def mean_interval(values: Iterable[float]) -> Interval:
    """Mean of independent values (one per seed) with its two-sided Student-t 95 % interval, which supposes a normal distribution.

    Args:
        values: one finite number per seed. A single one has a mean and no interval: `low` and `high` are NaN.

    Raises:
        ValueError: no value, or a value that is NaN or infinite.
    """
    sample = [float(value) for value in values]
    if not sample or not all(map(math.isfinite, sample)):
        raise ValueError(f"values={sample}: a mean over seeds needs one or more finite numbers")
    with np.errstate(over="ignore"):  # a mean of numbers near the largest one may be infinite
        mean = float(np.mean(sample))
        if len(sample) == 1:
            return Interval(mean, math.nan, math.nan)
        quantile = float(stdtrit(len(sample) - 1, _UPPER))
        half_width = quantile * float(np.std(sample, ddof=1)) / math.sqrt(len(sample))
    return Interval(mean, mean - half_width, mean + half_width)


def mean_interval_over_seeds(runs: Mapping[Any, Sequence[float]]) -> Interval:
    """Mean with its Student-t interval: over the means of meta-training seeds if there are several, or over runs.

    Runs of one objective are not independent, so the number of seeds counts, not that of runs.

    Args:
        runs: one number per run, by meta-training seed, as an environment of `Strata`.

    Returns:
        The mean of the seeds' means and its interval; all NaN if a number is not finite, as that of an agent that diverged may be.
    """
    if not all(math.isfinite(value) for values in runs.values() for value in values):
        return Interval(math.nan, math.nan, math.nan)
    means = [float(np.mean(values)) for values in runs.values()]
    return mean_interval(means if len(means) > 1 else next(iter(runs.values())))


def interquartile_mean(strata: Strata, num_resamples: int = 5000, seed: int = 0) -> Interval:
    """Mean of the middle half of all runs of all environments, with its hierarchical percentile bootstrap interval.

    A quarter of the runs, rounded down, is cut off at either end, so up to three runs have their plain mean. An environment with more
    runs weighs more. A resample draws meta-training seeds first, the same ones in all environments, and then, within each
    environment, runs of these seeds: runs of one objective are not independent.

    Args:
        strata: finite numbers, one or more of each environment.
        num_resamples: draws of the bootstrap.
        seed: of the draws.

    Returns:
        The estimate and its interval; no interval if there is one seed and every environment has one run only, since there is nothing
        to resample.

    Raises:
        ValueError: no environment, one without runs, or a number that is NaN or infinite.
    """
    samples = _check_samples(strata)
    values = np.concatenate(samples)
    order = np.argsort(values)
    once = np.ones((1, len(values)))
    estimate = float(_trimmed_mean(values[order], once)[0])
    if not _can_vary(strata):
        return Interval(estimate, math.nan, math.nan)
    times = np.concatenate(_resample(strata, num_resamples, np.random.default_rng(seed)), axis=1)  # [resamples, runs]
    return _percentile_interval(estimate, _trimmed_mean(values[order], times[:, order]))


def probability_of_improvement(strata: Strata, other: Strata, num_resamples: int = 5000, seed: int = 0) -> Interval:
    """P(X > Y), the chance that a run of `strata` beats one of `other`: a tie is half a win, every environment weighs the same.

    In each environment it is the Mann-Whitney U statistic over the number of pairs. The interval is a percentile bootstrap that draws
    meta-training seeds first and runs within them, as `interquartile_mean`; X and Y are drawn independently.

    Args:
        strata, other: finite numbers of X and of Y, for the same environments in the same order.
        num_resamples: draws of the bootstrap.
        seed: of the draws.

    Returns:
        The estimate and its interval; no interval if nothing can be resampled on either side.

    Raises:
        ValueError: different numbers of environments, or what `interquartile_mean` refuses.
    """
    xs, ys = _check_samples(strata), _check_samples(other)
    if len(xs) != len(ys):
        raise ValueError(f"{len(xs)} environments are compared with {len(ys)}: valid are the same ones on both sides")
    wins = [(x[:, None] > y) + 0.5 * (x[:, None] == y) for x, y in zip(xs, ys, strict=True)]  # [runs of X, runs of Y] each
    estimate = float(np.mean([of_pairs.mean() for of_pairs in wins]))
    if not (_can_vary(strata) or _can_vary(other)):
        return Interval(estimate, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    drawn = zip(_resample(strata, num_resamples, rng), _resample(other, num_resamples, rng), wins, strict=True)
    shares = np.stack([_win_share(*of_environment) for of_environment in drawn])  # [environments, resamples]
    present = ~np.isnan(shares)  # a resample may hold no seed that was tested in an environment
    sums, counts = np.where(present, shares, 0.0).sum(0), present.sum(0)
    return _percentile_interval(estimate, sums[counts > 0] / counts[counts > 0])


def _check_samples(strata: Strata) -> list[np.ndarray]:
    """The runs of each environment, key by key."""
    samples = [np.array([value for values in runs.values() for value in values], float) for runs in strata]
    if not samples or not all(len(sample) and np.isfinite(sample).all() for sample in samples):
        raise ValueError(f"strata={[dict(runs) for runs in strata]}: every environment needs one or more finite numbers")
    return samples


def _can_vary(strata: Strata) -> bool:
    """Whether resamples can differ: there are several seeds, or several runs of one seed in an environment."""
    return len({key for runs in strata for key in runs}) > 1 or any(
        len(values) > 1 for runs in strata for values in runs.values()
    )


def _resample(strata: Strata, num_resamples: int, rng: np.random.Generator) -> list[np.ndarray]:
    """How often each run of each environment is drawn, [resamples, runs] for each environment, in the order of `_check_samples`.

    A seed that is drawn m times gives m n draws of its n runs: the sum of m bootstrap samples of them.
    """
    keys = list(dict.fromkeys(key for runs in strata for key in runs))
    drawn = rng.multinomial(len(keys), np.full(len(keys), 1 / len(keys)), size=num_resamples)  # [resamples, keys]
    times = {key: drawn[:, index] for index, key in enumerate(keys)}
    return [
        np.concatenate(
            [rng.multinomial(times[key] * len(v), np.full(len(v), 1 / len(v))) for key, v in runs.items() if len(v)], axis=1
        )
        for runs in strata
    ]


def _trimmed_mean(values: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Mean of the middle half of ascending values [runs], of which each occurs so many times, [resamples, runs] -> [resamples]."""
    ends = times.cumsum(-1)
    total = ends[:, -1:]
    cut = total // 4
    inside_until = ends.clip(cut, total - cut)
    kept = np.diff(inside_until, axis=-1, prepend=cut)
    return (kept * values).sum(-1) / kept.sum(-1)


def _win_share(x_times: np.ndarray, y_times: np.ndarray, wins: np.ndarray) -> np.ndarray:
    """Share of the pairs that X wins, [resamples, runs of X], [resamples, runs of Y] -> [resamples]; NaN where there is no pair."""
    pairs = x_times.sum(-1) * y_times.sum(-1)
    return np.where(pairs > 0, ((x_times @ wins) * y_times).sum(-1) / np.maximum(pairs, 1), np.nan)


def _percentile_interval(estimate: float, resampled: np.ndarray) -> Interval:
    low, high = np.quantile(resampled, [1 - _UPPER, _UPPER])
    return Interval(estimate, float(low), float(high))
