"""When callbacks act: intervals in env steps, which trigger when they are crossed, since a macro batch may jump over a multiple."""

from collections.abc import Sequence
from typing import Any, cast

import pytorch_lightning as pl

from metagenrl_pl.learning.cycle import Agents
from metagenrl_pl.training.datamodule import MacroBatch, ReplayDataModule
from metagenrl_pl.training.module import MetaGenRL


def check_interval(name: str, value: int | None, otherwise: str = ", or null for never") -> None:
    """Raise ValueError, naming the key and saying what else is valid, unless a number is positive or None."""
    if value is not None and value < 1:
        raise ValueError(f"{name} must be at least 1{otherwise}, got {value}")


def is_due(interval: int | None, env_steps: int, batch: MacroBatch) -> bool:
    """Whether a multiple of the interval lies in the macro batch that ended at `env_steps`."""
    return interval is not None and env_steps // interval > (env_steps - len(batch)) // interval


def datamodule_of(trainer: pl.Trainer) -> ReplayDataModule:
    """The run's datamodule."""
    return cast(ReplayDataModule, trainer.datamodule)  # type: ignore[attr-defined]


def module_of(trainer: pl.Trainer) -> MetaGenRL:
    """The run's module."""
    return cast(MetaGenRL, trainer.lightning_module)


def agents_of(trainer: pl.Trainer) -> Agents:
    """The run's agents, those of this process."""
    return module_of(trainer).agents


def env_steps_of(trainer: pl.Trainer) -> int:
    """Env steps that each agent has taken."""
    return agents_of(trainer).env_steps


def gather_from_agents(trainer: pl.Trainer, values: Sequence[Any]) -> list[Any]:
    """One object for each agent of this process -> one for each agent of all; every process has to call it."""
    return agents_of(trainer).placement.gather_list(list(values))


def is_last(trainer: pl.Trainer) -> bool:
    """Whether the run has reached its length."""
    return datamodule_of(trainer).env_steps_left <= 0


def agent_names(trainer: pl.Trainer) -> list[str]:
    """`<environment>/agent_<i>` of each agent, also those of other processes, as used in metric names."""
    return [f"{spec.name}/agent_{i}" for i, spec in enumerate(agents_of(trainer).specs)]


def log_metrics(trainer: pl.Trainer, metrics: dict[str, float], is_in_batch: bool = True) -> None:
    """Give metrics to all loggers at the current env steps, and to callbacks that watch one (`trainer.callback_metrics`).

    Loggers get them directly, since `self.log` would count batches on their x axis. Of several processes the first one writes: loggers
    see to that themselves. Watching costs 0.3 ms a metric.

    Args:
        trainer: the run's.
        metrics: by name.
        is_in_batch: whether a batch of training begins or ends; Lightning lets nothing be watched after the last one.
    """
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=env_steps_of(trainer))
    if is_in_batch:
        module_of(trainer).log_dict(metrics, logger=False)
