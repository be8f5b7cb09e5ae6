"""A Lightning logger for `metrics.csv` in the run folder, which a resumed run continues."""

import os
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from metagenrl_pl.common.files import append_csv, read_csv, write_csv
from metagenrl_pl.results.training_curves import STEP_COLUMN, read_metrics


class RunCSVLogger(Logger):
    """Writes `<run_dir>/metrics.csv`: one line per call of `log_metrics`.

    The columns are `env_steps` and then the metrics by name.

    It appends to an existing file, which Lightning's `CSVLogger` would delete. Calls are rare (one per interval, not per update),
    so each line is written to the disk at once and a kill loses nothing. A missing metric is an empty cell. A new metric adds a
    column, for which the whole file is replaced. Only rank 0 writes.

    Args:
        run_dir: folder of the run; made on the first write.
    """

    def __init__(self, run_dir: str | os.PathLike[str]) -> None:
        super().__init__()
        self._run_dir = Path(run_dir)
        self._columns: list[str] | None = None  # None until they have been read from the file

    @property
    def path(self) -> Path:
        """The path of `metrics.csv`."""
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
        return str(self._run_dir)

    @property
    def root_dir(self) -> str:
        return str(self._run_dir)

    @property
    def log_dir(self) -> str:
        return str(self._run_dir)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run folder already has the resolved config."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write one line.

        Args:
            metrics: name -> number, or a tensor or array with a single number.
            step: env steps per agent.

        Raises:
            ValueError: `step` is missing.
            ForeignFileError: another program wrote `metrics.csv`.
        """
        if step is None:
            raise ValueError("step=None: log_metrics needs the number of env steps per agent")
        row = {STEP_COLUMN: step} | {name: value.item() if hasattr(value, "item") else value for name, value in metrics.items()}
        columns = self._read_columns()
        new_columns = row.keys() - set(columns)
        if new_columns:
            columns = [STEP_COLUMN, *sorted(({*columns} | new_columns) - {STEP_COLUMN})]
            rows = read_csv(self.path)[1] if self.path.exists() else []
            write_csv(self.path, columns, [*rows, row])
            self._columns = columns
        else:
            append_csv(self.path, columns, [row])

    def has(self, metrics: Iterable[str], step: int) -> bool:
        """Whether every one of these metrics has a value in some line of `step`."""
        rows = read_csv(self.path)[1] if self.path.exists() else []
        found = {name for row in rows if row.get(STEP_COLUMN) == str(step) for name, cell in row.items() if cell}
        return found.issuperset(metrics)

    @rank_zero_only
    def keep_until(self, env_steps: int) -> None:
        """Remove the lines after `env_steps` env steps per agent. A run that resumes there writes them again.

        Raises:
            ForeignFileError: another program wrote `metrics.csv`.
        """
        columns = self._read_columns()
        if columns:
            write_csv(self.path, columns, [row for row in read_metrics(self.path)[1] if int(row[STEP_COLUMN]) <= env_steps])

    def _read_columns(self) -> list[str]:
        """The header of the file, which is read once. Empty if there is no file yet."""
        if self._columns is None:
            self._columns = read_metrics(self.path)[0] if self.path.exists() else []
        return self._columns
