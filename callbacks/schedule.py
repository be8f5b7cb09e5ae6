"""Helpers of the callbacks: when they act, access to the run's objects, and logging.

Intervals are in env steps. A callback acts after the macro batch that contains a multiple of its interval.
"""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import pytorch_lightning as pl

from callbacks.timeline import machine_pace
from metagenrl_pl.agents.population import AgentSettings
from metagenrl_pl.learning.compiling import estimated_seconds_per_cycle
from metagenrl_pl.learning.cycle import Agents
from metagenrl_pl.objectives import ParametricObjective
from metagenrl_pl.training.csv_logger import RunCSVLogger
from metagenrl_pl.training.datamodule import MacroBatch, ReplayDataModule
from metagenrl_pl.training.module import MetaGenRL


def check_interval(name: str, value: int | None, otherwise: str = "") -> None:
    """Raise a ValueError if `value` is neither positive nor None. `otherwise` is appended to the valid values in the message."""
    if value is not None and value < 1:
        raise ValueError(f"{name} must be at least 1{otherwise}, got {value}")


def is_due(interval: int | None, env_steps: int, batch: MacroBatch) -> bool:
    """Whether the macro batch that ended at `env_steps` contains a multiple of the interval."""
    return interval is not None and env_steps // interval > (env_steps - len(batch)) // interval


def datamodule_of(trainer: pl.Trainer) -> ReplayDataModule:
    """The run's datamodule with its type."""
    return cast(ReplayDataModule, trainer.datamodule)  # type: ignore[attr-defined]


def module_of(trainer: pl.Trainer) -> MetaGenRL:
    """The run's Lightning module with its type."""
    return cast(MetaGenRL, trainer.lightning_module)


def agents_of(trainer: pl.Trainer) -> Agents:
    """The agents of this process."""
    return module_of(trainer).agents


def env_steps_of(trainer: pl.Trainer) -> int:
    """Env steps that each agent has taken so far."""
    return agents_of(trainer).env_steps


def stage_of(trainer: pl.Trainer) -> int | None:
    """Env steps for which the run's objective was meta-trained: in this run, or according to its card. None if it cannot be."""
    objective = agents_of(trainer).objective
    if not isinstance(objective, ParametricObjective):
        return None
    return env_steps_of(trainer) if agents_of(trainer).learner.is_meta_training else int(objective.card.get("env_steps", 0))


def gather_from_agents(trainer: pl.Trainer, values: Sequence[Any]) -> list[Any]:
    """Gather one object for each agent of all processes, in global order. Every process has to call it."""
    return agents_of(trainer).placement.gather_list(list(values))


def is_last(trainer: pl.Trainer) -> bool:
    """Whether the run has taken all of its env steps."""
    return datamodule_of(trainer).env_steps_left <= 0


def agent_names(trainer: pl.Trainer) -> list[str]:
    """`<environment>/agent_<i>` for each agent of all processes, as used in metric names."""
    return [f"{spec.name}/agent_{i}" for i, spec in enumerate(agents_of(trainer).specs)]


def is_logged(trainer: pl.Trainer, metrics: Iterable[str]) -> bool:
    """Whether `metrics.csv` has all of these metrics at the current env steps. False if the run does not write one."""
    files = [logger for logger in trainer.loggers if isinstance(logger, RunCSVLogger)]
    return bool(files) and all(file.has(metrics, env_steps_of(trainer)) for file in files)


def log_metrics(trainer: pl.Trainer, metrics: dict[str, float], is_in_batch: bool = True) -> None:
    """Send metrics to all loggers, with the current env steps on the x axis, and to callbacks that monitor a metric.

    We call the loggers directly, since `self.log` would use batches on the x axis. Loggers write in the first process only.
    Callbacks read `trainer.callback_metrics`, which costs 0.3 ms per metric.

    Args:
        trainer: of the run.
        metrics: values by name.
        is_in_batch: whether this is called in a hook of a training batch. Lightning accepts metrics for callbacks only there.
    """
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=env_steps_of(trainer))
    if is_in_batch:
        module_of(trainer).log_dict(metrics, logger=False)


def seconds_per_cycle(settings: AgentSettings, num_agents: int, is_meta_training: bool) -> float:
    """Expected seconds of an eager update cycle on this machine."""
    return estimated_seconds_per_cycle(settings, num_agents, is_meta_training) * machine_pace()
