"""What loggers show of a run as a whole: its settings, and in TensorBoard its meta-test and its learning curves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

from callbacks.schedule import module_of
from metagenrl_pl.config.dotted_keys import flatten_settings
from metagenrl_pl.environments.environment import EnvironmentSpec
from metagenrl_pl.results.methods import LEARNED
from metagenrl_pl.results.rows import MetaTestRow, mean_returns, newest_stage, read_rows


class RunSummary(pl.Callback):
    """Gives loggers the run's settings when training starts; when the run ends, gives TensorBoard the meta-test and the picture.

    In TensorBoard, `meta_test_curves/<environment>/<method>` is the mean return of fresh agents against their env steps.

    Args:
        run_dir: the run's folder.
    """

    def __init__(self, run_dir: str) -> None:
        self._run_dir = Path(run_dir)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        settings = flatten_settings(module_of(trainer).run_config)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                if not trainer.is_global_zero:
                    continue  # the others have no file to write to
                # Without seeds, a test is of other methods than the learned objective.
                is_tested = settings.get("callbacks.meta_test.seeds")
                tested = settings.get("callbacks.meta_test.environments") or () if is_tested else ()
                names = [f"meta_test/{EnvironmentSpec.parse(entry).name}/{LEARNED.name}" for entry in tested]
                self._write_settings(logger, {key: _as_cell(value) for key, value in settings.items()}, names)
            else:
                logger.log_hyperparams(settings)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the meta-test and the picture in `teardown`, after `FinalReport` has drawn it."""
        rows, picture = newest_stage(read_rows(self._run_dir / "meta_test.csv")), self._run_dir / "learning_curves.png"
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                for (method, env_steps), returns in _means(rows).items():
                    for environment, value in returns.items():
                        logger.experiment.add_scalar(f"meta_test_curves/{environment}/{method}", value, env_steps)
                if picture.exists():
                    logger.experiment.add_image("learning_curves", iio.imread(picture), dataformats="HWC")

    @staticmethod
    def _write_settings(logger: TensorBoardLogger, settings: Mapping[str, str | float | bool], metrics: list[str]) -> None:
        """Write the HPARAMS tab. Lightning's own way would also write a first value of each metric."""
        for summary in hparams(dict(settings), dict.fromkeys(metrics, 0.0)):
            logger.experiment._get_file_writer().add_summary(summary)


def _as_cell(value: Any) -> str | float | bool:
    """A value that TensorBoard's table can show."""
    return value if isinstance(value, (bool, int, float)) else str(value)


def _means(rows: list[MetaTestRow]) -> dict[tuple[str, int], dict[str, float]]:
    """Method and env steps -> mean return in each environment."""
    groups: dict[tuple[str, int], list[MetaTestRow]] = {}
    for row in rows:
        groups.setdefault((row.method, row.env_steps), []).append(row)
    return {key: mean_returns(own) for key, own in groups.items()}
