"""What a report says in numbers and words: the forest plot, the tables, the headline. `report.html` lays them out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from metagenrl_pl.reporting.numbers import decimals_for, format_interval, format_number, format_returns, join_names
from metagenrl_pl.results.comparisons import Comparison, Entry, Verdict, reference_entry
from metagenrl_pl.results.methods import LEARNED, find_methods, reference_methods
from metagenrl_pl.results.run_folders import Run
from metagenrl_pl.results.scores import Measure, Score, aggregate
from metagenrl_pl.results.statistics import by_seed

MEASURES: dict[str, Measure] = {
    "final return": lambda score: score.normalised_final,
    "area under the curve": lambda score: score.normalised_area,
}
KINDS = ("unseen", "training")
"""Kinds of environments, in the order in which they are shown."""


@dataclass(frozen=True)
class Table:
    """A table that scrolls sideways where it is too wide.

    Args:
        header: of the columns.
        rows: of cells, the first of which names the row.
        own: names of the rows to stress.
        is_text: whether cells hold words, which may be broken into lines.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    own: Sequence[str] = ()
    is_text: bool = False


@dataclass(frozen=True)
class ForestRow:
    """A score with its interval. Positions are in per cent of the axis; None for none.

    Args:
        name, key, colour: of the entry, its switch and its mark.
        is_learned: whether it is a learned objective.
        middle, low, high: positions.
        text: the same in numbers.
        missing: says in how many of the environments it was tested, empty if in all.
    """

    name: str
    key: str
    colour: str
    is_learned: bool
    middle: float | None
    low: float | None
    high: float | None
    text: str
    missing: str


@dataclass(frozen=True)
class Forest:
    """A forest plot of one kind of environments and one measure, best first.

    Args:
        kind, measure: what it shows.
        environments: that its scores count.
        rows: one for each entry that was tested.
        ticks: position in per cent and label.
    """

    kind: str
    measure: str
    environments: Sequence[str]
    rows: Sequence[ForestRow]
    ticks: Sequence[tuple[float, str]]


def forests(comparison: Comparison, keys: dict[str, str], colours: dict[str, str]) -> list[Forest]:
    """A forest plot for each kind of environments and each measure that has scores.

    Args:
        comparison: whose entries are drawn.
        keys, colours: of the entries, by name.
    """
    made = []
    for kind in KINDS:
        environments = comparison.environments_of(kind)
        for name, measure in MEASURES.items():
            scored = [(entry, comparison.score_of(entry, kind, measure)) for entry in comparison.entries]
            known = [(entry, interval) for entry, interval in scored if interval is not None]
            if not known:
                continue
            known.sort(key=lambda pair: -pair[1].mean if math.isfinite(pair[1].mean) else math.inf)
            ends = [value for _, interval in known for value in interval if math.isfinite(value)]
            low, high = min([0.0, *ends]) - 0.04, max([1.0, *ends]) + 0.04

            def place(value: float, low: float = low, high: float = high) -> float | None:
                return round(100 * (value - low) / (high - low), 2) if math.isfinite(value) else None

            rows = []
            for entry, interval in known:
                missing = _missing(comparison.scores(entry, kind), environments)
                middle, start, end = map(place, interval)
                own = (entry.name, keys[entry.name], colours[entry.name], entry.variant is not None)
                rows.append(ForestRow(*own, middle, start, end, format_interval(interval), missing))
            step = 0.5 if high - low < 4 else round((high - low) / 6)
            ticks = [tick * step for tick in range(math.ceil(low / step), math.floor(high / step) + 1)]
            made.append(Forest(kind, name, environments, rows, [(place(tick) or 0.0, f"{tick:g}") for tick in ticks]))
    return made


def summary_table(comparison: Comparison) -> Table:
    """Every entry's scores, whether it is better than the reference, and how many agents say so; best first.

    A score over some of the environments alone says over how many.
    """
    reference = reference_entry(comparison)
    kinds = [kind for kind in KINDS if comparison.environments_of(kind)]
    header = ["method", *(f"{kind}: {name}" for kind in kinds for name in ("final", "area"))]
    if reference is not None and kinds:
        header += [f"against {reference.name} ({kinds[0]}, final)"]
    header += ["agents (seeds)"]
    rows = []
    for entry in by_score(comparison):
        cells = [entry.name]
        for kind in kinds:
            missing = _missing(comparison.scores(entry, kind), comparison.environments_of(kind))
            for measure in MEASURES.values():
                score = comparison.score_of(entry, kind, measure)
                cells.append(format_interval(score) + (f" ({missing})" if missing and score is not None else ""))
        if reference is not None and kinds:
            cells += [_against_text(comparison, entry, reference, kinds[0])]
        rows.append([*cells, _agents_text(entry)])
    return Table(header, rows, [entry.name for entry in comparison.learned])


def by_score(comparison: Comparison) -> list[Entry]:
    """The entries, best first by the first kind of environments that has scores."""
    kind = next((kind for kind in KINDS if comparison.environments_of(kind)), KINDS[0])

    def order(entry: Entry) -> float:
        score = comparison.score_of(entry, kind, MEASURES["final return"])
        return -score.mean if score is not None and math.isfinite(score.mean) else math.inf

    return sorted(comparison.entries, key=order)


def headline(comparison: Comparison) -> list[str]:
    """The result in sentences, whatever it is. It names the environments that count, and no others."""
    reference = reference_entry(comparison)
    lowest, highest = reference_methods()
    sentences = []
    for kind in KINDS:
        environments = comparison.environments_of(kind)
        if not environments or reference is None:
            sentences.append(f"No scores in {kind} environments: {_why_unscored(comparison, kind)}.")
            continue
        where = f"{kind.capitalize()} environments ({join_names(environments)})"
        if len(comparison.learned) > 1:
            pairs = [(entry, reference) for entry in comparison.learned]
            sentence = f"{where}, final return against {reference.name}: "
        else:
            pairs = [(comparison.learned[0], other) for other in comparison.others]
            score = format_interval(comparison.score_of(comparison.learned[0], kind, MEASURES["final return"]))
            scale = f"where {lowest.label} are 0 and {highest.label} is 1"
            sentence = f"{where}: the learned objective scores {score}, {scale}. Against the other methods it is "
        sentences.append(sentence + _verdict_clauses(comparison, pairs, kind) + ".")
    return sentences


def _why_unscored(comparison: Comparison, kind: str) -> str:
    tested = {
        score.environment
        for entry in comparison.learned
        for score in entry.scores
        if entry.trained_in(score.environment) == (kind == "training")
    }
    if not tested:
        return "no objective was tested in one"
    there = {entry.method.name for entry in comparison.others for score in entry.scores if score.environment in tested}
    missing = [method.label for method in reference_methods() if method.name not in there]
    return f"they need {' and '.join(missing)}, not tested there" if missing else "the notes say why"


def _verdict_clauses(comparison: Comparison, pairs: Sequence[tuple[Entry, Entry]], kind: str) -> str:
    """`better: none; indistinguishable: light, mixture`, naming the side of each pair that is not the same in all."""
    clauses: dict[str, list[str]] = {Verdict.BETTER.value: []}
    for verdict in Verdict:
        for entry, other in pairs:
            _, own = comparison.improvement_over(entry, other, kind, lambda score: score.final)
            if own == verdict:
                name = entry.name if len(comparison.learned) > 1 else other.name
                clauses.setdefault(_verdict_text(verdict, comparison.scores(entry, kind)), []).append(name)
    if len(clauses) > 1 and not clauses[Verdict.BETTER.value] and any(key.startswith("better (") for key in clauses):
        del clauses[Verdict.BETTER.value]
    return "; ".join(f"{text}: {join_names(names) or 'none'}" for text, names in clauses.items())


def verdict_table(comparison: Comparison, kind: str) -> Table:
    """The probability that an agent of each learned objective ends above one of each other method."""
    learned = comparison.learned
    rows = []
    for other in comparison.others:
        cells = [_against_text(comparison, entry, other, kind) for entry in learned]
        if any(cell != "–" for cell in cells):
            rows.append([other.name, *cells])
    return Table(["against", *(entry.name for entry in learned)], rows, is_text=True)


def returns_table(entries: Sequence[Entry]) -> Table:
    """Returns of every entry in every environment, as they are."""
    environments = sorted({score.environment for entry in entries for score in entry.scores})
    rows = [[entry.name] for entry in entries]
    for environment in environments:
        scores = [[score for score in entry.scores if score.environment == environment] for entry in entries]
        decimals = decimals_for(score.final for own in scores for score in own)
        for entry, row, own in zip(entries, rows, scores, strict=True):
            text = format_returns(by_seed((score.meta_training_seed, score.final) for score in own), decimals)
            row.append(text + (" *" if own and entry.trained_in(environment) else ""))
    return Table(["method", *environments], rows, [entry.name for entry in entries if entry.variant is not None])


def judged_at(entries: Sequence[Entry]) -> str:
    """After how many env steps each environment's agents are judged."""
    env_steps = {score.environment: score.env_steps for entry in entries for score in entry.scores if entry.method.trains}
    return ", ".join(f"{name} {steps:,}" for name, steps in sorted(env_steps.items()))


def seeds_table(comparison: Comparison) -> Table:
    """Each learned objective by itself: how much meta-training seeds differ."""
    kinds = [kind for kind in KINDS if comparison.environments_of(kind)]
    rows = []
    for entry in comparison.learned:
        for seed in sorted({score.meta_training_seed for score in entry.scores if score.meta_training_seed is not None}):
            cells = [f"{entry.name}, seed {seed}"]
            for kind in kinds:
                own = [score for score in comparison.scores(entry, kind) if score.meta_training_seed == seed]
                interval = aggregate(own, LEARNED.name, MEASURES["final return"])
                cells.append(f"{format_number(interval.mean)} ({len(own)} agents)" if interval else "–")
            rows.append(cells)
    return Table(["objective", *kinds], rows)


def runs_table(runs: Sequence[Run]) -> Table:
    """Where the numbers come from."""
    header = ["run", "meta-trained on", "agents", "env steps per agent", "seed", "commit", "methods", "tested on", "env steps"]
    rows = []
    for run in runs:
        origin = run.origin
        made = ["–"] * 5
        if origin is not None:
            agents = str(origin.settings.get("population.size", "?"))
            made = [", ".join(origin.training_environments), agents, f"{run.stage:,}", str(origin.seed), origin.commit[:7] or "?"]
        methods = ", ".join(method.name for method in find_methods(row.method for row in run.rows))
        environments = ", ".join(sorted({row.environment for row in run.rows}))
        rows.append([run.name, *made, methods, environments, f"{max(row.env_steps for row in run.rows):,}"])
    return Table(header, rows, is_text=True)


def _against_text(comparison: Comparison, entry: Entry, other: Entry, kind: str) -> str:
    """`0.53 [0.42, 0.65] indistinguishable`, a dash where there is nothing to compare."""
    if entry == other:
        return "–"
    wins, verdict = comparison.improvement_over(entry, other, kind, lambda score: score.final)
    if wins is None or verdict is None:
        return "–"
    return f"{format_interval(wins)} {_verdict_text(verdict, comparison.scores(entry, kind))}"


def _verdict_text(verdict: Verdict, scores: Sequence[Score]) -> str:
    """A verdict on objectives of one meta-training seed, by these scores of theirs, holds for that one objective alone."""
    seeds = {score.meta_training_seed for score in scores}
    is_limited = len(seeds - {None}) == 1 and verdict != Verdict.TOO_FEW
    return verdict.value + (" (one meta-training seed)" if is_limited else "")


def _agents_text(entry: Entry) -> str:
    seeds = {score.meta_training_seed for score in entry.scores} - {None}
    return f"{len(entry.scores)} ({len(seeds)})" if seeds else f"{len(entry.scores)}"


def _missing(scores: Sequence[Score], environments: Sequence[str]) -> str:
    present = len({score.environment for score in scores})
    return f"{present} of {len(environments)} environments" if present < len(environments) else ""
