"""Results of meta-testing: the rows of `meta_test.csv`."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from metagenrl_pl.common.files import ForeignFileError, append_csv, read_cell, read_csv, write_csv
from metagenrl_pl.results.statistics import Interval, mean_interval

COLUMNS = ("environment", "method", "seed", "env_steps", "return", "meta_training_env_steps")
"""The header of `meta_test.csv`."""


class MetaTestRow(NamedTuple):
    """One evaluation of one fresh agent, a line of `meta_test.csv`.

    Args:
        environment: name of the environment.
        method: its name, see `metagenrl_pl.results.methods`.
        seed: of the fresh agent.
        env_steps: that the fresh agent had been trained for.
        episode_return: undiscounted, the mean over the evaluation's episodes. The column is called `return`.
        meta_training_env_steps: env steps per agent that the objective had been meta-trained for; 0 if untrained, None (an empty
            cell) for a method without a learned objective.
    """

    environment: str
    method: str
    seed: int
    env_steps: int
    episode_return: float
    meta_training_env_steps: int | None = None


def append_rows(path: Path, rows: Iterable[MetaTestRow]) -> None:
    """Append to `meta_test.csv`, made with its header if there is none. On return the rows are on the disk.

    Raises:
        ForeignFileError: the file has other columns.
    """
    if path.exists():
        _check_columns(path, read_csv(path)[0])
    append_csv(path, COLUMNS, (dict(zip(COLUMNS, row, strict=True)) for row in rows))


def mean_returns(rows: Iterable[MetaTestRow]) -> dict[str, float]:
    """Mean return over the rows of each environment."""
    returns: dict[str, list[float]] = {}
    for row in rows:
        returns.setdefault(row.environment, []).append(row.episode_return)
    return {environment: sum(values) / len(values) for environment, values in returns.items()}


def read_rows(path: Path) -> list[MetaTestRow]:
    """The rows of `meta_test.csv`; none if there is no file.

    A run that was killed between writing its rows and saving its checkpoint makes them again: of several rows that differ in
    their return alone, the last one counts.

    Raises:
        ForeignFileError: the file has other columns, or something else than numbers in them.
    """
    if not path.exists():
        return []
    columns, cells = read_csv(path)
    _check_columns(path, columns)
    stage = "meta_training_env_steps"
    rows = [
        MetaTestRow(
            environment=cell["environment"],
            method=cell["method"],
            seed=read_cell(path, number, cell, "seed", int),
            env_steps=read_cell(path, number, cell, "env_steps", int),
            episode_return=read_cell(path, number, cell, "return", float),
            meta_training_env_steps=read_cell(path, number, cell, stage, int) if cell[stage] else None,
        )
        for number, cell in enumerate(cells, 1)
    ]
    return list({row._replace(episode_return=0.0): row for row in rows}.values())


def drop_rows(path: Path, is_made_again: Callable[[MetaTestRow], bool]) -> None:
    """Drop the rows that a resumed run makes again. The file is replaced as a whole; nothing happens if there is none."""
    if path.exists():
        kept = [row for row in read_rows(path) if not is_made_again(row)]
        write_csv(path, COLUMNS, (dict(zip(COLUMNS, row, strict=True)) for row in kept))


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    if columns and tuple(columns) != COLUMNS:
        raise ForeignFileError(f"{path} has the columns {','.join(columns)}: valid are {','.join(COLUMNS)}")


def newest_stage(rows: Sequence[MetaTestRow]) -> list[MetaTestRow]:
    """The rows of each method's latest objective, that is those with the method's largest `meta_training_env_steps`."""
    newest: dict[str, int] = {}
    for row in rows:
        newest[row.method] = max(newest.get(row.method, 0), row.meta_training_env_steps or 0)
    return [row for row in rows if (row.meta_training_env_steps or 0) == newest[row.method]]


def final_rows(rows: Sequence[MetaTestRow]) -> list[MetaTestRow]:
    """The rows of each method's last evaluation in each environment."""
    last: dict[tuple[str, str], int] = {}
    for row in rows:
        last[row.environment, row.method] = max(last.get((row.environment, row.method), 0), row.env_steps)
    return [row for row in rows if row.env_steps == last[row.environment, row.method]]


def interval_over_agents(returns: Sequence[float]) -> Interval:
    """95 % interval of the mean return; all NaN if a return is not finite, as that of an agent that diverged may be."""
    return mean_interval(returns) if all(map(math.isfinite, returns)) else Interval(math.nan, math.nan, math.nan)
