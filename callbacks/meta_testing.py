"""Meta-tests during and after meta-training."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_warn

from callbacks.baselines import check_baseline
from callbacks.checkpointing import stop_requested
from callbacks.meta_test_progress import MetaTestProgress
from callbacks.schedule import (
    agents_of,
    check_interval,
    datamodule_of,
    env_steps_of,
    is_due,
    is_last,
    is_logged,
    log_metrics,
    module_of,
    stage_of,
)
from metagenrl_pl.common.messages import one_line
from metagenrl_pl.common.streams import derive_seed
from metagenrl_pl.config.schema import ConfigError
from metagenrl_pl.environments.environment import Environment, EnvironmentSpec
from metagenrl_pl.evaluation.background import BackgroundTests, CannotTestThere, can_run_in_background
from metagenrl_pl.evaluation.fresh_agents import (
    MetaTestPlan,
    MetaTestStopped,
    agent_numbers,
    fresh_seeds,
    meta_test,
    random_returns,
)
from metagenrl_pl.experience.memory import check_memory, replay_bytes
from metagenrl_pl.objectives import Objective, ParametricObjective
from metagenrl_pl.reporting.numbers import join_names
from metagenrl_pl.results.methods import LEARNED, RANDOM, UNTRAINED
from metagenrl_pl.results.rows import MetaTestRow, append_rows, drop_rows, mean_returns, read_rows
from metagenrl_pl.training.datamodule import MacroBatch

Tested = Objective | Mapping[int, Objective]
"""What `meta_test` takes: an objective, or one for each seed."""


class _Test(NamedTuple):
    """One test of a method's objective.

    Args:
        method: its name in `meta_test.csv`.
        objective: what trains the fresh agents.
        stage: env steps of meta-training of the objective; None if it is not meta-trained.
    """

    method: str
    objective: Tested
    stage: int | None


class MetaTest(pl.Callback):
    """Trains fresh agents with the frozen objective, at a fixed interval of meta-training and at its end.

    It also tests, once, an untrained objective, hand-made objectives and random actions, for comparison. Where a second core is free,
    another process makes these tests while meta-training goes on. Meta-tests use their own random streams, so they do not affect
    training. A signal during meta-training ends a meta-test early. It is repeated first when the run resumes.

    Args:
        run_dir: the run's folder; results are appended to its `meta_test.csv`.
        environments: in which fresh agents are trained: ids or mappings, as in `env.test`. Empty for no meta-test.
        seeds: of the fresh agents in each environment; null for those of the run's own agents. Such a run trains fresh agents itself,
            so its own objective is not tested again.
        env_steps: of each fresh agent.
        evaluate_every_env_steps: env steps of the fresh agents between two noise-free evaluations.
        num_episodes: per evaluation.
        every_env_steps: env steps of meta-training between two meta-tests; null for one at the end only.
        untrained: whether to test the objective's architecture with untrained weights, too.
        random: whether to test random actions, too.
        baselines: objectives by the name of their method; null switches one off.

    Raises:
        ValueError: if a number is not positive, there is no seed, a seed is negative, seeds or environments repeat, or an
            environment or a baseline is not usable.
    """

    def __init__(
        self,
        run_dir: str,
        environments: Sequence[str | Mapping[str, Any]],
        seeds: Sequence[int] | None,
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
            check_interval(name, value)
        check_interval("every_env_steps", every_env_steps, ", or null for one at the end only")
        if seeds is not None and not seeds:
            raise ValueError("seeds must name at least one seed, or be null for those of the run's agents, got []")
        if len(set(seeds or ())) < len(seeds or ()):
            raise ValueError(f"seeds must differ, got {list(seeds or ())}")
        if any(seed < 0 for seed in seeds or ()):
            raise ValueError(f"seeds must be 0 or more, got {list(seeds or ())}")
        for method, baseline in (baselines or {}).items():
            check_baseline(method, baseline)
        self._path = Path(run_dir) / "meta_test.csv"
        self._specs = [EnvironmentSpec.parse(entry) for entry in environments]
        names = [spec.name for spec in self._specs]
        if len(set(names)) < len(names):
            raise ValueError(f"environments must differ, got {', '.join(names)}")
        for spec in self._specs:  # report an unusable environment now, not after hours of training
            Environment(spec).close()
        self._seeds, self._env_steps, self._evaluate_every = list(seeds or ()), env_steps, evaluate_every_env_steps
        self._is_beside_fresh_agents = seeds is None
        self._num_episodes, self._every = num_episodes, every_env_steps
        self._untrained, self._random = untrained, random
        self._baselines = {method: baseline for method, baseline in (baselines or {}).items() if baseline is not None}
        self._is_given_up = False
        self._background: BackgroundTests | None = None
        self._stages: dict[str, int | None] = {}  # of the tests in the other process
        self._progress: MetaTestProgress  # made when training starts

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check now that the fresh agents' replay fits into memory together with the training's.

        Raises:
            ConfigError: names the needed and the available memory.
        """
        if self._is_beside_fresh_agents:
            specs = agents_of(trainer).specs
            counts = Counter(spec.name for spec in specs)
            if len(set(counts.values())) > 1:
                raise ConfigError(
                    f"callbacks.meta_test compares each agent with others of its number, and environments have "
                    f"{join_names([f'{count} ({name})' for name, count in counts.items()])} agents; valid is a population.size that is "
                    f"a multiple of {len(counts)}, or callbacks.meta_test=null"
                )
            numbers = agent_numbers(specs, module_of(trainer).run_config.get("seed", 0))
            self._seeds = [number for spec, number in zip(specs, numbers, strict=True) if spec.name == specs[0].name]
        if not self._specs:
            return
        resources, (specs, _, seeds) = agents_of(trainer).resources, fresh_seeds(self._specs, self._seeds)
        local, window_length = resources.placement(len(seeds)).local(specs), agents_of(trainer).settings.window_length
        needed = replay_bytes(local, self._env_steps, window_length, resources.replay_capacity)
        device = agents_of(trainer).replay.device
        if device.type == "cpu":  # compared with physical memory, so add the training's replay; a GPU reports its free memory
            num_tests = 2 if can_run_in_background(resources, self._num_comparison_steps(trainer)) else 1  # at a time
            needed = resources.num_processes * (num_tests * needed + agents_of(trainer).replay.num_bytes)
        try:
            check_memory(needed, device)
        except ValueError as error:
            raise ConfigError(f"callbacks.meta_test.env_steps={self._env_steps}: {error}") from error

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin the tests that do not depend on meta-training. After a resume, remove the results of later objectives first."""
        if trainer.is_global_zero and agents_of(trainer).learner.is_meta_training and (env_steps := env_steps_of(trainer)):
            drop_rows(self._path, lambda row: row.method == LEARNED.name and (row.meta_training_env_steps or 0) > env_steps)
        if not self._specs:
            return
        left = [test for test in self._comparisons(trainer) if not self._is_done(test.method, self._env_steps, test.stage)]
        tests = {test.method: test.objective for test in left}
        self._stages = {test.method: test.stage for test in left}
        self._progress = MetaTestProgress(trainer, len(self._specs) * len(self._seeds), self._env_steps)
        if self._own_test(trainer) is not None:
            now, end = env_steps_of(trainer), datamodule_of(trainer).env_steps
            num_tests = 1 + (max((end - 1) // self._every - now // self._every, 0) if self._every else 0)
            self._progress.announce(LEARNED.name, num_tests)
        resources = agents_of(trainer).resources
        if can_run_in_background(resources, len(tests) * self._env_steps):
            self._background = BackgroundTests(tests, self._plan(trainer), resources)
            self._progress.announce_background(self._background)
        else:
            for method in tests:
                self._progress.announce(method)

    def _own_test(self, trainer: pl.Trainer) -> _Test | None:
        """The test of the run's own objective as it is now; None if it has no parameters, or if the run's agents are that test."""
        objective = agents_of(trainer).objective
        if self._is_beside_fresh_agents or not isinstance(objective, ParametricObjective):
            return None
        return _Test(LEARNED.name, objective, stage_of(trainer))

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
        """Test the objective after each interval. A test in the other process that has failed ends the run now, not at its end."""
        if self._specs:
            self._progress.show_background()
        if self._background is not None:
            self._background.check()
        if is_due(self._every, env_steps_of(trainer), batch) and not is_last(trainer):
            self._test_so_far(trainer)

    def _test_so_far(self, trainer: pl.Trainer) -> None:
        """Test the objective in the middle of meta-training; a signal ends the test early."""
        if (test := self._own_test(trainer)) is None:
            self._is_given_up = False  # a resume may switch the test off
            return
        try:
            self._test(trainer, test, lambda: stop_requested(trainer))
            self._is_given_up = False
        except MetaTestStopped:
            self._is_given_up = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Test the final objective and the methods that it is compared with."""
        if not is_last(trainer) or trainer.should_stop or not self._specs:
            return
        own = self._own_test(trainer)
        for test in [*([own] if own else []), *self._comparisons(trainer)]:
            self._test(trainer, test)
        if trainer.is_global_zero and self._random and not self._is_done(RANDOM.name, 0, None):
            rows = random_returns(self._specs, self._seeds, self._num_episodes)
            append_rows(self._path, rows)
            self._progress.show(rows)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        try:
            self._keep_finished()
        finally:
            self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """End the other process here too, since Lightning does not call `teardown` after an error or a signal in the last test."""
        try:
            self._keep_finished()
        except (OSError, ValueError) as error:  # such as a full disk; `exception` is what the run ends with
            rank_zero_warn(f"Finished meta-tests are not written to {self._path}: {one_line(error)}")
        finally:
            self._close()

    def _keep_finished(self) -> None:
        """Write the results of the other process that no one has taken, of a run that was stopped: they hold after a resume as well."""
        for method, rows in self._background.finished().items() if self._background is not None else ():
            if not self._is_done(method, self._env_steps, self._stages[method]):
                self._write(rows, self._stages[method])

    def _close(self) -> None:
        if self._background is not None:
            self._background.close()
            self._background = None

    def _comparisons(self, trainer: pl.Trainer) -> list[_Test]:
        """The tests that do not depend on meta-training. Every seed has its own untrained objective."""
        objective = agents_of(trainer).objective
        tests = [_Test(method, baseline, None) for method, baseline in self._baselines.items()]
        if isinstance(objective, ParametricObjective) and self._untrained:
            fresh = {seed: objective.fresh(derive_seed(seed, "untrained objective")) for seed in self._seeds}
            tests.insert(0, _Test(UNTRAINED.name, fresh, 0))
        return tests

    def _num_comparison_steps(self, trainer: pl.Trainer) -> int:
        return len(self._comparisons(trainer)) * self._env_steps

    def _plan(self, trainer: pl.Trainer) -> MetaTestPlan:
        agent = agents_of(trainer).settings
        lengths = (self._env_steps, self._evaluate_every, self._num_episodes)
        return MetaTestPlan(self._specs, self._seeds, agent, *lengths, policies=self._path.parent / "fresh_agents")

    def _is_done(self, method: str, env_steps: int, stage: int | None) -> bool:
        """Whether all results of a method are in the file. A run that was stopped between two tests continues with the others."""
        rows = [row for row in read_rows(self._path) if (row.method, row.env_steps) == (method, env_steps)]
        done = {(row.environment, row.seed) for row in rows if row.meta_training_env_steps == stage}
        return all((spec.name, seed) in done for spec in self._specs for seed in self._seeds)

    def _test(self, trainer: pl.Trainer, test: _Test, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Test an objective, write its results and log them, each unless an earlier run of this folder has done it."""
        if not self._specs:
            return
        method, objective, stage = test
        if not trainer.strategy.broadcast(self._is_done(method, self._env_steps, stage)):
            rows = self._wait_for(method)
            if rows is None:
                resources, report = agents_of(trainer).resources, self._progress.begin(method)
                rows = meta_test(method, objective, self._plan(trainer), resources, report, should_stop, self._progress.show)
            if trainer.is_global_zero:
                self._write(rows, stage)
        # A run may have been stopped here, after writing and before logging.
        metrics = trainer.strategy.broadcast(self._final_returns(method, stage) if trainer.is_global_zero else {})
        if not trainer.strategy.broadcast(is_logged(trainer, metrics)):
            log_metrics(trainer, metrics, is_in_batch=not is_last(trainer))

    def _write(self, rows: Sequence[MetaTestRow], stage: int | None) -> None:
        append_rows(self._path, [row._replace(meta_training_env_steps=stage) for row in rows])

    def _final_returns(self, method: str, stage: int | None) -> dict[str, float]:
        """The final return in each environment, the mean over seeds, as named in `metrics.csv`."""
        rows = [row for row in read_rows(self._path) if row.method == method and row.meta_training_env_steps == stage]
        final = mean_returns([row for row in rows if row.env_steps == self._env_steps and row.seed in self._seeds])
        return {f"meta_test/{spec.name}/{method}": final[spec.name] for spec in self._specs}

    def _wait_for(self, method: str) -> list[MetaTestRow] | None:
        """The results of a test in the other process; None if there is none."""
        if self._background is None or method not in self._background:
            return None
        try:
            while not self._background.is_done(method, seconds=0.2):
                self._progress.show_background()
            return self._background.result(method)
        except CannotTestThere as error:
            rank_zero_warn(f"The test of {method} is made here, since the second process cannot make it: {error}")
            return None
        except BrokenProcessPool:
            rank_zero_warn("The process that made meta-tests has died; this one makes them again.")
            self._close()
            return None
