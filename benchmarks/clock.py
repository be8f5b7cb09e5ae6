"""Clocks on the parts of an update cycle, in a loop of one's own and inside a Lightning run."""

import json
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.core.optimizer import LightningOptimizer

from measure import MatrixProduct, elapsed, wait
from metagenrl_pl.learning.cycle import Agents

ENVIRONMENTS, SAMPLING, CRITIC, POLICY, META = PARTS = (
    "environments and acting",
    "window sampling",
    "critic update",
    "policy update",
    "meta update",
)
REST, LOGGING, CHECKPOINTS, LIGHTNING = "targets, checks, rest", "logging and display", "checkpoints", "Lightning"

_HOOKS = ("on_train_batch_start", "on_train_batch_end")


class Clock:
    """Seconds by part. A part that runs inside another stops the outer one's clock, so that the parts add up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._running: list[str] = []
        self._since = 0.0

    def put_on(self, owner: object, method: str, part: str) -> None:
        """From now on this object's method is timed as a part of the cycle."""
        setattr(owner, method, self._timed(getattr(owner, method), part))

    def put_on_cycle(self, agents: Agents) -> None:
        """Time all that a cycle consists of."""
        self.put_on(agents.collector, "begin_step", ENVIRONMENTS)
        self.put_on(agents.collector, "end_step", ENVIRONMENTS)
        self.put_on(agents.collector, "draw", SAMPLING)
        self.put_on(agents.learner, "update_critics", CRITIC)
        self.put_on(agents.learner, "update_policies", POLICY)
        self.put_on(agents.learner, "update_objective", META)

    def take(self) -> dict[str, float]:
        """The seconds since the last call."""
        seconds, self.seconds = dict(self.seconds), defaultdict(float)
        return seconds

    def _timed(self, method: Callable[..., Any], part: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self._switch()
            self._running.append(part)
            try:
                return method(*arguments, **options)
            finally:
                self._switch()
                self._running.pop()

        return call

    def _switch(self) -> None:
        wait()
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now


class CycleClock(pl.Callback):
    """Times the parts of a run's cycles, in turns with a matrix product, and writes them to a JSON file when the run ends.

    The last callback of its run. A turn is some macro batches; each gives the seconds per cycle of every part, of the whole cycle, and
    the machine's FLOP per second meanwhile.

    Args:
        out: the file.
        cycles_per_turn: a multiple of the run's `updates_per_batch`.
        warmup_cycles: updates that are not measured.
    """

    def __init__(self, out: str, cycles_per_turn: int, warmup_cycles: int) -> None:
        self._out, self._cycles_per_turn, self._warmup_cycles = Path(out), cycles_per_turn, warmup_cycles
        self._clock, self._product = Clock(), MatrixProduct()
        self._turns: list[dict[str, float]] = []
        self._rates: list[float] = []  # FLOP per second of the machine, by batch
        self._whole, self._num_cycles = 0.0, 0
        self._since: float | None = None  # the start of a batch that is measured

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the clock on everything; from the last callback's start on all of it is there."""
        module: Any = pl_module
        self._clock.put_on_cycle(module.agents)
        self._clock.put_on(module, "training_step", REST)
        optimizers = module.optimizers()
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            if isinstance(optimizer, LightningOptimizer):  # what it does beside the optimizer's own step is Lightning's
                self._clock.put_on(optimizer, "step", LIGHTNING)
        self._clock.put_on(module.learner.critic_optimizer, "step", CRITIC)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            saves = type(callback).__module__ == "callbacks.checkpointing"
            for hook in _HOOKS if callback is not self else ():
                self._clock.put_on(callback, hook, CHECKPOINTS if saves else LOGGING)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """From one of these to the next Lightning does all that it does for a batch."""
        learner: Any = pl_module.learner
        if self._since is not None:
            self._whole += time.perf_counter() - self._since
            if self._num_cycles == self._cycles_per_turn:
                self._end_turn()
        if learner.num_updates >= self._warmup_cycles:
            if self._since is None:
                self._clock.take()
            self._num_cycles += len(batch)
            self._rates.append(self._product.flop / elapsed(self._product))
            self._since = time.perf_counter()

    def _end_turn(self) -> None:
        parts = self._clock.take()
        parts[LIGHTNING] = parts.get(LIGHTNING, 0.0) + self._whole - sum(parts.values())
        turn = {part: seconds / self._num_cycles for part, seconds in {**parts, "whole cycle": self._whole}.items()}
        self._turns.append({**turn, "flop per second": median(self._rates)})
        self._rates, self._whole, self._num_cycles = [], 0.0, 0

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the turns."""
        self._out.write_text(json.dumps(self._turns))
