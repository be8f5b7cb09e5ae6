"""How a run ends: done, stopped, or failed; with one line and an exit code that all processes agree on."""

import errno
import signal
import sys
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException

from metagenrl_pl.common.exit_codes import INTERRUPTED, MISTAKE, STOPPED
from metagenrl_pl.common.messages import choice_message, one_line
from metagenrl_pl.config.schema import ConfigError
from metagenrl_pl.environments.environment import EnvironmentFailure
from metagenrl_pl.training.checkpoint_io import CheckpointError, newest_checkpoint
from metagenrl_pl.training.datamodule import MacroBatch, ReplayDataModule
from metagenrl_pl.training.module import MetaGenRL
from metagenrl_pl.training.processes import reported_by_another


class FirstBatch(pl.Callback):
    """Knows whether training has begun; a callback may stop a run as soon as it is restored (a timer that has elapsed)."""

    def __init__(self) -> None:
        self.is_taken = False

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: MacroBatch, batch_idx: int) -> None:
        """It has."""
        self.is_taken = True


def fit(trainer: pl.Trainer, module: MetaGenRL, datamodule: ReplayDataModule, config: DictConfig) -> int:
    """Run it; all processes agree how it ends, and the first one tells. The exit code, after a stop that leaves a sweep to go on."""
    try:
        trainer.fit(module, datamodule, ckpt_path=config.ckpt_path)
    except (CheckpointError, MisconfigurationException, FloatingPointError) as error:
        if not trainer.is_global_zero:
            sys.exit(0)  # anything else and Lightning would kill the first process before it has told
        raise ConfigError(f"{error}{saved_before(config)}" if isinstance(error, FloatingPointError) else str(error)) from error
    except SIGTERMException:  # nobody listens to signals without callbacks.checkpoint
        sys.exit("error: told to stop; nothing is saved where callbacks.checkpoint=null" if trainer.is_global_zero else 0)
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            end_failed(trainer, error, config)
        if trainer.is_global_zero:  # Lightning's answer to KeyboardInterrupt: a signal that did not wait for the end of a batch
            if newest := newest_checkpoint(config.run_dir):
                print(f"Stopped at once. To go on: python train.py ckpt_path={newest}", flush=True)
            sys.exit(exit_code_after_stop(config))
        raise
    except Exception as error:
        end_failed(trainer, error, config)
    for message in unlogged_monitors(trainer, config):
        rank_zero_only(warnings.warn)(message)
    if not (trainer.should_stop and trainer.is_global_zero):
        return 0
    if stopped_before_it_began(trainer):
        raise ConfigError(stopper_message(config.callbacks))
    code = exit_code_after_stop(config)  # callbacks.checkpoint has saved and said how to go on
    if any(getattr(callback, "stopped_by_signal", False) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        sys.exit(code)  # a sweep, too
    return code


def stopped_before_it_began(trainer: pl.Trainer) -> bool:
    """Whether a callback has stopped a run that has taken no batch."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return trainer.should_stop and any(isinstance(callback, FirstBatch) and not callback.is_taken for callback in callbacks)


def stopper_message(callbacks: Mapping[str, Any]) -> str:
    """The line for a run that was stopped before its first batch: which callback is likely to have done it, and what is valid.

    Args:
        callbacks: the configuration's nodes by name.
    """
    targets = {f"callbacks.{name}": str(node["_target_"]) for name, node in callbacks.items() if node}
    timers = [name for name, target in targets.items() if target.endswith(".Timer")]
    likely = timers or [name for name, target in targets.items() if not target.startswith("callbacks.")] or list(targets)
    longer = f"a longer {timers[0]}.duration, or " if timers else ""
    return (
        f"{' or '.join(likely)} has stopped this run before its first batch, and would stop every resume, which restores what it has "
        f"counted; valid is {longer}{' or '.join(f'{name}=null' for name in likely)}"
    )


def unlogged_monitors(trainer: pl.Trainer, config: DictConfig) -> list[str]:
    """What callbacks have watched that nothing has logged, which Lightning does not tell in the middle of an epoch."""
    if not trainer.callback_metrics:  # no batch was taken: a resume at the run's end
        return []
    watched = {f"callbacks.{name}.monitor": node.get("monitor") for name, node in config.callbacks.items() if node}
    logged = trainer.callback_metrics
    return [choice_message(key, metric, logged) for key, metric in watched.items() if metric is not None and metric not in logged]


def end_failed(trainer: pl.Trainer, error: Exception | SystemExit, config: DictConfig) -> NoReturn:
    """End all processes after an error of this one, told in a line unless it is a bug; called while the error is handled."""
    is_told = reported_by_another(trainer)
    if trainer.strategy.launcher is not None:
        trainer.strategy.launcher.kill(signal.SIGKILL)  # the others may wait for this process
    if is_told:
        sys.exit(MISTAKE)
    if isinstance(error, EnvironmentFailure):
        raise ConfigError(f"{error}{saved_before(config)}") from error
    if isinstance(error, SystemExit):  # of an environment or a callback: nobody has asked the run to stop
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}, line {place.lineno}"
        raise ConfigError(f"sys.exit({error.code!r}) was called in the run ({where}){saved_before(config)}") from error
    if is_disk_full(error):
        raise ConfigError(f"run_dir={config.run_dir} cannot be written: {one_line(error)}{saved_before(config)}") from error
    raise error


def exit_code_after_stop(config: DictConfig) -> int:
    """The exit code that tells whether a run that was stopped can go on."""
    if newest_checkpoint(config.run_dir) is None:
        print("Stopped; nothing was saved yet", flush=True)
        return INTERRUPTED
    return STOPPED


def saved_before(config: DictConfig) -> str:
    """What is left of a run that a failure has ended."""
    newest = newest_checkpoint(config.run_dir)
    return f"; the newest checkpoint is {newest}, from before it" if newest else "; no checkpoint was saved before it"


def is_disk_full(error: Exception) -> bool:
    """Whether a file could not be written for want of room, whichever library tells it."""
    return (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or "No space left on device" in str(error)
