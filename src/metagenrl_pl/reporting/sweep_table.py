"""The table that a sweep prints at its end: what became of each job."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from omegaconf import OmegaConf
from rich.table import Table
from rich.text import Text

from metagenrl_pl.config.schema import ConfigError, load_config
from metagenrl_pl.results.methods import LEARNED
from metagenrl_pl.results.rows import final_rows, mean_returns, newest_stage, read_rows


class SweepJob(NamedTuple):
    """A job of a sweep.

    Args:
        name: with the overrides that differ between jobs, such as `job 2: seed=1`.
        run_dir: its run folder; None if it has none.
        code: its exit code.
    """

    name: str
    run_dir: Path | None
    code: int


def sweep_table(jobs: Sequence[SweepJob]) -> Table:
    """A line for each job: its overrides, how it ended, its run folder, the return of its own method in each environment.

    The return is the mean over fresh agents at their last evaluation, of the learned objective if it was tested, else of the method
    that the run itself evaluated.
    """
    finals = [_final_returns(job.run_dir) for job in jobs]
    environments = sorted({name for final in finals for name in final})
    table = Table(title="Jobs of the sweep")
    for column in ("job", "outcome"):
        table.add_column(column, overflow="fold")
    for name in environments:
        table.add_column(Text(name), justify="right", overflow="fold")
    table.add_column("run folder", overflow="fold")
    for job, final in zip(jobs, finals, strict=True):
        returns = [f"{final[name]:,.1f}" if name in final else "-" for name in environments]
        outcome = f"ended early (code {job.code})" if job.code else "finished"
        table.add_row(Text(job.name), outcome, *returns, Text(str(job.run_dir or "-")))
    return table


def _final_returns(run_dir: Path | None) -> dict[str, float]:
    rows = newest_stage(read_rows(run_dir / "meta_test.csv")) if run_dir is not None else []
    if run_dir is None or not rows:
        return {}
    own = LEARNED.name
    if all(row.method != own for row in rows):
        try:
            own = OmegaConf.select(load_config(run_dir / "config.yaml"), "callbacks.evaluation.method")
        except ConfigError:  # a table without a number is better than none
            return {}
    return mean_returns([row for row in final_rows(rows) if row.method == own])
