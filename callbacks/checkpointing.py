"""Write checkpoints to the run folder, the replay of the newest checkpoint, and the objective as a separate file."""

import shutil
import signal
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.utilities import rank_zero_only, rank_zero_warn

from callbacks.schedule import agents_of, check_interval, datamodule_of, env_steps_of, is_due, is_last, module_of
from metagenrl_pl.common.commands import resume_command
from metagenrl_pl.common.files import is_unwritable, why_unwritable
from metagenrl_pl.common.signals import ignore_in_command, install_handler, restore_handlers
from metagenrl_pl.config.trust import confirmations
from metagenrl_pl.objectives import ParametricObjective
from metagenrl_pl.results.origin import meta_training_settings
from metagenrl_pl.results.provenance import commit
from metagenrl_pl.training.checkpoint_io import folder_of, unused_replay_folder
from metagenrl_pl.training.datamodule import MacroBatch


class RunCheckpoint(Checkpoint):
    """Saves `<run_dir>/checkpoints/env_steps_<n>.ckpt` at a fixed interval, at the end of the run, and when the run is stopped.

    (Lightning's ModelCheckpoint would miss multiples of the interval that lie inside a macro batch.) After SIGINT (Ctrl-C), SIGTERM,
    SIGHUP or SIGUSR1 the run finishes its macro batch, saves and stops. A meta-test that is running is abandoned, and repeated when
    the run resumes. A second Ctrl-C stops at once; other signals may come twice. Another callback can save and stop the run by
    `trainer.should_stop = True`.

    Args:
        run_dir: the run's folder.
        every_env_steps: env steps between two checkpoints; null for a checkpoint at the end only.
        keep: number of newest checkpoints to keep; null keeps all.
        with_replay: whether to save the replay with the newest checkpoint. A resume without a replay fills a new one first.

    Raises:
        ValueError: if a number is not positive.
    """

    def __init__(self, run_dir: str, every_env_steps: int | None, keep: int | None = 2, with_replay: bool = True) -> None:
        check_interval("every_env_steps", every_env_steps, ", or null for the end only")
        check_interval("keep", keep, ", or null for all")
        self._folder = Path(run_dir) / "checkpoints"
        self._every, self._keep, self._with_replay = every_env_steps, keep, with_replay
        self.stop_requested = self._any_signal = self._is_complete = self._is_saved = self._is_interrupted = False
        self._former_handlers: dict[int, Any] = {}

    @property
    def stopped_by_signal(self) -> bool:
        """Whether a signal to any process has stopped the run."""
        return self.stop_requested or self._any_signal

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install signal handlers."""
        self._is_complete = is_last(trainer)  # a resume at the end of the run: only meta-tests are left
        self._former_handlers = install_handler(self._stop)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self._is_saved:  # the run is ending; a signal that came later does not change how
            return
        if self._is_interrupted and number != signal.SIGINT:  # it may come twice, also while the other process is waited for
            return
        if self._is_complete or (self.stop_requested and number == signal.SIGINT):
            self._is_interrupted = True
            raise KeyboardInterrupt
        self.stop_requested = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: MacroBatch, batch_idx: int
    ) -> None:
        """Save after each interval, at the end of the run, and when a signal or another callback stops the run."""
        # A signal may reach only one process, so all processes exchange their requests. Lightning calls checkpoint callbacks
        # last, so other callbacks (such as a timer) have already set `should_stop`.
        requests = agents_of(trainer).placement.gather_objects((self.stop_requested, trainer.should_stop))
        self._any_signal, stop = any(signal_here for signal_here, _ in requests), any(map(any, requests))
        if stop or is_due(self._every, env_steps_of(trainer), batch) or is_last(trainer):
            is_needed = stop or is_last(trainer) or agents_of(trainer).placement.world_size > 1  # the others would wait for ever
            try:
                path = self.save(trainer)
            except Exception as error:
                if is_needed or not is_unwritable(error, self._folder):
                    raise
                rank_zero_warn(
                    f"the checkpoint at {env_steps_of(trainer):,} env steps could not be written ({why_unwritable(error)})"
                )
                return
            self._is_complete = is_last(trainer)
            if stop:
                trainer.should_stop = True
                self._is_saved = self.stopped_by_signal
                command = resume_command(path, confirmations(module_of(trainer).run_config, folder_of(path)))
                rank_zero_only(print)(f"Stopping after {env_steps_of(trainer):,} env steps. To go on: {command}", flush=True)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._restore_handlers()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Restore the signal handlers here too, since Lightning does not call `teardown` after an error."""
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        restore_handlers(self._former_handlers)
        self._former_handlers = {}
        if self._is_saved or self._is_interrupted:
            ignore_in_command()

    def save(self, trainer: pl.Trainer) -> Path:
        """Save now.

        Every process has to call it. A kill at any moment leaves the older or the newer checkpoint with its whole replay.
        """
        path = self._folder / f"env_steps_{env_steps_of(trainer):09d}.ckpt"
        # 1. Every process writes the replay of its agents to a new folder. An older one of the same name may belong to the file that
        #    is there, if the run was stopped, resumed and stopped again without a step.
        folder = trainer.strategy.broadcast(unused_replay_folder(path))
        with datamodule_of(trainer).saving_replay(folder) if self._with_replay else nullcontext():
            trainer.strategy.barrier()
            # 2. When all have finished, replace the checkpoint atomically. It names the folder and the checksums of its files.
            trainer.save_checkpoint(path)
        # 3. Remove older files last. Until here, the previous checkpoint and its replay are still there.
        if trainer.is_global_zero:
            self._remove_older(path, folder)
        return path

    def _remove_older(self, path: Path, replay: Path) -> None:
        for folder in self._folder.glob("*.replay*"):
            if folder != replay:
                shutil.rmtree(folder)
        if self._keep is not None:
            others = [file for file in self._folder.glob("env_steps_*.ckpt") if file != path]  # a copied file's time may be any
            for old in sorted(others, key=lambda file: file.stat().st_mtime_ns, reverse=True)[self._keep - 1 :]:
                old.unlink()


def stop_requested(trainer: pl.Trainer) -> bool:
    """Whether a signal to this process has requested a stop."""
    return any(isinstance(callback, RunCheckpoint) and callback.stop_requested for callback in trainer.checkpoint_callbacks)


_OF_A_RUN = ("training_environments", "num_agents", "env_steps", "window_length", "seed", "commit")
"""What the card of an objective that was trained further says of each earlier run."""


class ObjectiveExport(pl.Callback):
    """Writes `<run_dir>/objective.safetensors` with its card at a fixed interval, with every checkpoint, and when the run ends or stops.

    A frozen objective is written once, with its original card. So the folder of a test shows which objective was tested.

    Args:
        run_dir: the run's folder.
        every_env_steps: env steps between two files; null for those with a checkpoint and at the end only.
        keep_stages: whether to keep each stage as `<run_dir>/objectives/env_steps_<n>.safetensors`, too.

    Raises:
        ValueError: if the interval is not positive.
    """

    def __init__(self, run_dir: str, every_env_steps: int | None = None, keep_stages: bool = False) -> None:
        check_interval("every_env_steps", every_env_steps, ", or null for those with a checkpoint and at the end only")
        self._run_dir, self._every, self._keep_stages = Path(run_dir), every_env_steps, keep_stages
        self._exported_at: int | None = None  # env steps of the newest file
        self._earlier: list[dict[str, Any]] | None = None  # unknown until a run begins or goes on

    def state_dict(self) -> dict[str, Any]:
        """How the objective was made before this run."""
        return {"earlier": self._earlier}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._earlier = state_dict["earlier"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write a frozen objective. Of one that is trained further, keep how it was made so far, and forget its scores."""
        learner = agents_of(trainer).learner
        if learner.is_meta_training and isinstance(learner.objective, ParametricObjective):
            card = learner.objective.card
            for former in ("scores", "made_by", "chosen_by"):
                card.pop(former, None)
            if self._earlier is None:
                self._earlier = list(card.get("earlier", ()))
                if "env_steps" in card:
                    self._earlier.append({key: card[key] for key in _OF_A_RUN if key in card})
        if trainer.is_global_zero and not learner.is_meta_training and isinstance(learner.objective, ParametricObjective):
            learner.objective.save(self._run_dir / "objective.safetensors")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: MacroBatch, batch_idx: int
    ) -> None:
        """Write a meta-learned objective after the interval and at the end. Only the last file has to be written."""
        if is_due(self._every, env_steps_of(trainer), batch) or is_last(trainer):
            try:
                self._export(trainer, self._keep_stages)
            except Exception as error:
                if is_last(trainer) or not is_unwritable(error, self._run_dir):
                    raise
                rank_zero_warn(
                    f"the objective at {env_steps_of(trainer):,} env steps could not be written ({why_unwritable(error)})"
                )

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write the objective of this checkpoint, whichever callback saves it."""
        self._export(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the objective of a run that was stopped without a checkpoint."""
        self._export(trainer)

    def _export(self, trainer: pl.Trainer, keep_stage: bool = False) -> None:
        learner, env_steps = agents_of(trainer).learner, env_steps_of(trainer)
        objective = learner.objective
        if not trainer.is_global_zero or not learner.is_meta_training or not isinstance(objective, ParametricObjective):
            return
        if not all(p.isfinite().all() for p in objective.parameters()):  # another callback may save a run that has diverged
            return
        card = {**self._card(trainer), **({"earlier": self._earlier} if self._earlier else {})}
        if self._exported_at != env_steps:
            objective.save(self._run_dir / "objective.safetensors", card)
            self._exported_at = env_steps
        if keep_stage:
            folder = self._run_dir / "objectives"
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
