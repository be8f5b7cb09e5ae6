"""Log the progress of training: returns, losses, gradient norms, diagnostics, and speed."""

import time
from collections.abc import Sequence
from itertools import combinations
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
from metagenrl_pl.learning.diagnostics import MetaGradients, diagnose
from metagenrl_pl.training.datamodule import MacroBatch


class EpisodeReturns(pl.Callback):
    """Logs each agent's mean return of exploration episodes since the last line, and the newest losses and gradient norms.

    `mean/<environment>` is the mean of these returns over the agents of an environment.

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
            returns = gather_from_agents(trainer, agents_of(trainer).collector.take_returns())
            means = {index: float(np.mean(values)) for index, values in enumerate(returns) if values}
            metrics = {f"episode_return/{names[index]}": mean for index, mean in means.items()}
            of_environment: dict[str, list[float]] = {}
            for index, mean in means.items():
                of_environment.setdefault(agents_of(trainer).specs[index].name, []).append(mean)
            metrics |= {f"mean/{environment}": float(np.mean(values)) for environment, values in of_environment.items()}
            for metric, values in module_of(trainer).metrics.items():
                metrics |= {f"{metric}/{name}": float(value) for name, value in zip(names, values, strict=True)}
            log_metrics(trainer, metrics)


class Diagnostics(pl.Callback):
    """Logs what the losses do not tell, for each agent.

    - `agreement`: the cosine between the objective's action gradient and -dQ1/da, the critic's.
    - `saturation`: the share of the policy's action entries at the bounds, where tanh lets hardly any gradient through.
    - `meta_gradient_snr`: the norm of the mean meta-gradient over its spread between batches. Below 1, a single update is mostly
      noise. `meta_gradient_snr/all` is that of the gradient that the objective descends, the mean over agents.
    - `meta_gradient_cosine/<environment>`: the cosine between the expected meta-gradients of two agents of an environment, and
      `meta_gradient_cosine/across_environments` of two agents of different ones. Near 0, more agents do not make the ratio above better.

    Args:
        every_env_steps: env steps between two lines.
        num_windows: of each agent, for agreement and saturation; drawn with separate random streams, as all windows here.
        num_batches: for the signal-to-noise ratio, each with as many windows as a meta update.

    Raises:
        ValueError: if a number is not positive, or `num_batches` is below 2.
    """

    def __init__(self, every_env_steps: int, num_windows: int = 32, num_batches: int = 8) -> None:
        check_interval("every_env_steps", every_env_steps)
        check_interval("num_windows", num_windows)
        if num_batches < 2:
            raise ValueError(f"num_batches must be at least 2, got {num_batches}")
        self._every, self._num_windows, self._num_batches = every_env_steps, num_windows, num_batches

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: MacroBatch, batch_idx: int
    ) -> None:
        """Log after each interval, once updates have begun."""
        env_steps, agents = env_steps_of(trainer), agents_of(trainer)
        learner = agents.learner
        if not (is_due(self._every, env_steps, batch) and learner.num_updates):
            return
        streams = AgentStreams([derive_seed(agent, "agreement", env_steps) for agent in learner.placement.agents], "windows")
        found, meta_gradients = diagnose(
            learner, lambda num_windows: agents.collector.sample(num_windows, streams), self._num_windows, self._num_batches
        )
        metrics = {} if meta_gradients is None else self._of_all(meta_gradients, [spec.name for spec in agents.specs])
        for metric, values in found.items():
            every = learner.placement.gather(values)
            metrics |= {f"{metric}/{name}": float(value) for name, value in zip(agent_names(trainer), every, strict=True)}
        log_metrics(trainer, metrics)

    @staticmethod
    def _of_all(gradients: MetaGradients, names: Sequence[str]) -> dict[str, float]:
        """Metrics of the meta-gradients of all agents, given their environments."""
        groups: dict[str, list[tuple[int, int]]] = {}
        for i, j in combinations(range(len(names)), 2):
            groups.setdefault(names[i] if names[i] == names[j] else "across_environments", []).append((i, j))
        cosines = {f"meta_gradient_cosine/{group}": gradients.cosine(pairs) for group, pairs in groups.items()}
        return {"meta_gradient_snr/all": gradients.combined_snr, **cosines}


class Throughput(pl.Callback):
    """Logs env steps of all agents per second, and update cycles per second. Checkpoints and meta-tests between two lines count.

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
