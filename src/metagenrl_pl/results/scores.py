"""Scores of meta-tests, comparable across environments, from the runs of a variant.

    runs -> `learning_curves` -> `scores_of` -> {`aggregate`, `improvement`}

Every agent of an environment is judged at the same env steps: the evaluations that all of its methods have. A curve that shares none with
the others, such as that of a short trial, is left out, and a note says so.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metagenrl_pl.results.methods import LEARNED, find_method, reference_methods
from metagenrl_pl.results.rows import newest_stage
from metagenrl_pl.results.run_folders import Run, depends_on_meta_training
from metagenrl_pl.results.statistics import Interval, by_seed, interquartile_mean, probability_of_improvement
from metagenrl_pl.results.variants import Variant, note_on_agents, with_the_same_agents

Agent = tuple[str, str, int | None, int]
"""Environment, method, seed of meta-training and seed: what tells one fresh agent from all others."""


class LearningCurve(NamedTuple):
    """Evaluations of one fresh agent.

    Args:
        environment, method, seed: as in `meta_test.csv`.
        meta_training_seed: of the objective that trained it, or of RL2's policy; None if nothing was meta-trained.
        env_steps: ascending, [evaluations].
        returns: [evaluations].
        folder: of the run.
        run: its name.
    """

    environment: str
    method: str
    meta_training_seed: int | None
    seed: int
    env_steps: tuple[int, ...]
    returns: tuple[float, ...]
    folder: Path
    run: str

    @property
    def agent(self) -> Agent:
        """Which agent it is of."""
        return self.environment, self.method, self.meta_training_seed, self.seed

    @property
    def is_of_an_objective(self) -> bool:
        """Whether an objective that was meta-trained trained its agent."""
        return self.meta_training_seed is not None and not find_method(self.method).is_one_policy


class Score(NamedTuple):
    """How well one fresh agent did, as return and normalised (random actions 0, DDPG/TD3's mean 1); NaN where there is none.

    Args:
        environment, method, meta_training_seed, seed: of its `LearningCurve`.
        env_steps: of the last evaluation that all methods of the environment have.
        final: return there.
        area: under the learning curve: the mean return between the first and the last evaluation that all methods have.
        normalised_final, normalised_area: both, with random actions and DDPG/TD3 taken at the same env steps.
    """

    environment: str
    method: str
    meta_training_seed: int | None
    seed: int
    env_steps: int
    final: float
    area: float
    normalised_final: float = math.nan
    normalised_area: float = math.nan

    @property
    def agent(self) -> Agent:
        """Which agent it is of."""
        return self.environment, self.method, self.meta_training_seed, self.seed


Measure = Callable[[Score], float]


def learning_curves(runs: Sequence[Run], others: Sequence[Run] = ()) -> tuple[list[LearningCurve], list[str]]:
    """A curve for each fresh agent, of each method's newest objective, and notes on what contradicts or is left out.

    Methods that need no meta-training count once, however many runs repeat them: the first run that has a curve gives it.

    Args:
        runs: whose curves all count. Those with agents of other settings than the first are left out.
        others: give what the runs lack of the methods that need no meta-training. Runs with agents of other settings are left out.
            A curve without the evaluations that the learned objectives have belongs to a test of another kind: it serves only as a
            reference that is missing otherwise.
    """
    others, incomparable = with_the_same_agents(runs, others)
    runs, unlike = with_the_same_agents(runs, runs)
    curves: dict[Agent, LearningCurve] = {}
    contradictions: dict[tuple[str, str, Path, Path], int] = defaultdict(int)
    for curve in (curve for run in runs for curve in _curves_of(run)):
        first = curves.setdefault(curve.agent, curve)
        if not _are_equal(first, curve):  # another device, another version, or compiled: rounding is enough
            contradictions[curve.method, curve.environment, first.folder, curve.folder] += 1
    names = {run.folder: run.name for run in (*runs, *others)}
    notes = [*unlike, *incomparable] + [
        f"{method} on {environment} differs between {names[first]} and {names[second]} ({count} runs); the former counts."
        for (method, environment, first, second), count in contradictions.items()
    ]
    learned = _by_environment(curve for curve in curves.values() if curve.method == LEARNED.name)
    foreign = [curve for run in others for curve in _curves_of(run) if not curve.is_of_an_objective]
    for curve in foreign:
        is_whole = all(set(own.env_steps) <= set(curve.env_steps) for own in learned.get(curve.environment, ()))
        if is_whole or not find_method(curve.method).trains:
            curves.setdefault(curve.agent, curve)
    present = {(curve.environment, curve.method) for curve in curves.values()}
    left_out: dict[tuple[str, Path], dict[str, int]] = defaultdict(dict)
    for curve in foreign:
        if (curve.environment, curve.method) in present:
            continue
        if find_method(curve.method).normalised_score is not None:
            curves.setdefault(curve.agent, curve)
        else:
            left_out[curve.method, curve.folder][curve.environment] = curve.env_steps[-1]
    for (method, folder), ends in left_out.items():
        missing = ", ".join(f"{environment} (ends at {end:,})" for environment, end in ends.items())
        notes.append(
            f"{method} of {names[folder]} is left out where it ends before the learned objective or was evaluated elsewhere: {missing}."
        )
    return list(curves.values()), notes


def variant_curves(variant: Variant) -> tuple[list[LearningCurve], list[str]]:
    """`learning_curves` of a variant, in the environments in which its objectives were tested."""
    curves, notes = learning_curves(variant.runs, variant.others)
    tested = {curve.environment for curve in curves if curve.is_of_an_objective}
    notes += [note_on_agents(name, keys) for name, keys in variant.incomparable.items()]
    return [curve for curve in curves if curve.environment in tested], notes


def raw_scores(curves: Sequence[LearningCurve]) -> tuple[list[Score], list[str]]:
    """A score for each curve that can be judged with the others, not normalised, and notes on curves that were left out or cut."""
    scores: list[Score] = []
    notes: list[str] = []
    for environment, own in _by_environment(curves).items():
        own, more = _select_comparable(own)
        notes += more
        env_steps = _common_env_steps(own)
        longest = max(curve.env_steps[-1] for curve in own)
        if longest > env_steps[-1]:
            notes.append(
                f"{environment}: judged at {env_steps[-1]:,} env steps, where all curves are; some go on to {longest:,}."
            )
        scores += [_raw_score(curve, env_steps) for curve in own]
    return scores, notes


def scores_of(curves: Sequence[LearningCurve]) -> tuple[list[Score], list[str]]:
    """Those of `raw_scores`, normalised, and notes on environments where that is not possible and on curves that were left out or cut."""
    scores: list[Score] = []
    raw, notes = raw_scores(curves)
    lowest, highest = reference_methods()
    for environment in sorted({score.environment for score in raw}):
        own = [score for score in raw if score.environment == environment]
        if missing := [m.name for m in (lowest, highest) if all(score.method != m.name for score in own)]:
            notes.append(
                f"{environment} is left out of normalised scores, which need {lowest.label} ({lowest.name}) as 0 and {highest.label} "
                f"({highest.name}) as 1: no run has {' or '.join(missing)} there. Name a run folder that has it as well."
            )
            scores += own
            continue
        zero, one = (_reference_means(own, method.name) for method in (lowest, highest))
        if num_diverged := sum(not math.isfinite(score.area) for score in own if score.method == highest.name):
            notes.append(
                f"{environment}: {num_diverged} of the agents of {highest.label} diverged; its mean is that of the others."
            )
        if all(low < high for low, high in zip(zero, one, strict=True)):
            own = [
                score._replace(
                    normalised_final=(score.final - zero[0]) / (one[0] - zero[0]),
                    normalised_area=(score.area - zero[1]) / (one[1] - zero[1]),
                )
                for score in own
            ]
        else:
            notes.append(
                f"{environment} is left out of normalised scores: {highest.label} (final {one[0]:,.4g}, area {one[1]:,.4g}) is not above "
                f"{lowest.label} ({zero[0]:,.4g})."
            )
        scores += own
    return scores, notes


def select_normalised(scores: Iterable[Score]) -> list[Score]:
    """The scores of the environments in which normalised ones exist; an agent that diverged keeps its NaN."""
    scores = list(scores)
    scaled = {score.environment for score in scores if math.isfinite(score.normalised_final)}
    return [score for score in scores if score.environment in scaled]


def aggregate(scores: Iterable[Score], method: str, measure: Measure) -> Interval | None:
    """Interquartile mean of a method over all runs of all environments, with its bootstrap interval over seeds and agents.

    Returns:
        None if the method has no score; all NaN if one is not finite, as that of an agent that diverged may be.
    """
    of_method = [score for score in scores if score.method == method]
    strata = list(_group_by_environment(of_method, measure).values())
    if not strata:
        return None
    if not all(math.isfinite(value) for runs in strata for values in runs.values() for value in values):
        return Interval(math.nan, math.nan, math.nan)
    return interquartile_mean(strata)


def improvement(own: Iterable[Score], others: Iterable[Score], measure: Measure) -> Interval | None:
    """Probability that an agent of `own` beats one of `others`, over the environments that have both.

    An agent that diverged loses against every other. Scales do not matter, so raw returns serve.

    Returns:
        None if no environment has both.
    """
    groups = _group_by_environment(own, measure), _group_by_environment(others, measure)
    shared = [environment for environment in groups[0] if environment in groups[1]]
    if not shared:
        return None
    every = [value for group in groups for runs in group.values() for values in runs.values() for value in values]
    below = math.nextafter(min(filter(math.isfinite, every), default=0.0), -math.inf)
    x, y = (
        [{seed: [v if math.isfinite(v) else below for v in vs] for seed, vs in group[name].items()} for name in shared]
        for group in groups
    )
    return probability_of_improvement(x, y)


def _curves_of(run: Run) -> list[LearningCurve]:
    points: dict[Agent, dict[int, float]] = defaultdict(dict)
    for row in newest_stage(run.rows):
        seed = run.origin.seed if run.origin is not None and depends_on_meta_training(row) else None
        if find_method(row.method).is_one_policy:
            seed = run.number
        points[row.environment, row.method, seed, row.seed][row.env_steps] = row.episode_return
    curves = []
    for key, of_agent in points.items():
        env_steps = tuple(sorted(of_agent))
        curves.append(LearningCurve(*key, env_steps, tuple(of_agent[step] for step in env_steps), run.folder, run.name))
    return curves


def _are_equal(one: LearningCurve, other: LearningCurve) -> bool:
    return one.env_steps == other.env_steps and np.array_equal(one.returns, other.returns, equal_nan=True)


def _by_environment(curves: Iterable[LearningCurve]) -> dict[str, list[LearningCurve]]:
    groups: dict[str, list[LearningCurve]] = defaultdict(list)
    for curve in sorted(curves, key=lambda curve: curve.environment):
        groups[curve.environment].append(curve)
    return dict(groups)


def _select_comparable(curves: Sequence[LearningCurve]) -> tuple[list[LearningCurve], list[str]]:
    """Of one environment: the curves that have an evaluation in common, and a note on each run's others.

    It is the one that most learned objectives have, of those the one that most curves have, of those the last. Where all curves share
    one, all are kept.
    """
    trained = _select_trained(curves)
    learned = Counter(step for curve in trained if curve.method == LEARNED.name for step in curve.env_steps)
    every = Counter(step for curve in trained for step in curve.env_steps)
    shared = max(every, key=lambda step: (learned[step], every[step], step))
    left_out = {(curve.method, curve.run): curve.env_steps[-1] for curve in trained if shared not in curve.env_steps}
    notes = [
        f"{method} of {run} is left out on {curves[0].environment}: it ends at {end:,} and has no evaluation at {shared:,} env steps, "
        "where others do."
        for (method, run), end in left_out.items()
    ]
    return [curve for curve in curves if not find_method(curve.method).trains or shared in curve.env_steps], notes


def _common_env_steps(curves: Sequence[LearningCurve]) -> list[int]:
    """Of one environment: the evaluations that all curves have."""
    return sorted(set.intersection(*(set(curve.env_steps) for curve in _select_trained(curves))))


def _select_trained(curves: Sequence[LearningCurve]) -> Sequence[LearningCurve]:
    """All but random actions, which are not trained and have one evaluation alone; those where there is nothing else."""
    return [curve for curve in curves if find_method(curve.method).trains] or curves


def _raw_score(curve: LearningCurve, env_steps: Sequence[int]) -> Score:
    if not find_method(curve.method).trains:
        return Score(*curve.agent, env_steps[-1], curve.returns[-1], curve.returns[-1])
    at = dict(zip(curve.env_steps, curve.returns, strict=True))
    returns = [at[step] for step in env_steps]
    return Score(*curve.agent, env_steps[-1], returns[-1], _mean_over(env_steps, returns))


def _mean_over(env_steps: Sequence[int], returns: Sequence[float]) -> float:
    """Mean of the piecewise linear curve through the points, by the trapezoidal rule; a single point is its own mean."""
    if len(returns) == 1:
        return returns[0]
    widths, middles = np.diff(env_steps), (np.array(returns[1:]) + np.array(returns[:-1])) / 2
    return float((widths * middles).sum() / widths.sum())


def _reference_means(scores: Sequence[Score], method: str) -> tuple[float, float]:
    """Mean final return and mean area of a method's agents in one environment, but those that diverged; NaN if all did."""
    of_method = [(score.final, score.area) for score in scores if score.method == method]
    finite = [pair for pair in of_method if all(map(math.isfinite, pair))]
    final, area = np.mean(finite, 0) if finite else (math.nan, math.nan)
    return float(final), float(area)


def _group_by_environment(scores: Iterable[Score], measure: Measure) -> dict[str, dict[int | None, list[float]]]:
    """Environment -> meta-training seed (None without one) -> a number for each agent."""
    pairs: dict[str, list[tuple[int | None, float]]] = {}
    for score in scores:
        pairs.setdefault(score.environment, []).append((score.meta_training_seed, measure(score)))
    return {environment: by_seed(own) for environment, own in pairs.items()}
