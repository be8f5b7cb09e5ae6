"""Noise-free evaluation of the population's policies."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from callbacks.display import progress_of
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
    stage_of,
)
from metagenrl_pl.environments.environment import EnvironmentSpec
from metagenrl_pl.evaluation.evaluator import Evaluator
from metagenrl_pl.evaluation.fresh_agents import agent_numbers
from metagenrl_pl.evaluation.policies import save_policies
from metagenrl_pl.results.rows import MetaTestRow, append_rows, drop_rows, mean_returns
from metagenrl_pl.training.datamodule import MacroBatch


class PolicyEvaluation(pl.Callback):
    """Measures noise-free returns of the population's policies, at a fixed interval and at the end.

    Args:
        run_dir: the run's folder.
        every_env_steps: env steps between two evaluations.
        num_episodes: per evaluation and agent.
        method: the method's name in `meta_test.csv` if this run is itself a meta-test or a baseline; null writes no such file.

    Raises:
        ValueError: if a number is not positive.
    """

    def __init__(self, run_dir: str, every_env_steps: int, num_episodes: int = 10, method: str | None = None) -> None:
        check_interval("every_env_steps", every_env_steps)
        check_interval("num_episodes", num_episodes)
        self._path = Path(run_dir) / "meta_test.csv"
        self._every, self._num_episodes, self._method = every_env_steps, num_episodes, method
        self._evaluator: Evaluator | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After a resume, remove later returns, since they are measured again."""
        if trainer.is_global_zero and self._method is not None and (env_steps := env_steps_of(trainer)):
            own = {(spec.name, number) for spec, number in self._agents(trainer)}
            drop_rows(
                self._path,
                lambda row: (
                    row.method == self._method
                    and (row.environment, row.seed) in own
                    and row.meta_training_env_steps == stage_of(trainer)
                    and row.env_steps > env_steps
                ),
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: MacroBatch, batch_idx: int
    ) -> None:
        """Evaluate after each interval and at the end."""
        if not (is_due(self._every, env_steps_of(trainer), batch) or is_last(trainer)):
            return
        agents = agents_of(trainer)
        placement, population = agents.placement, agents.population
        if self._evaluator is None:
            specs, seeds = placement.local(agents.specs), placement.local(agents.seeds)
            self._evaluator = Evaluator(
                specs, seeds, self._num_episodes, agents.resources.make_group, population.observation_size
            )
        returns = gather_from_agents(trainer, self._evaluator(population.act).tolist())
        log_metrics(
            trainer, {f"evaluation_return/{name}": float(r) for name, r in zip(agent_names(trainer), returns, strict=True)}
        )
        if trainer.is_global_zero and self._method is not None:
            rows = [
                MetaTestRow(spec.name, self._method, number, env_steps_of(trainer), float(value), stage_of(trainer))
                for (spec, number), value in zip(self._agents(trainer), returns, strict=True)
            ]
            append_rows(self._path, rows)
            progress_of(trainer).show_returns(self._method, env_steps_of(trainer), mean_returns(rows))
        if self._method is not None and is_last(trainer):
            numbers = [number for _, number in self._agents(trainer)]
            save_policies(self._path.parent / "fresh_agents", self._method, population, agents.specs, numbers, placement)

    @staticmethod
    def _agents(trainer: pl.Trainer) -> list[tuple[EnvironmentSpec, int]]:
        """Environment and number of each agent of all processes."""
        specs = agents_of(trainer).specs
        return list(zip(specs, agent_numbers(specs, module_of(trainer).run_config.get("seed", 0)), strict=True))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Close the environments here too, since Lightning does not call `teardown` after an error."""
        self._close()

    def _close(self) -> None:
        if self._evaluator is not None:
            self._evaluator.close()
            self._evaluator = None
