"""The page of a report, from run folders to HTML: numbers from `report_tables`, charts from `report_charts` and `report_objectives`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from metagenrl_pl.common.files import atomic_write
from metagenrl_pl.reporting.report_charts import colours_of, learning_curve_panels, meta_training_panels, stage_panels
from metagenrl_pl.reporting.report_objectives import objectives_part
from metagenrl_pl.reporting.report_tables import (
    KINDS,
    forests,
    headline,
    judged_at,
    returns_table,
    runs_table,
    seeds_table,
    summary_table,
    verdict_table,
)
from metagenrl_pl.results.comparisons import Comparison, Entry, comparisons_of
from metagenrl_pl.results.methods import find_methods
from metagenrl_pl.results.rows import newest_stage
from metagenrl_pl.results.run_folders import Run, find_runs
from metagenrl_pl.results.scores import LearningCurve, learning_curves, raw_scores
from metagenrl_pl.results.variants import variants_of

_MOST_LEARNED = 2  # learned objectives whose lines are on from the start where there are many
_MOST_LINES = 7

Report = Callable[[int, int, str], None]
"""Called with the number of parts that are done, of all, and the name of the next."""


@dataclass(frozen=True)
class Switch:
    """What shows and hides the lines of an entry in all charts."""

    key: str
    name: str
    colour: str
    is_on: bool
    is_learned: bool


def ignore(done: int, total: int, what: str) -> None:
    """A `Report` that shows nothing."""


def write_report(paths: Sequence[Path], out: Path, report: Report = ignore) -> None:
    """Write the page.

    Args:
        paths: run folders, or folders that hold some.
        out: the HTML file.
        report: of the progress.

    Raises:
        ValueError: what `find_runs` refuses.
    """
    page = render(paths, report)
    with atomic_write(out) as file:
        file.write(page.encode())


def render(paths: Sequence[Path], report: Report = ignore) -> str:
    """The page as HTML.

    Raises:
        ValueError: as `write_report`.
    """
    report(0, 10, "Reading runs")
    runs, notes = find_runs(paths)
    report(1, 10, "Comparing methods")
    comparisons = comparisons_of(variants_of(runs))
    total = 2 + sum(6 + len(comparison.entries) for comparison in comparisons)
    done = 2

    def advance(what: str) -> None:
        nonlocal done
        done += 1
        report(min(done, total), total, what)

    sections = [_section(comparison, index, advance) for index, comparison in enumerate(comparisons)]
    alone, more = _without_learned(runs, comparisons)
    notes = list(dict.fromkeys([*notes, *(note for comparison in comparisons for note in comparison.notes), *more]))
    templates = Environment(
        loader=PackageLoader("metagenrl_pl.reporting", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return templates.get_template("report.html").render(
        sections=sections,
        alone=alone,
        notes=notes,
        runs=runs_table(runs),
        num_agents=sum(len(entry.curves) for comparison in comparisons for entry in comparison.entries),
        style=_read("report.css"),
        script=_read("report.js"),
    )


def _section(comparison: Comparison, index: int, advance: Callable[[str], None]) -> dict[str, Any]:
    """What the template shows of a comparison."""
    keys = {entry.name: f"c{index}s{number}" for number, entry in enumerate(comparison.entries)}
    colours = colours_of(comparison)
    advance("Scores")
    section: dict[str, Any] = {
        "comparison": comparison,
        "switches": _switches(comparison, keys, colours),
        "headline": headline(comparison),
        "forests": forests(comparison, keys, colours),
    }
    advance("Tables")
    section |= {
        "summary": summary_table(comparison),
        "verdicts": {kind: verdict_table(comparison, kind) for kind in KINDS if comparison.environments_of(kind)},
        "returns": returns_table(comparison.entries),
        "judged_at": judged_at(comparison.entries),
        "seeds": seeds_table(comparison),
        "settings": _settings(comparison),
    }
    advance("Learning curves")
    section["curves"] = learning_curve_panels(comparison, keys)
    advance("Meta-training")
    section["meta_training"] = meta_training_panels(comparison, keys)
    section["stages"] = stage_panels(comparison)
    section["objectives"] = objectives_part(comparison, keys, colours, lambda name: advance(f"Objective: {name}"))
    return section


def _switches(comparison: Comparison, keys: dict[str, str], colours: dict[str, str]) -> list[Switch]:
    """Where there are many entries, the learned objectives with the most agents and all other methods are on."""
    most = [entry.name for entry in sorted(comparison.learned, key=lambda entry: -len(entry.scores))]
    off = set(most[_MOST_LEARNED:]) if len(comparison.entries) > _MOST_LINES else set()
    return [
        Switch(keys[entry.name], entry.name, colours[entry.name], entry.name not in off, entry.variant is not None)
        for entry in comparison.entries
    ]


def _settings(comparison: Comparison) -> dict[str, tuple[str, list[str]]]:
    """Of each learned objective by its name: what it is in words, and its settings in lines."""
    settings = {}
    for entry in comparison.learned:
        assert entry.variant is not None
        origin = next((run.origin for run in entry.variant.runs if run.origin), None)
        lines = sorted(origin.settings.items()) if origin is not None else []
        settings[entry.name] = (entry.variant.title, [f"{key}={value}" for key, value in lines if not key.endswith("_")])
    return settings


def _without_learned(runs: Sequence[Run], comparisons: Sequence[Comparison]) -> tuple[dict[str, Any] | None, list[str]]:
    """Returns and curves in environments in which no learned objective was tested, and notes on them; None if there are none."""
    covered = {name for comparison in comparisons for name in comparison.environments}
    longest_first = sorted(runs, key=lambda run: -max(row.env_steps for row in run.rows))  # the first curve of an agent counts
    curves: list[LearningCurve] = []
    notes: list[str] = []
    for environment in sorted({row.environment for run in runs for row in run.rows} - covered):  # each may have agents of its own
        rows = {run.folder: [row for row in newest_stage(run.rows) if row.environment == environment] for run in longest_first}
        own, more = learning_curves([run._replace(rows=rows[run.folder]) for run in longest_first if rows[run.folder]])
        curves += own
        notes += more
    if not curves:
        return None, notes
    scores, more = raw_scores(curves)
    entries = [
        Entry(
            method.label,
            method,
            curves=[curve for curve in curves if curve.method == method.name],
            scores=[score for score in scores if score.method == method.name],
        )
        for method in find_methods(curve.method for curve in curves)
    ]
    comparison = Comparison(entries)
    keys = {entry.name: f"as{number}" for number, entry in enumerate(entries)}
    return {
        "returns": returns_table(entries),
        "judged_at": judged_at(entries),
        "curves": learning_curve_panels(comparison, keys),
        "switches": _switches(comparison, keys, colours_of(comparison)),
    }, [*notes, *more]


def _read(name: str) -> Markup:
    """A file of this package that becomes part of the page as it is."""
    return Markup((Path(__file__).parent / name).read_text())
