"""A Lightning logger that survives a resume: `metrics.csv` in the run folder."""

import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from metagenrl_pl.common.files import append_csv, read_csv, write_csv

STEP_COLUMN = "env_steps"
"""The first column of `metrics.csv`: env steps per agent, the x axis of every plot."""


class RunCSVLogger(Logger):
    """Writes `<run_dir>/metrics.csv`: one line per call of `log_metrics`, the columns `env_steps` and then the metrics by name.

    An existing file is appended to, where Lightning's `CSVLogger` deletes it. A line is on the disk when `log_metrics` returns:
    calls are rare (one per interval, not per update), so nothing is buffered and a kill loses nothing. A metric that a line
    lacks is an empty cell; a metric never seen before extends the header, for which the file is replaced as a whole.
    Only rank 0 writes.

    Args:
        run_dir: folder of the run; made on the first write.
    """

    def __init__(self, run_dir: str | os.PathLike[str]) -> None:
        super().__init__()
        self._run_dir = Path(run_dir)
        self._columns: list[str] | None = None  # None: not compared with the file yet

    @property
    def path(self) -> Path:
        """Of `metrics.csv`."""
        return self._run_dir / "metrics.csv"

    @property
    def name(self) -> str:
        """Empty: the run folder alone identifies a run."""
        return ""

    @property
    def version(self) -> str:
        """Empty: the run folder alone identifies a run."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self._run_dir)

    @property
    def root_dir(self) -> str:
        """The run folder."""
        return str(self._run_dir)

    @property
    def log_dir(self) -> str:
        """The run folder."""
        return str(self._run_dir)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run folder holds the resolved config already."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write one line.

        Args:
            metrics: name -> number, or a tensor or array that holds one.
            step: env steps per agent.

        Raises:
            ValueError: `step` is missing, or `metrics.csv` is another program's.
        """
        if step is None:
            raise ValueError("step=None: log_metrics needs the number of env steps per agent")
        row = {STEP_COLUMN: step} | {name: value.item() if hasattr(value, "item") else value for name, value in metrics.items()}
        columns = self._read_columns()
        new = row.keys() - set(columns)
        if new:
            columns = [STEP_COLUMN, *sorted(({*columns} | new) - {STEP_COLUMN})]
            rows = read_csv(self.path)[1] if self.path.exists() else []
            write_csv(self.path, columns, [*rows, row])
            self._columns = columns
        else:
            append_csv(self.path, columns, [row])

    @rank_zero_only
    def keep_until(self, env_steps: int) -> None:
        """Drop the lines past `env_steps` env steps per agent, which a run resumed there is going to write again.

        Raises:
            ValueError: `metrics.csv` is another program's.
        """
        columns = self._read_columns()
        if columns:
            rows = [row for row in read_csv(self.path)[1] if int(row[STEP_COLUMN]) <= env_steps]
            write_csv(self.path, columns, rows)

    def _read_columns(self) -> list[str]:
        """The file's header, read once; empty if there is none yet."""
        if self._columns is None:
            columns = read_csv(self.path)[0] if self.path.exists() else []
            if columns and columns[0] != STEP_COLUMN:
                raise ValueError(f"{self.path} begins with the column {columns[0]!r}: valid is {STEP_COLUMN!r}")
            self._columns = columns
        return self._columns
