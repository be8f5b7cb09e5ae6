"""Weights & Biases and MLflow, whose run a resumed run continues: its id is kept in the run folder."""

import uuid
from argparse import Namespace
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import MLFlowLogger, WandbLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only

from metagenrl_pl.common.files import atomic_write

Settings = dict[str, Any] | Namespace


class RunWandbLogger(WandbLogger):
    """Lightning's logger for Weights & Biases (extra `wandb`).

    Args:
        run_dir: folder of the run; it keeps W&B's files, and the run's id in `wandb_run_id`.
        arguments: of `WandbLogger`.

    Raises:
        ModuleNotFoundError: names the extra.
    """

    def __init__(self, run_dir: str, **arguments: Any) -> None:
        _check_extra("wandb")
        self._id_file = Path(run_dir) / "wandb_run_id"
        super().__init__(save_dir=run_dir, id=_read(self._id_file) or uuid.uuid4().hex, resume="allow", **arguments)

    @rank_zero_only
    def log_hyperparams(self, params: Settings) -> None:
        super().log_hyperparams(params)
        _write(self._id_file, self.experiment.id)


class RunMLFlowLogger(MLFlowLogger):
    """Lightning's logger for MLflow (extra `mlflow`).

    Args:
        run_dir: folder of the run; it keeps the run's id in `mlflow_run_id`.
        tracking_uri: of a server or a database; by default an SQLite file in the run folder.
        arguments: of `MLFlowLogger`.

    Raises:
        ModuleNotFoundError: names the extra.
    """

    def __init__(self, run_dir: str, tracking_uri: str | None = None, **arguments: Any) -> None:
        _check_extra("mlflow")
        folder = Path(run_dir).absolute()
        self._id_file = folder / "mlflow_run_id"
        if tracking_uri is None:
            tracking_uri = f"sqlite:///{folder / 'mlflow.db'}"
            arguments.setdefault("artifact_location", (folder / "mlflow").as_uri())
        self._uri: str | None = tracking_uri
        # MLflow makes the database when it learns of it, but a run folder is made later, when all of the configuration is known to be good.
        super().__init__(tracking_uri="http://unused", run_id=_read(self._id_file), **arguments)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._uri is not None:
            from mlflow.tracking import MlflowClient

            self._tracking_uri, self._uri = self._uri, None
            self._mlflow_client = MlflowClient(self._tracking_uri)
        return super().experiment

    @rank_zero_only
    def log_hyperparams(self, params: Settings) -> None:
        """Log the settings that are new: MLflow does not let a resumed run change one."""
        known = self.experiment.get_run(self.run_id).data.params
        settings: Mapping[str, Any] = vars(params) if isinstance(params, Namespace) else params
        super().log_hyperparams({key: value for key, value in settings.items() if key not in known})
        _write(self._id_file, self.run_id)


def _check_extra(name: str) -> None:
    """Lightning's own error advises to install any version that it can use. This project's extras need newer ones."""
    if find_spec(name) is None:
        raise ModuleNotFoundError(f"{name} is not installed; pip install 'metagenrl-pl[{name}]'", name=name)


def _read(file: Path) -> str | None:
    return file.read_text().strip() or None if file.exists() else None


def _write(file: Path, run_id: str | None) -> None:
    with atomic_write(file) as out:
        out.write(str(run_id).encode())
