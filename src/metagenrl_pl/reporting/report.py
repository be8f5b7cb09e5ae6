"""One page that tells what runs have shown: `python -m metagenrl_pl.reporting.report RUN_FOLDER [RUN_FOLDER ...] [--out report.html]`.

The page stands alone: pictures are inside, nothing is loaded from elsewhere. It is the same for the same folders.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from metagenrl_pl.common.files import atomic_write
from metagenrl_pl.common.messages import one_line
from metagenrl_pl.reporting.report_curves import learning_curve_pictures, meta_training_pictures, stages_pictures
from metagenrl_pl.reporting.report_objectives import objectives_parts
from metagenrl_pl.reporting.report_parts import Gallery, Part, Section, Settings, Words
from metagenrl_pl.reporting.report_tables import (
    headline,
    improvement_table,
    normalised_table,
    objectives_table,
    returns_table,
    runs_table,
)
from metagenrl_pl.results.run_folders import find_runs
from metagenrl_pl.results.scores import LearningCurve, Score, learning_curves, raw_scores, scores_of, variant_curves
from metagenrl_pl.results.variants import Variant, variants_of


def write_report(paths: Sequence[Path], out: Path, figures: Path | None = None) -> None:
    """Write the page.

    Args:
        paths: run folders, or folders that hold some.
        out: the HTML file.
        figures: folder for the pictures as PNG files; None for none.

    Raises:
        ValueError: what `find_runs` refuses.
    """
    page, gallery = render(paths)
    with atomic_write(out) as file:
        file.write(page.encode())
    if figures is not None:
        gallery.save(figures)


def render(paths: Sequence[Path]) -> tuple[str, Gallery]:
    """The page as HTML, and its pictures.

    Raises:
        ValueError: as `write_report`.
    """
    runs, notes = find_runs(paths)
    variants = variants_of(runs)
    gallery = Gallery()
    sections, headlines, covered = [], [], set()
    for index, variant in enumerate(variants):
        curves, more = variant_curves(variant)
        scores, still_more = scores_of(curves)
        notes += [note for note in [*more, *still_more] if note not in notes]
        covered |= {score.environment for score in scores}
        anchor = f"variant-{index}"
        headlines.append((variant.title, anchor, headline(variant, scores)))
        sections.append(Section(variant.title, anchor, _variant_parts(variant, curves, scores, gallery, anchor)))
    longest_first = sorted(runs, key=lambda run: -max(row.env_steps for row in run.rows))  # the first curve of an agent counts
    alone = [curve for curve in learning_curves([], longest_first)[0] if curve.environment not in covered]
    if alone:
        scores, more = raw_scores(alone)
        notes += more
        parts: list[Part] = [
            Words("Tested with other methods alone."),
            returns_table(scores),
            learning_curve_pictures(alone, gallery, "alone"),
        ]
        sections.append(Section("Environments without a learned objective", "alone", parts))
    sections.append(Section("What was run", "runs", [runs_table(runs)]))
    templates = Environment(
        loader=PackageLoader("metagenrl_pl.reporting", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    page = templates.get_template("report.html").render(headlines=headlines, notes=notes, sections=sections)
    return page, gallery


def _variant_parts(
    variant: Variant, curves: Sequence[LearningCurve], scores: Sequence[Score], gallery: Gallery, anchor: str
) -> list[Part]:
    settings: Mapping[str, object] = next((run.origin.settings for run in variant.runs if run.origin), {})
    lines = [f"{key}={value}" for key, value in sorted(settings.items()) if not key.endswith("_")]
    return [
        *([Settings(lines)] if lines else []),
        normalised_table(variant, scores),
        improvement_table(variant, scores),
        objectives_table(variant, scores),
        returns_table(scores, variant.training_environments),
        learning_curve_pictures(curves, gallery, anchor, variant.training_environments),
        *meta_training_pictures(variant, gallery, anchor),
        *stages_pictures(variant, curves, gallery, anchor),
        *objectives_parts(variant, gallery, anchor),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. A user's mistake is one line, `error: ...`, and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m metagenrl_pl.reporting.report",
        description="One HTML page that tells what meta-training and meta-tests have shown.",
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or folders that hold run folders")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page (default: report.html)")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="save its pictures here as PNG files as well")
    given = parser.parse_args(arguments)
    try:
        write_report(given.runs, given.out, given.figures)
    except (ValueError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    print(f"Report: {given.out}")


if __name__ == "__main__":
    main()
