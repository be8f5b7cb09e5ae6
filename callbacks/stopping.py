"""A run that a callback stops before its first batch: what the callback has counted is restored, so no resume would get further."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl

from metagenrl_pl.training.datamodule import MacroBatch


class FirstBatch(pl.Callback):
    """Knows whether training has begun; a callback may stop a run as soon as it is restored (a timer that has elapsed)."""

    def __init__(self) -> None:
        self.is_taken = False

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: MacroBatch, batch_idx: int) -> None:
        """It has."""
        self.is_taken = True


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
