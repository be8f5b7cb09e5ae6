"""Checkpoints in the run folder, with the replay beside the newest one, and the objective as a file of its own."""

import shutil
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.utilities import rank_zero_only

from callbacks.schedule import agents_of, check_interval, datamodule_of, env_steps_of, is_due, is_last, module_of
from metagenrl_pl.objectives import ParametricObjective
from metagenrl_pl.results.origin import meta_training_settings
from metagenrl_pl.results.provenance import commit
from metagenrl_pl.training.checkpoint_io import replay_folder
from metagenrl_pl.training.csv_logger import RunCSVLogger
from metagenrl_pl.training.datamodule import MacroBatch


class RunCheckpoint(Checkpoint):
    """Saves `<run_dir>/checkpoints/env_steps_<n>.ckpt` every so many env steps, at the end, and when the run is told to stop.

    Lightning's ModelCheckpoint misses multiples that a macro batch jumps over. SIGINT (Ctrl-C) and SIGTERM (a cluster that wants its
    machine back) let the macro batch end, then save and stop; a meta-test that is under way is given up, and made when the run goes on.
    A second signal stops at once. Other callbacks stop a run, saved, by `trainer.should_stop = True`.

    Args:
        run_dir: the run's folder.
        every_env_steps: between two checkpoints; null for the end only.
        keep: newest checkpoints that stay; null for all.
        with_replay: whether the replay is kept beside the newest checkpoint. A resume without it fills up a new one first.

    Raises:
        ValueError: if a number is not positive.
    """

    def __init__(self, run_dir: str, every_env_steps: int | None, keep: int | None = 2, with_replay: bool = True) -> None:
        check_interval("every_env_steps", every_env_steps, ", or null for the end only")
        check_interval("keep", keep, ", or null for all")
        self._folder = Path(run_dir) / "checkpoints"
        self._every, self._keep, self._with_replay = every_env_steps, keep, with_replay
        self.stop_requested = self._signalled = self._is_complete = False
        self._former_handlers: dict[int, Any] = {}

    @property
    def stopped_by_signal(self) -> bool:
        """Whether a signal, in whichever process it arrived, has stopped the run, and not another callback alone."""
        return self.stop_requested or self._signalled

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen to signals. After a resume drop metrics that come after the checkpoint, which are logged again."""
        self._is_complete = is_last(trainer)  # resumed at its end: only tests are left
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers

            def stop(number: int, frame: FrameType | None) -> None:
                if self.stop_requested or self._is_complete:
                    raise KeyboardInterrupt
                self.stop_requested = True

            self._former_handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        if env_steps := env_steps_of(trainer):
            for logger in trainer.loggers:
                if isinstance(logger, RunCSVLogger):
                    logger.keep_until(env_steps)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: MacroBatch, batch_idx: int
    ) -> None:
        """Save when the interval is crossed, at the end of the run and when told to stop, also by another callback (a timer)."""
        # A signal may reach one process alone. Lightning calls checkpoints last, after whoever else may stop the run.
        requests = agents_of(trainer).placement.gather_objects((self.stop_requested, trainer.should_stop))
        self._signalled, stop = any(signalled for signalled, _ in requests), any(map(any, requests))
        if stop or is_due(self._every, env_steps_of(trainer), batch) or is_last(trainer):
            path = self.save(trainer)
            self._is_complete = is_last(trainer)
            if stop:
                trainer.should_stop = True
                rank_zero_only(print)(
                    f"Stopping after {env_steps_of(trainer):,} env steps. To go on: python train.py ckpt_path={path}", flush=True
                )

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give signals back to whoever had them."""
        self._give_signals_back()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give signals back after an error, too: there is no teardown then."""
        self._give_signals_back()

    def _give_signals_back(self) -> None:
        for number, handler in self._former_handlers.items():
            signal.signal(number, handler)
        self._former_handlers = {}

    def save(self, trainer: pl.Trainer) -> Path:
        """Save now: first the replay, then the checkpoint, then remove what is older. Every process has to call it."""
        path = self._folder / f"env_steps_{env_steps_of(trainer):09d}.ckpt"
        if self._with_replay:
            unfinished = replay_folder(path).with_suffix(".replay.tmp")
            if trainer.is_global_zero:
                for folder in (unfinished, replay_folder(path)):
                    shutil.rmtree(folder, ignore_errors=True)
            trainer.strategy.barrier()
            datamodule_of(trainer).save_replay(unfinished)
            trainer.strategy.barrier()
            if trainer.is_global_zero:
                unfinished.rename(replay_folder(path))
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            self._remove_older(path)
        return path

    def _remove_older(self, path: Path) -> None:
        for folder in self._folder.glob("*.replay*"):
            if folder != replay_folder(path):
                shutil.rmtree(folder)
        if self._keep is not None:
            newest_last = sorted(self._folder.glob("env_steps_*.ckpt"), key=lambda file: file.stat().st_mtime_ns)
            for old in newest_last[: -self._keep]:
                old.unlink()


def stop_requested(trainer: pl.Trainer) -> bool:
    """Whether a signal has asked this process to stop."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return any(isinstance(callback, RunCheckpoint) and callback.stop_requested for callback in callbacks)


class ObjectiveExport(pl.Callback):
    """Writes `<run_dir>/objective.safetensors` with its card every so many env steps and at the end.

    One that is not learned further is written once, with the card that it came with, so that the folder of a test tells what was tested.

    Args:
        run_dir: the run's folder.
        every_env_steps: between two files; null for the end only.
        keep_stages: whether each is also kept as `<run_dir>/objectives/env_steps_<n>.safetensors`.

    Raises:
        ValueError: if the interval is not positive.
    """

    def __init__(self, run_dir: str, every_env_steps: int | None = None, keep_stages: bool = False) -> None:
        check_interval("every_env_steps", every_env_steps)
        self._run_dir, self._every, self._keep_stages = Path(run_dir), every_env_steps, keep_stages

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write an objective that stays what it is."""
        learner = agents_of(trainer).learner
        if trainer.is_global_zero and learner.meta is None and isinstance(learner.objective, ParametricObjective):
            learner.objective.save(self._run_dir / "objective.safetensors")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: MacroBatch, batch_idx: int
    ) -> None:
        """Write when the interval is crossed and at the end, if the objective is being learned."""
        learner, env_steps = agents_of(trainer).learner, env_steps_of(trainer)
        objective = learner.objective
        if learner.meta is None or not isinstance(objective, ParametricObjective):
            return
        if trainer.is_global_zero and (is_due(self._every, env_steps, batch) or is_last(trainer)):
            card = self._card(trainer)
            objective.save(self._run_dir / "objective.safetensors", card)
            if self._keep_stages:
                folder = self._run_dir / "objectives"
                folder.mkdir(exist_ok=True)
                objective.save(folder / f"env_steps_{env_steps:09d}.safetensors", card)

    @staticmethod
    def _card(trainer: pl.Trainer) -> Mapping[str, Any]:
        environments = [spec.name for spec in agents_of(trainer).specs]
        config = module_of(trainer).run_config
        return {
            "training_environments": sorted(set(environments)),
            "num_agents": len(environments),
            "env_steps": env_steps_of(trainer),
            "window_length": agents_of(trainer).settings.window_length,
            "seed": config.get("seed"),
            "commit": commit(),
            "settings": meta_training_settings(config),
        }
