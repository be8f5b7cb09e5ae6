"""Meta-tests in a second process: the same rows as in this one, whatever happens to the other."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from tiny_runs import tiny_objective, tiny_run, tiny_settings

from callbacks.meta_testing import MetaTest
from metagenrl_pl.environments.environment import EnvironmentSpec
from metagenrl_pl.evaluation import background
from metagenrl_pl.evaluation.background import BackgroundTests, CannotTestThere, can_run_in_background
from metagenrl_pl.evaluation.fresh_agents import MetaTestPlan, meta_test
from metagenrl_pl.learning.cycle import Resources
from metagenrl_pl.objectives import CriticObjective, Reinforce
from metagenrl_pl.results.rows import mean_returns, read_rows

APPROACH = EnvironmentSpec("toy_environments:Approach-v0")
TESTS = {"mine": tiny_objective(), "critic": CriticObjective()}


def plan(env_steps: int = 30, specs: list[EnvironmentSpec] | None = None) -> MetaTestPlan:
    return MetaTestPlan(specs or [APPROACH], [0, 1], tiny_settings(), env_steps, 15, 2)


@pytest.fixture
def started() -> Iterator[Any]:
    running: list[BackgroundTests] = []

    def start(*arguments: Any) -> BackgroundTests:
        running.append(BackgroundTests(*arguments))
        return running[-1]

    yield start
    for tests in running:
        tests.close()


def test_the_rows_are_those_of_this_process(started: Any) -> None:
    tests = started(TESTS, plan(), Resources())
    assert "mine" in tests and "critic" in tests and "other" not in tests and tests.num_env_steps == 60
    for method, objective in TESTS.items():
        assert tests.result(method) == meta_test(method, objective, plan())
    assert tests.env_steps == 60
    final = {method: [row for row in tests.result(method) if row.env_steps == 30] for method in TESTS}
    assert tests.newest() == {method: (30, mean_returns(rows)) for method, rows in final.items()}


class Failing(Reinforce):
    """Fails in its first update in the other process, not where it is checked before."""

    def loss(self, parameters: Any, inputs: Any) -> Any:
        if multiprocessing.parent_process() is not None:
            raise TimeoutError("the disk did not answer")
        return super().loss(parameters, inputs)


class Unloadable(Reinforce):
    """Cannot be handed to another process, or cannot be read there."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason

    def __reduce__(self) -> Any:
        if self.reason == "written":
            raise AttributeError("a lambda")
        return _fail, ()


def _fail() -> None:
    raise AttributeError("a lambda")


@pytest.mark.parametrize("reason", ["written", "read"])
def test_an_objective_that_the_other_process_cannot_have(reason: str, started: Any) -> None:
    tests = started({"odd": Unloadable(reason), "critic": CriticObjective()}, plan(), Resources())
    assert tests.is_done("odd", seconds=180)
    tests.check()  # this process can make the test
    with pytest.raises(CannotTestThere, match="^a lambda$"):
        tests.result("odd")
    assert tests.result("critic") and list(tests.finished()) == ["critic"]


def test_it_ends_before_its_tests_do_when_it_is_closed(started: Any) -> None:
    tests = started({"critic": CriticObjective(), "reinforce": Reinforce()}, plan(10**9), Resources())
    while tests.env_steps < 200:  # the other process asks whether it should stop every 100 env steps
        time.sleep(0.05)
    assert not tests.is_done("critic", seconds=0.01)
    tests.close()  # returns after seconds; the tests would take months
    assert 200 <= tests.env_steps < 10**9


def test_what_fails_there_is_raised_here(started: Any) -> None:
    """It is not taken for waiting: `TimeoutError` is also what a slow disk raises."""
    tests = started({"failing": Failing()}, plan(), Resources())
    assert tests.is_done("failing", seconds=180) and tests.finished() == {}
    for ask in (tests.check, lambda: tests.result("failing")):
        with pytest.raises(TimeoutError, match="^the disk did not answer$"):
            ask()


def test_an_environment_that_the_other_process_lacks(started: Any) -> None:
    """This process may have registered it."""
    tests = started({"critic": CriticObjective()}, plan(specs=[EnvironmentSpec("Nowhere-v0")]), Resources())
    assert tests.is_done("critic", seconds=180)
    tests.check()
    with pytest.raises(CannotTestThere, match="^environment Nowhere-v0: "):
        tests.result("critic")


def test_its_death_is_noticed(started: Any) -> None:
    tests = started({"critic": CriticObjective()}, plan(10**9), Resources())
    while tests.env_steps < 1:
        time.sleep(0.05)
    (process,) = tests._executor._processes.values()
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(BrokenProcessPool):
        tests.result("critic")
    tests.check()  # this process can make the test
    assert tests.finished() == {}


def test_it_is_for_long_tests_beside_a_single_process_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "num_cores", lambda: 2)
    assert can_run_in_background(Resources(), 2000)
    assert not can_run_in_background(Resources(), 1999)
    assert not can_run_in_background(Resources(world_size=2), 2000)
    assert not can_run_in_background(Resources(device="cuda"), 2000)
    monkeypatch.setattr(background, "num_cores", lambda: 1)
    assert not can_run_in_background(Resources(), 2000)


@pytest.mark.parametrize("trouble", [None, "dies", pytest.param("cannot", marks=pytest.mark.slow)])
def test_a_run_writes_the_same_results_in_the_same_order(
    trouble: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the other process dies, or cannot make one of the tests: then this one makes them."""
    baselines = {"critic": CriticObjective(), "reinforce": Unloadable("read") if trouble == "cannot" else Reinforce()}
    environments = [{"id": "toy_environments:Approach-v0"}]

    def results(name: str, least: int) -> bytes:
        monkeypatch.setattr(background, "MIN_ENV_STEPS", least)
        run_dir = tmp_path / name
        tiny_run(callbacks=[MetaTest(str(run_dir), environments, [0], 20, 10, 1, baselines=baselines)], run_dir=run_dir)
        return (run_dir / "meta_test.csv").read_bytes()

    made: list[BackgroundTests] = []
    begin = BackgroundTests.__init__

    def remember(self: BackgroundTests, *arguments: Any) -> None:
        begin(self, *arguments)
        made.append(self)
        if trouble == "dies":
            while not self._executor._processes:
                time.sleep(0.01)
            for process in self._executor._processes.values():
                os.kill(process.pid, signal.SIGKILL)

    monkeypatch.setattr(background, "num_cores", lambda: 2)
    monkeypatch.setattr(BackgroundTests, "__init__", remember)
    foreground = results("foreground", 10**9)
    assert not made
    with warnings.catch_warnings():
        if trouble is None:
            warnings.filterwarnings("error", "The test of .* is made here")
        assert results("background", 0) == foreground and len(made) == 1


class Waiting(pl.Callback):
    """Goes on when the tests of the other process are done, and stops the run after a batch or not."""

    def __init__(self, method: str, stops: bool) -> None:
        self.method, self.stops, self.num_batches = method, stops, 0

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        (tests,) = (callback._background for callback in trainer.callbacks if isinstance(callback, MetaTest))
        assert tests.is_done(self.method, seconds=180)
        self.num_batches += 1
        trainer.should_stop = self.stops


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_takes_what_is_done_before_its_end(fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped run keeps the results that are there, and a failure ends a run in its first batch."""
    monkeypatch.setattr(background, "MIN_ENV_STEPS", 0)
    monkeypatch.setattr(background, "num_cores", lambda: 2)
    environments = [{"id": "toy_environments:Approach-v0"}]
    baselines = {"reinforce": Failing() if fails else Reinforce()}
    test = MetaTest(str(tmp_path), environments, [0], 20, 10, 1, untrained=False, random=False, baselines=baselines)
    waiting = Waiting("reinforce", stops=not fails)
    if fails:
        with pytest.raises(TimeoutError, match="the disk did not answer"):
            tiny_run(callbacks=[test, waiting], run_dir=tmp_path)
    else:
        tiny_run(callbacks=[test, waiting], run_dir=tmp_path)
        rows = [row for row in read_rows(tmp_path / "meta_test.csv") if row.method == "reinforce"]
        assert [row.env_steps for row in rows] == [10, 20]
    assert waiting.num_batches == 1


@pytest.mark.slow
def test_what_is_done_may_have_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends with an error does not wait for the other process, and keeps its own error."""
    monkeypatch.setattr(background, "MIN_ENV_STEPS", 0)
    monkeypatch.setattr(background, "num_cores", lambda: 2)
    environments, baselines = [{"id": "toy_environments:Approach-v0"}], {"critic": CriticObjective(), "reinforce": Failing()}
    test = MetaTest(str(tmp_path), environments, [0], 20, 10, 1, untrained=False, random=False, baselines=baselines)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("callbacks.meta_testing.append_rows", full)
    with pytest.raises(TimeoutError, match="the disk did not answer"), pytest.warns(match="are not written to .*No space left"):
        tiny_run(callbacks=[test, Waiting("reinforce", stops=False)], run_dir=tmp_path)
    assert test._background is None


@pytest.mark.slow
def test_it_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, signal, sys, time\n"
        "from metagenrl_pl.evaluation.background import BackgroundTests\n"
        "from metagenrl_pl.learning.cycle import Resources\n"
        "from test_background import CriticObjective, plan\n"
        "if __name__ == '__main__':\n"
        "    tests = BackgroundTests({'critic': CriticObjective()}, plan(10**9), Resources())\n"
        "    while tests.env_steps < 1:\n"
        "        time.sleep(0.05)\n"
        "    print(*tests._executor._processes, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [Path(__file__).parent, *filter(None, sys.path)]))}
    done = subprocess.run([sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, text=True)
    (process,) = map(int, done.stdout.split())
    until = time.monotonic() + 30
    while Path(f"/proc/{process}").exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert not Path(f"/proc/{process}").exists()
