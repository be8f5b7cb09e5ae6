"""Meta-tests during and after meta-training, and noise-free evaluation of the population's policies."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_warn

from callbacks.checkpointing import stop_requested
from callbacks.display import progress_of
from callbacks.schedule import (
    agent_names,
    agents_of,
    check_interval,
    env_steps_of,
    gather_from_agents,
    is_due,
    is_last,
    is_logged,
    log_metrics,
    module_of,
)
from metagenrl_pl.common.messages import one_line
from metagenrl_pl.common.streams import derive_seed
from metagenrl_pl.config.schema import ConfigError
from metagenrl_pl.environments.environment import Environment, EnvironmentSpec
from metagenrl_pl.environments.group import sizes_of
from metagenrl_pl.evaluation.background import BackgroundTests, can_run_in_background
from metagenrl_pl.evaluation.evaluator import Evaluator
from metagenrl_pl.evaluation.fresh_agents import (
    MetaTestPlan,
    MetaTestStopped,
    agent_numbers,
    fresh_seeds,
    meta_test,
    random_returns,
)
from metagenrl_pl.experience.replay import check_memory, memory_bytes
from metagenrl_pl.objectives import Objective, ParametricObjective
from metagenrl_pl.objectives.contract import check_loss
from metagenrl_pl.results.methods import METHODS, check_method, find_method
from metagenrl_pl.results.rows import MetaTestRow, append_rows, drop_rows, read_rows
from metagenrl_pl.training.datamodule import MacroBatch

Tested = Objective | Mapping[int, Objective]
"""What `meta_test` takes: an objective, or one for each seed."""

_BUILT_IN = [name for name, method in METHODS.items() if method.is_built_in]
"""Methods that a meta-test tests by itself. No baseline may have their names."""


class MetaTest(pl.Callback):
    """Trains fresh agents with the frozen objective, at a fixed interval of meta-training and at its end.

    It also tests, once, an untrained objective, hand-made objectives and random actions, for comparison. Where a second core is free,
    another process makes these tests while meta-training goes on. Meta-tests use their own random streams, so they do not affect
    training. A signal during meta-training ends a meta-test early. It is repeated first when the run resumes.

    Args:
        run_dir: the run's folder; results are appended to its `meta_test.csv`.
        environments: in which fresh agents are trained: ids or mappings, as in `env.test`. Empty for no meta-test.
        seeds: of the fresh agents in each environment.
        env_steps: of each fresh agent.
        evaluate_every_env_steps: env steps of the fresh agents between two noise-free evaluations.
        num_episodes: per evaluation.
        every_env_steps: env steps of meta-training between two meta-tests; null for one at the end only.
        untrained: whether to test the objective's architecture with untrained weights, too.
        random: whether to test random actions, too.
        baselines: objectives by the name of their method; null switches one off.

    Raises:
        ValueError: if a number is not positive, there is no seed, seeds or environments repeat, or an environment or a baseline
            is not usable.
    """

    def __init__(
        self,
        run_dir: str,
        environments: Sequence[str | Mapping[str, Any]],
        seeds: Sequence[int],
        env_steps: int,
        evaluate_every_env_steps: int,
        num_episodes: int = 10,
        every_env_steps: int | None = None,
        untrained: bool = True,
        random: bool = True,
        baselines: Mapping[str, Objective | None] | None = None,
    ) -> None:
        for name, value in (
            ("env_steps", env_steps),
            ("evaluate_every_env_steps", evaluate_every_env_steps),
            ("num_episodes", num_episodes),
        ):
            check_interval(name, value, "")
        check_interval("every_env_steps", every_env_steps)
        if not seeds:
            raise ValueError("seeds must name at least one seed, got []")
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds must differ, got {list(seeds)}")
        for method, baseline in (baselines or {}).items():
            _check_baseline(method, baseline)
        self._path = Path(run_dir) / "meta_test.csv"
        self._specs = [EnvironmentSpec.parse(entry) for entry in environments]
        names = [spec.name for spec in self._specs]
        if len(set(names)) < len(names):
            raise ValueError(f"environments must differ, got {', '.join(names)}")
        for spec in self._specs:  # report an unusable environment now, not after hours of training
            Environment(spec).close()
        self._seeds, self._env_steps, self._evaluate_every = list(seeds), env_steps, evaluate_every_env_steps
        self._num_episodes, self._every = num_episodes, every_env_steps
        self._untrained, self._random = untrained, random
        self._baselines = {method: baseline for method, baseline in (baselines or {}).items() if baseline is not None}
        self._is_given_up = False
        self._background: BackgroundTests | None = None
        self._report_background: Callable[[int], None] = lambda env_steps: None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check now that the fresh agents' replay fits into memory together with the training's.

        Raises:
            ConfigError: names the needed and the available memory.
        """
        resources, plan = agents_of(trainer).resources, self._plan(trainer)
        specs, _, seeds = fresh_seeds(self._specs, self._seeds)
        sizes = resources.placement(len(seeds)).local(sizes_of(specs)) if seeds else []
        needed = memory_bytes(sizes, plan.replay_capacity(resources.replay_capacity))
        device = agents_of(trainer).replay.device
        if device.type == "cpu":  # compared with physical memory, so add the training's replay; a GPU reports its free memory
            num_processes = getattr(trainer.strategy, "num_processes", 1)  # on this machine, which share its memory
            num_tests = 2 if can_run_in_background(resources, self._num_comparison_steps(trainer)) else 1  # at a time
            needed = num_processes * (num_tests * needed + agents_of(trainer).replay.num_bytes)
        try:
            check_memory(needed, device)
        except ValueError as error:
            raise ConfigError(f"callbacks.meta_test.env_steps={self._env_steps}: {error}") from error

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin the tests that do not depend on meta-training. After a resume, remove the results of later objectives first."""
        if trainer.is_global_zero and agents_of(trainer).learner.is_meta_training and (env_steps := env_steps_of(trainer)):
            drop_rows(self._path, lambda row: row.method == "learned" and (row.meta_training_env_steps or 0) > env_steps)
        tests = {
            method: objective
            for method, objective, stage in self._comparisons(trainer)
            if not self._is_done(method, self._env_steps, stage)
        }
        resources = agents_of(trainer).resources
        if self._specs and can_run_in_background(resources, len(tests) * self._env_steps):
            self._background = BackgroundTests(tests, self._plan(trainer), resources)
            with progress_of(trainer).task("meta-tests beside it", self._background.num_env_steps) as self._report_background:
                pass  # the bar stays

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: MacroBatch, batch_idx: int) -> None:
        """After a resume, repeat the meta-test that was given up. At this hook all signal handlers are installed."""
        if self._is_given_up:
            self._test_so_far(trainer)
        if self._is_given_up:  # given up again: do not train, so that the objective is still the one to test
            batch.skip()

    def state_dict(self) -> dict[str, Any]:
        """Whether the meta-test of the current objective was given up and has to be repeated."""
        return {"is_given_up": self._is_given_up}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._is_given_up = state_dict["is_given_up"]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: MacroBatch, batch_idx: int
    ) -> None:
        """Test the objective after each interval."""
        if self._background is not None:
            self._report_background(self._background.env_steps)
        if is_due(self._every, env_steps_of(trainer), batch) and not is_last(trainer):
            self._test_so_far(trainer)

    def _test_so_far(self, trainer: pl.Trainer) -> None:
        """Test the objective in the middle of meta-training; a signal ends the test early."""
        objective = agents_of(trainer).objective
        if not isinstance(objective, ParametricObjective):
            return
        try:
            self._test(trainer, "learned", objective, _stage(trainer, objective), lambda: stop_requested(trainer))
            self._is_given_up = False
        except MetaTestStopped:
            self._is_given_up = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Test the final objective and the methods that it is compared with."""
        if not is_last(trainer) or trainer.should_stop or not self._specs:
            return
        objective = agents_of(trainer).objective
        learned = [("learned", objective, _stage(trainer, objective))] if isinstance(objective, ParametricObjective) else []
        for method, test_objective, stage in [*learned, *self._comparisons(trainer)]:
            self._test(trainer, method, test_objective, stage)
        if trainer.is_global_zero and self._random and not self._is_done("random", 0, None):
            append_rows(self._path, random_returns(self._specs, self._seeds, self._num_episodes))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._background is not None:
            self._background.close()
            self._background = None

    def _comparisons(self, trainer: pl.Trainer) -> list[tuple[str, Tested, int | None]]:
        """Method, objective and stage of the tests that do not depend on meta-training. Every seed has its own untrained objective."""
        objective = agents_of(trainer).objective
        tests: list[tuple[str, Tested, int | None]] = []
        if isinstance(objective, ParametricObjective) and self._untrained:
            make = partial(type(objective), **objective.architecture)
            fresh = {seed: make(seed=derive_seed(seed, "untrained objective")) for seed in self._seeds}
            tests.append(("untrained", fresh, 0))
        return tests + [(method, baseline, None) for method, baseline in self._baselines.items()]

    def _num_comparison_steps(self, trainer: pl.Trainer) -> int:
        return len(self._comparisons(trainer)) * self._env_steps

    def _plan(self, trainer: pl.Trainer) -> MetaTestPlan:
        agent = agents_of(trainer).settings
        return MetaTestPlan(self._specs, self._seeds, agent, self._env_steps, self._evaluate_every, self._num_episodes)

    def _is_done(self, method: str, env_steps: int, stage: int | None) -> bool:
        """Whether all results of a method are in the file. A run that was stopped between two tests continues with the others."""
        done = {row[:4] for row in read_rows(self._path) if row.meta_training_env_steps == stage}
        return all((spec.name, method, seed, env_steps) in done for spec in self._specs for seed in self._seeds)

    def _test(
        self,
        trainer: pl.Trainer,
        method: str,
        objective: Tested,
        stage: int | None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Test an objective, write its results and log them, each unless an earlier run of this folder has done it."""
        if not self._specs:
            return
        if not trainer.strategy.broadcast(self._is_done(method, self._env_steps, stage)):
            rows = self._wait_for(method)
            if rows is None:
                with progress_of(trainer).task(f"meta-test, {find_method(method).label}", self._env_steps) as report:
                    rows = meta_test(method, objective, self._plan(trainer), agents_of(trainer).resources, report, should_stop)
            if trainer.is_global_zero:
                append_rows(self._path, [row._replace(meta_training_env_steps=stage) for row in rows])
        # A run may have been stopped here, after writing and before logging.
        metrics = trainer.strategy.broadcast(self._final_returns(method, stage) if trainer.is_global_zero else {})
        if not trainer.strategy.broadcast(is_logged(trainer, metrics)):
            log_metrics(trainer, metrics, is_in_batch=not is_last(trainer))

    def _final_returns(self, method: str, stage: int | None) -> dict[str, float]:
        """The final return in each environment, the mean over seeds, as named in `metrics.csv`."""
        rows = [row for row in read_rows(self._path) if row.method == method and row.meta_training_env_steps == stage]
        final = {(row.environment, row.seed): row.episode_return for row in rows if row.env_steps == self._env_steps}
        return {
            f"meta_test/{spec.name}/{method}": sum(final[spec.name, seed] for seed in self._seeds) / len(self._seeds)
            for spec in self._specs
        }

    def _wait_for(self, method: str) -> list[MetaTestRow] | None:
        """The results of a test in the other process; None if there is none."""
        if self._background is None or method not in self._background:
            return None
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    return self._background.result(method, seconds=0.2)
                self._report_background(self._background.env_steps)
        except BrokenProcessPool:
            rank_zero_warn("The process that made meta-tests has died; this one makes them again.")
            self._close()
            return None


def _check_baseline(method: str, baseline: Objective | None) -> None:
    """Reject a baseline that has the name of another method or a loss that cannot train policies.

    Raises:
        ValueError: names its key below `callbacks.meta_test`, and what is valid.
    """
    if method in _BUILT_IN:
        raise ValueError(
            f"baselines.{method}: a baseline cannot be called {', '.join(_BUILT_IN[:-1])} or {_BUILT_IN[-1]}, since a meta-test "
            "already tests these; valid is a name of your own"
        )
    if baseline is None:
        return
    if not isinstance(baseline, Objective):
        raise ValueError(f"baselines.{method} must be an objective, or null for none, got {baseline!r}")
    setting = f"baselines.{method}={type(baseline).__module__}.{type(baseline).__qualname__}"
    try:
        check_method(method, baseline)
        check_loss(baseline)
    except ValueError as error:
        raise ValueError(f"{setting}: {one_line(error)}") from error


def _stage(trainer: pl.Trainer, objective: ParametricObjective) -> int:
    """Env steps for which the objective was meta-trained: in this run, or according to its card."""
    return env_steps_of(trainer) if agents_of(trainer).learner.is_meta_training else int(objective.card.get("env_steps", 0))


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
                    and row.meta_training_env_steps == self._stage(trainer)
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
                MetaTestRow(spec.name, self._method, number, env_steps_of(trainer), float(value), self._stage(trainer))
                for (spec, number), value in zip(self._agents(trainer), returns, strict=True)
            ]
            append_rows(self._path, rows)

    @staticmethod
    def _agents(trainer: pl.Trainer) -> list[tuple[EnvironmentSpec, int]]:
        """Environment and number of each agent of all processes."""
        specs = agents_of(trainer).specs
        return list(zip(specs, agent_numbers(specs, module_of(trainer).run_config.get("seed", 0)), strict=True))

    @staticmethod
    def _stage(trainer: pl.Trainer) -> int | None:
        objective = agents_of(trainer).objective
        return int(objective.card.get("env_steps", 0)) if isinstance(objective, ParametricObjective) else None

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._evaluator is not None:
            self._evaluator.close()
