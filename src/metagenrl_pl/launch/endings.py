"""How a run ends: finished, stopped or failed. All processes agree on one message and one exit code."""

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only

from metagenrl_pl.common.commands import resume_command
from metagenrl_pl.common.exit_codes import INTERRUPTED, MISTAKE, STOPPED
from metagenrl_pl.common.files import ForeignFileError, is_unwritable, why_unwritable
from metagenrl_pl.common.messages import choice_message, one_line
from metagenrl_pl.common.signals import end_at_once, install_handler, restore_handlers
from metagenrl_pl.config.schema import ConfigError
from metagenrl_pl.config.trust import confirmations
from metagenrl_pl.environments.failures import EnvironmentFailure
from metagenrl_pl.training.checkpoint_io import CheckpointError, newest_checkpoint
from metagenrl_pl.training.datamodule import MacroBatch, ReplayDataModule
from metagenrl_pl.training.module import MetaGenRL
from metagenrl_pl.training.processes import name_dead, reported_by_another


class FirstBatch(pl.Callback):
    """Records whether training has begun.

    A callback may stop a run before that, for example a restored timer that has elapsed.
    """

    def __init__(self) -> None:
        self.is_taken = False

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: MacroBatch, batch_idx: int) -> None:
        self.is_taken = True


def fit(trainer: pl.Trainer, module: MetaGenRL, datamodule: ReplayDataModule, config: DictConfig) -> int:
    """Train, and end the run in the same way in all processes. Only the first process prints.

    Returns:
        The exit code of a finished run, or of one that a callback stopped; in a sweep, the next jobs run.

    Raises:
        ConfigError: after a failure that is reported in one line.
        SystemExit: after a signal, which also ends a sweep, and in processes other than the first one after a failure.
    """
    try:
        with telling_of_exits(config), ending_before_it_begins(trainer, config):
            trainer.fit(module, datamodule, ckpt_path=config.ckpt_path)
    except (CheckpointError, MisconfigurationException, FloatingPointError) as error:
        if not trainer.is_global_zero:
            sys.exit(0)  # with another code Lightning would kill the first process before it has reported the error
        raise ConfigError(f"{error}{saved_before(config)}" if isinstance(error, FloatingPointError) else str(error)) from error
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            end_failed(trainer, error, config)
        if trainer.is_global_zero:  # Lightning exits after a KeyboardInterrupt, which a second signal raises within a batch
            line, code = outcome_of_stop(config)
            print(line, flush=True)
            sys.exit(code)
        raise
    except Exception as error:
        end_failed(trainer, error, config)
    for message in unlogged_monitors(trainer, config):
        rank_zero_only(warnings.warn)(message)
    if not (trainer.should_stop and trainer.is_global_zero):
        return 0
    if not has_begun(trainer):
        raise ConfigError(stopper_message(config.callbacks))
    line, code = outcome_of_stop(config)
    if code == INTERRUPTED:  # otherwise callbacks.checkpoint has printed how to resume
        print(line, flush=True)
    if any(getattr(callback, "stopped_by_signal", False) for callback in trainer.checkpoint_callbacks):
        sys.exit(code)  # a signal also ends a sweep
    return code


@contextmanager
def ending_before_it_begins(trainer: pl.Trainer, config: DictConfig) -> Iterator[None]:
    """A signal before the first batch ends this process at once; later ones raise a KeyboardInterrupt, unless they are handled.

    Of several processes only the first one prints a message. It ends the others, or is ended if one of them ends.
    """

    def outcome() -> tuple[str, int]:
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGKILL)  # otherwise they report that this one does not answer
        return outcome_of_stop(config) if trainer.is_global_zero else ("", INTERRUPTED)

    former = install_handler(end_at_once(outcome, partial(has_begun, trainer)))
    try:
        yield
    finally:
        restore_handlers(former)


def has_begun(trainer: pl.Trainer) -> bool:
    """Whether the run has taken a batch."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return any(isinstance(callback, FirstBatch) and callback.is_taken for callback in callbacks)


def stopper_message(callbacks: Mapping[str, Any]) -> str:
    """The message for a run that was stopped before its first batch. It names the callback that probably stopped it.

    Args:
        callbacks: nodes of the configuration by name.
    """
    targets = {f"callbacks.{name}": str(node["_target_"]) for name, node in callbacks.items() if node}
    timers = [name for name, target in targets.items() if target.endswith(".Timer")]
    likely = timers or [name for name, target in targets.items() if not target.startswith("callbacks.")] or list(targets)
    longer = f"a longer {timers[0]}.duration, or " if timers else ""
    return (
        f"{' or '.join(likely)} has stopped this run before its first batch, and would stop every resume, since its state is restored; "
        f"valid is {longer}{' or '.join(f'{name}=null' for name in likely)}"
    )


def unlogged_monitors(trainer: pl.Trainer, config: DictConfig) -> list[str]:
    """Messages for callbacks that monitor a metric that was never logged. Lightning does not report this within an epoch."""
    if not trainer.callback_metrics:  # no batch was trained: a resume at the end of the run
        return []
    monitors = {f"callbacks.{name}.monitor": node.get("monitor") for name, node in config.callbacks.items() if node}
    metrics = trainer.callback_metrics
    return [choice_message(key, name, metrics) for key, name in monitors.items() if name is not None and name not in metrics]


def end_failed(trainer: pl.Trainer, error: Exception | SystemExit, config: DictConfig) -> NoReturn:
    """End all processes after an error in this one. Call it in the `except` clause.

    Raises:
        ConfigError: with one line, if the environment, a file of results, the disk or an exit inside the run caused the error.
        SystemExit: if another process has already reported the error.
        Exception: `error` itself if it is a bug.
    """
    is_reported, dead = reported_by_another(trainer), name_dead(trainer)
    if trainer.strategy.launcher is not None:
        trainer.strategy.launcher.kill(signal.SIGKILL)  # the other processes may be waiting for this one
    if is_reported:
        sys.exit(MISTAKE)
    if dead is not None:
        raise ConfigError(f"{dead}{saved_before(config)}") from error
    if isinstance(error, EnvironmentFailure | ForeignFileError):
        raise ConfigError(f"{error}{saved_before(config)}") from error
    if isinstance(error, Exception) and is_restoring(error):
        raise ConfigError(
            f"ckpt_path={config.ckpt_path}: what it holds does not fit this run ({type(error).__name__}: {one_line(error)}); valid is a "
            "checkpoint that this version saved"
        ) from error
    if isinstance(error, SystemExit):  # a callback called sys.exit
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}, line {place.lineno}"
        raise ConfigError(f"sys.exit({error.code!r}) was called in the run ({where}){saved_before(config)}") from error
    if isinstance(error, Exception) and is_unwritable(error, Path(config.run_dir)):
        raise ConfigError(f"run_dir={config.run_dir} cannot be written: {why_unwritable(error)}{saved_before(config)}") from error
    raise error


def is_restoring(error: BaseException) -> bool:
    """Whether an error was raised while Lightning restored a checkpoint."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(Path(frame.filename).name == "checkpoint_connector.py" and "restore" in frame.name for frame in frames)


def outcome_of_stop(config: DictConfig) -> tuple[str, int]:
    """What a run that was stopped prints at its end, and its exit code: whether it can be resumed or has saved nothing."""
    newest = newest_checkpoint(config.run_dir)
    if newest is None:
        return "Stopped; nothing was saved yet", INTERRUPTED
    confirmed = confirmations(OmegaConf.to_container(config), Path(config.run_dir))
    return f"Stopped at once. To go on: {resume_command(newest, confirmed)}", STOPPED


def saved_before(config: DictConfig) -> str:
    """The end of a failure's message: which checkpoint is left."""
    newest = newest_checkpoint(config.run_dir)
    return f"; the newest checkpoint before it is {newest}" if newest else "; no checkpoint was saved before it"


@contextmanager
def telling_of_exits(config: DictConfig) -> Iterator[None]:
    """Report `os._exit` in the body, by which an environment or a library would end this process without a word."""
    own, end = os.getpid(), os._exit

    def report_and_end(code: int) -> NoReturn:
        if os.getpid() != own:  # a fork may end so
            end(code)
        place = traceback.extract_stack(limit=2)[0]
        where = f"{Path(place.filename).name}, line {place.lineno}"
        print(f"error: os._exit({code}) was called in the run ({where}){saved_before(config)}", file=sys.stderr, flush=True)
        end(MISTAKE)

    os._exit = report_and_end  # type: ignore[assignment]
    try:
        yield
    finally:
        os._exit = end
