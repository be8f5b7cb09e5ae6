"""One page that tells what runs have shown: `metagenrl report RUN_FOLDER [RUN_FOLDER ...] [--out report.html]`.

The page stands alone: charts, style and script are inside, nothing is loaded from elsewhere. It is the same for the same folders.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from metagenrl_pl.common.exit_codes import MISTAKE
from metagenrl_pl.common.files import check_can_write, path_argument
from metagenrl_pl.common.messages import one_line


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. A user's mistake is one line, `error: ...`, and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="metagenrl report",
        description="One HTML page that tells what meta-training and meta-tests have shown.",
    )
    parser.add_argument("runs", nargs="+", type=path_argument, help="run folders, or folders that hold run folders")
    parser.add_argument("--out", type=path_argument, default=Path("report.html"), help="the page (default: report.html)")
    given = parser.parse_args(arguments)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    try:
        check_can_write(given.out, "--out")
        if given.out.exists() and given.out.suffix not in (".html", ".htm"):
            raise ValueError(f"--out {given.out}: is there already, and no page; valid is a new file, or one that ends in .html")
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("Starting", total=None)

            def report(done: int, total: int, what: str) -> None:
                progress.update(task, completed=done, total=total, description=what)

            from metagenrl_pl.reporting.page import write_report  # takes seconds: after the first line on the screen

            write_report(given.runs, given.out, report)
    except (ValueError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(MISTAKE)
    print(f"Report: {given.out} ({given.out.stat().st_size / 1e6:.1f} MB)")
