"""Comparisons: all methods that may be compared with each other, learned objectives and others, each once.

runs -> `variants_of` -> `comparisons_of` -> entries with scores -> `score_of`, `improvement_over`
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from metagenrl_pl.results.methods import LEARNED, UNTRAINED, Method, find_methods
from metagenrl_pl.results.scores import (
    LearningCurve,
    Measure,
    Score,
    aggregate,
    improvement,
    scores_of,
    select_normalised,
    variant_curves,
)
from metagenrl_pl.results.statistics import Interval
from metagenrl_pl.results.variants import Variant

MIN_AGENTS, MIN_SEEDS = 5, 3
"""Agents that either side needs in every environment, and seeds of meta-training, before a comparison ends with a verdict.

A side with a single seed is one objective, and the verdict is on that alone. With two seeds the interval is far too narrow
(`benchmarks/interval_coverage.py`).
"""


class Verdict(Enum):
    """What a probability of improvement says."""

    BETTER = "better"
    LEVEL = "indistinguishable"
    WORSE = "worse"
    TOO_FEW = "too few agents to tell"
    TOO_FEW_SEEDS = "too few seeds to tell"


@dataclass(frozen=True)
class Entry:
    """One line of a comparison: a method, or the learned objectives of one variant.

    Args:
        name: unique in its comparison.
        method: that it is.
        variant: of learned objectives; None for other methods.
        curves: of its agents.
        scores: of its agents, in all environments.
    """

    name: str
    method: Method
    variant: Variant | None = None
    curves: list[LearningCurve] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)

    def trained_in(self, environment: str) -> bool:
        """Whether its objectives were meta-trained in an environment."""
        return self.variant is not None and environment in self.variant.training_environments


@dataclass(frozen=True)
class Comparison:
    """Entries whose agents have the same settings and are judged at the same env steps.

    Args:
        entries: learned objectives first, then the others in display order.
        notes: on what was left out or cut.
    """

    entries: Sequence[Entry]
    notes: Sequence[str] = ()

    @property
    def learned(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.variant is not None]

    @property
    def others(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.variant is None]

    @property
    def environments(self) -> list[str]:
        """All that some objective was tested in, sorted."""
        return sorted({score.environment for entry in self.entries for score in entry.scores})

    def environments_of(self, kind: str) -> list[str]:
        """Those with normalised scores that some objective here was ("training") or was not ("unseen") meta-trained in, and tested in."""
        return sorted(
            {
                score.environment
                for entry in self.learned
                for score in select_normalised(entry.scores)
                if entry.trained_in(score.environment) == (kind == "training")
            }
        )

    def scores(self, entry: Entry, kind: str) -> list[Score]:
        """The scores of an entry that count for a kind of environments: a learned objective's own, another method's all."""
        environments = self.environments_of(kind)
        return [
            score
            for score in entry.scores
            if score.environment in environments
            and (entry.variant is None or entry.trained_in(score.environment) == (kind == "training"))
        ]

    def score_of(self, entry: Entry, kind: str, measure: Measure) -> Interval | None:
        """Interquartile mean with its interval, None if an entry has no score."""
        return aggregate(self.scores(entry, kind), entry.method.name, measure)

    def improvement_over(
        self, entry: Entry, other: Entry, kind: str, measure: Measure
    ) -> tuple[Interval, Verdict] | tuple[None, None]:
        """How probable it is that an agent of an entry beats one of another, and what may be said of it; None if nothing is shared."""
        own, others = self.scores(entry, kind), self.scores(other, kind)
        wins = improvement(own, others, measure)
        if wins is None:
            return None, None
        return wins, verdict_on(wins, min(_agents_each_has(own, others)), min(map(_num_seeds, (own, others))))


def verdict_on(wins: Interval, num_agents: int, num_seeds: float = math.inf) -> Verdict:
    """What a probability of improvement says.

    Args:
        wins: with an interval over meta-training seeds and agents.
        num_agents: of the smaller side, in the environment where it has the fewest.
        num_seeds: of meta-training, of the side with fewer; infinite for single objectives and without meta-training.
    """
    if num_agents < MIN_AGENTS or math.isnan(wins.low):
        return Verdict.TOO_FEW
    if num_seeds < MIN_SEEDS:
        return Verdict.TOO_FEW_SEEDS
    if wins.low > 0.5:
        return Verdict.BETTER
    return Verdict.WORSE if wins.high < 0.5 else Verdict.LEVEL


class _Judged(NamedTuple):
    """A variant with its agents' curves and scores, and notes on what was left out."""

    variant: Variant
    curves: list[LearningCurve]
    scores: list[Score]
    notes: list[str]


def comparisons_of(variants: Sequence[Variant]) -> list[Comparison]:
    """As few comparisons as possible. A variant joins the first one whose agents have its settings and are judged at its env steps."""
    groups: list[list[_Judged]] = []
    for variant in variants:
        curves, notes = variant_curves(variant)
        scores, more = scores_of(curves)
        judged = _Judged(variant, curves, scores, [*notes, *more])
        for group in groups:
            if all(_are_comparable(judged, other) for other in group):
                group.append(judged)
                break
        else:
            groups.append([judged])
    return [_compare(group) for group in groups]


def _are_comparable(judged: _Judged, other: _Judged) -> bool:
    if {run.name for run in other.variant.runs} & judged.variant.incomparable.keys():
        return False
    env_steps, other_env_steps = ({score.environment: score.env_steps for score in of.scores} for of in (judged, other))
    return all(env_steps[name] == other_env_steps[name] for name in env_steps.keys() & other_env_steps.keys())


def _compare(group: Sequence[_Judged]) -> Comparison:
    learned: list[Entry] = []
    others: dict[str, Entry] = {}
    names = _distinct_names([judged.variant for judged in group])
    for name, (variant, curves, scores, _) in zip(names, group, strict=True):
        methods = find_methods(curve.method for curve in curves)
        for method in methods:
            own_curves = [curve for curve in curves if curve.method == method.name]
            own_scores = [score for score in scores if score.method == method.name]
            if method == LEARNED:
                learned.append(Entry(name, method, variant, own_curves, own_scores))
                continue
            entry = others.setdefault(method.name, Entry(method.label, method))
            if method == UNTRAINED and _contradict(entry, own_scores):  # an objective of another kind
                entry = others.setdefault(f"{method.name} {name}", Entry(f"{method.label} ({name})", method))
            present = {score.agent for score in entry.scores}
            entry.scores.extend(score for score in own_scores if score.agent not in present)
            present = {curve.agent for curve in entry.curves}
            entry.curves.extend(curve for curve in own_curves if curve.agent not in present)
    order = {method.name: index for index, method in enumerate(find_methods(entry.method.name for entry in others.values()))}
    notes = dict.fromkeys(note for judged in group for note in judged.notes)
    return Comparison([*learned, *sorted(others.values(), key=lambda entry: order[entry.method.name])], list(notes))


def _contradict(entry: Entry, scores: Iterable[Score]) -> bool:
    """Whether an entry has other scores of the same agents."""
    known = {score.agent: score.final for score in entry.scores}
    pairs = [(known[score.agent], score.final) for score in scores if score.agent in known]
    return any(one != other and not (math.isnan(one) and math.isnan(other)) for one, other in pairs)


def _distinct_names(variants: Sequence[Variant]) -> list[str]:
    """A name for each: its own, what it is called where it stands alone, and a number where two share one."""
    if len(variants) == 1:
        return [LEARNED.label]
    names: list[str] = []
    for variant in variants:
        name, number = variant.name, 2
        while name in names:
            name, number = f"{variant.name} ({number})", number + 1
        names.append(name)
    return names


def _agents_each_has(own: Sequence[Score], others: Sequence[Score]) -> list[int]:
    """Numbers of agents of both sides in each environment that both were tested in."""
    counts = [Counter(score.environment for score in scores) for scores in (own, others)]
    return [count[name] for count in counts for name in counts[0].keys() & counts[1].keys()]


def _num_seeds(scores: Sequence[Score]) -> float:
    """Of meta-training; infinite where there is none, or one alone."""
    num = len({score.meta_training_seed for score in scores})
    return num if num > 1 else math.inf


def reference_entry(comparison: Comparison) -> Entry | None:
    """The method whose normalised score is 1 by definition, if it was tested."""
    return next((entry for entry in comparison.others if entry.method.normalised_score == 1.0), None)
