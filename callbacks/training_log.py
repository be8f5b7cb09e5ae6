"""Log the progress of training: returns, losses, gradient norms, agreement with the critic, and speed."""

import time
from typing import Any

import numpy as np
import pytorch_lightning as pl

from callbacks.schedule import (
    agent_names,
    agents_of,
    check_interval,
    env_steps_of,
    gather_from_agents,
    is_due,
    is_last,
    log_metrics,
    module_of,
)
from metagenrl_pl.common.streams import AgentStreams, derive_seed
from metagenrl_pl.training.datamodule import MacroBatch


class EpisodeReturns(pl.Callback):
    """Logs each agent's mean return of exploration episodes since the last line, and the newest losses and gradient norms.

    Args:
        every_env_steps: env steps between two lines.

    Raises:
        ValueError: if the interval is not positive.
    """

    def __init__(self, every_env_steps: int) -> None:
        check_interval("every_env_steps", every_env_steps)
        self._every = every_env_steps

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: MacroBatch, batch_idx: int
    ) -> None:
        """Log after each interval and at the end."""
        if is_due(self._every, env_steps_of(trainer), batch) or is_last(trainer):
            names = agent_names(trainer)
            returns = zip(names, gather_from_agents(trainer, agents_of(trainer).collector.take_returns()), strict=True)
            metrics = {f"episode_return/{name}": float(np.mean(values)) for name, values in returns if values}
            for metric, values in module_of(trainer).metrics.items():
                metrics |= {f"{metric}/{name}": float(value) for name, value in zip(names, values, strict=True)}
            log_metrics(trainer, metrics)


class ActionGradientAgreement(pl.Callback):
    """Logs the cosine between the objective's action gradient and -dQ1/da, the critic's, for each agent.

    Args:
        every_env_steps: env steps between two lines.
        num_windows: for each agent, drawn with separate random streams.

    Raises:
        ValueError: if a number is not positive.
    """

    def __init__(self, every_env_steps: int, num_windows: int = 32) -> None:
        check_interval("every_env_steps", every_env_steps)
        check_interval("num_windows", num_windows)
        self._every, self._num_windows = every_env_steps, num_windows

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: MacroBatch, batch_idx: int
    ) -> None:
        """Log after each interval, once updates have begun."""
        env_steps, learner = env_steps_of(trainer), agents_of(trainer).learner
        if not (is_due(self._every, env_steps, batch) and learner.num_updates):
            return
        seeds = [derive_seed(agent, "agreement", env_steps) for agent in learner.placement.agents]
        windows = agents_of(trainer).collector.sample(self._num_windows, AgentStreams(seeds, "windows"))
        cosines = learner.placement.gather(learner.agreement(windows))
        log_metrics(trainer, {f"agreement/{name}": float(c) for name, c in zip(agent_names(trainer), cosines, strict=True)})


class Throughput(pl.Callback):
    """Logs env steps of all agents per second, and update cycles per second.

    Args:
        every_env_steps: env steps between two lines.

    Raises:
        ValueError: if the interval is not positive.
    """

    def __init__(self, every_env_steps: int) -> None:
        check_interval("every_env_steps", every_env_steps)
        self._every = every_env_steps
        self._start = (0.0, 0, 0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = self._now(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: MacroBatch, batch_idx: int
    ) -> None:
        """Log after each interval."""
        if is_due(self._every, env_steps_of(trainer), batch):
            now = self._now(trainer)
            seconds, env_steps, updates = (a - b for a, b in zip(now, self._start, strict=True))
            self._start = now
            log_metrics(
                trainer,
                {
                    "throughput/agent_env_steps_per_second": env_steps * agents_of(trainer).placement.num_agents / seconds,
                    "throughput/update_cycles_per_second": updates / seconds,
                },
            )

    @staticmethod
    def _now(trainer: pl.Trainer) -> tuple[float, int, int]:
        return time.perf_counter(), env_steps_of(trainer), agents_of(trainer).learner.num_updates
