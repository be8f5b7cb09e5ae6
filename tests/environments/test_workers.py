"""Environments in worker processes: the bits of those in this process, errors told, nothing left behind."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import toy_environments  # noqa: F401  (registers them)

from metagenrl_pl.common import machine
from metagenrl_pl.environments import worker_process
from metagenrl_pl.environments import workers as env_workers
from metagenrl_pl.environments.environment import Environment, EnvironmentSpec
from metagenrl_pl.environments.failures import EnvironmentFailure
from metagenrl_pl.environments.group import EnvironmentGroup, SerialGroup
from metagenrl_pl.environments.workers import WorkerGroup, assign_to_workers, choose_num_workers, make_group

ROOT = Path(__file__).parents[2]

MODULE = '''
import os, pathlib, sys, time, warnings
import gymnasium, numpy as np
from gymnasium import spaces

class Own(Exception):
    pass

class Doing(gymnasium.Env):
    """Step `when` does what is asked for; observes [PyTorch is imported, OMP_NUM_THREADS, this process, steps]."""

    def __init__(self, do="nothing", when=1, path=None):
        self.observation_space, self.action_space = spaces.Box(-np.inf, np.inf, (4,), np.float64), spaces.Box(-1, 1, (1,))
        self._do, self._when, self._path = do, when, path
        if do == "hang in a worker" and os.getpid() != int(path):
            time.sleep(3600)
        if do == "warn":
            warnings.warn("an odd one")

    def _observation(self):
        return np.array(["torch" in sys.modules, float(os.environ.get("OMP_NUM_THREADS", 0)), os.getpid(), self._num_steps])

    def reset(self, *, seed=None, options=None):
        self._num_steps = 0
        if self._do == "hang at reset":
            time.sleep(3600)
        if self._do == "fail at reset":
            raise OSError("no reset")
        return self._observation(), {}

    def step(self, action):
        self._num_steps += 1
        if self._num_steps == self._when:
            if self._do == "exit":
                os._exit(7)
            if self._do == "hang":
                time.sleep(3600)
        if self._do == "slow":
            time.sleep(0.1)
        if self._num_steps == self._when:
            if self._do == "value":
                raise ValueError("bad value")
            if self._do == "own":
                raise Own("what it says")
            if self._do == "wait":
                until = time.monotonic() + 10
                while not pathlib.Path(self._path).exists():
                    assert time.monotonic() < until, "nothing else was done meanwhile"
                    time.sleep(0.001)
        return self._observation(), 0.0, False, False, {}

gymnasium.register("Doing-v0", entry_point=Doing)
'''


def counting(**kwargs: Any) -> EnvironmentSpec:
    return EnvironmentSpec("toy_environments:Counting-v0", kwargs)


@pytest.fixture(scope="module")
def doing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., EnvironmentSpec]]:
    """Makes specs of the environment above, in a module that only a search path changed at run time leads to."""
    folder = tmp_path_factory.mktemp("module")
    (folder / "doing_environments.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield lambda do="nothing", **kwargs: EnvironmentSpec("doing_environments:Doing-v0", {"do": do, **kwargs})
    del gym.registry["Doing-v0"]


@pytest.fixture
def opened() -> Iterator[Callable[..., WorkerGroup]]:
    """Makes groups that are closed after the test."""
    groups = []

    def make(specs: Sequence[EnvironmentSpec], num_workers: int, timeout: float | None = None) -> WorkerGroup:
        groups.append(WorkerGroup(specs, num_workers, timeout))
        return groups[-1]

    yield make
    for group in groups:
        group.close()


def num_processes(group: WorkerGroup) -> int:
    return len({worker.process.pid for worker in group._workers})


# ------------------------------------------------------------------------------------------------------------------- same bits

MIXED = [
    EnvironmentSpec("Pendulum-v1", max_episode_steps=30),
    counting(num_actions=3, ends_after=7),
    EnvironmentSpec("InvertedPendulum-v5"),
    EnvironmentSpec("Pendulum-v1"),
]


def history(group: EnvironmentGroup) -> list[np.ndarray]:
    """All that comes of 200 steps, with resets where an episode ends and environments that are left out now and then."""
    random = np.random.default_rng(0)
    seen = [group.reset(index, 100 + index) for index in range(len(group))]
    num_episodes = 0
    for step in range(200):
        action = random.uniform(-1, 1, (len(group), 4))  # one more than the widest
        is_open = random.random(len(group)) < 0.8 if step % 3 == 0 else None
        group.begin_step(action if step % 2 else action.astype(np.float32), is_open)
        action[:] = 9  # the group has its copy
        before = [array.copy() for array in seen[-4:]]
        steps = group.end_step()
        assert all(np.array_equal(one, other) for one, other in zip(seen[-4:], before, strict=True))  # arrays are the caller's
        seen += steps
        for index in np.flatnonzero(steps.ended):
            num_episodes += 1
            seen.append(group.reset(int(index), num_episodes))
    assert num_episodes > 40
    for index, (_, num_actions) in enumerate(group.sizes):
        for num_steps in (5, 60):  # in the middle of an episode; longer than some
            actions = random.uniform(-1, 1, (num_steps, num_actions)).astype(np.float32)
            observation, episode_return, ended = group.repeat(index, 7, actions)
            seen += [observation, np.array(episode_return), np.array(ended)]
    return seen


@pytest.fixture(scope="module")
def expected() -> list[np.ndarray]:
    return history(SerialGroup(MIXED))


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_workers_give_the_bits_of_one_process(
    num_workers: int, expected: list[np.ndarray], opened: Callable[..., WorkerGroup]
) -> None:
    group = opened(MIXED, num_workers)
    assert num_processes(group) == num_workers and os.getpid() not in [worker.process.pid for worker in group._workers]
    assert (group.sizes, group.observation_size, group.action_size) == ([(3, 1), (3, 3), (4, 1), (3, 1)], 4, 3)
    seen = history(group)
    assert len(seen) == len(expected)
    for one, other in zip(seen, expected, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def test_other_work_is_done_while_environments_step(
    doing: Callable[..., EnvironmentSpec], opened: Callable[..., WorkerGroup], tmp_path: Path
) -> None:
    path = tmp_path / "done"
    group = opened([doing("wait", path=str(path))], 1)
    group.reset(0, 0)
    group.begin_step(np.zeros((1, 1)))
    path.touch()  # for which the step waits
    assert group.end_step().observation[0, 3] == 1


def test_a_worker_without_an_open_environment_sleeps(opened: Callable[..., WorkerGroup]) -> None:
    group = opened([counting(), counting(), counting()], 2)
    for index in range(3):
        group.reset(index, 0)
    asleep = group._workers[0].process.pid
    assert list(group._workers[0].names) == [0, 2]
    os.kill(asleep, signal.SIGSTOP)
    wake = threading.Timer(10, os.kill, (asleep, signal.SIGCONT))
    wake.start()
    begin = time.monotonic()
    group.begin_step(np.zeros((3, 1)), np.array([False, True, False]))
    steps = group.end_step()
    assert time.monotonic() - begin < 9
    assert steps.observation[:, 1].tolist() == [0, 1, 0] and steps.reward.tolist() == [0, 1, 0]
    wake.cancel()
    os.kill(asleep, signal.SIGCONT)
    group.begin_step(np.zeros((3, 1)), np.array([False, False, True]))
    assert group.end_step().reward.tolist() == [0, 0, 1]
    group.begin_step(np.zeros((3, 1)))
    assert group.end_step().reward.tolist() == [1, 2, 2]


# ---------------------------------------------------------------------------------------------------------------- the processes


def test_a_worker_is_small_and_deaf_to_signals(
    doing: Callable[..., EnvironmentSpec], opened: Callable[..., WorkerGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    group = opened([doing()], 1)
    process = group._workers[0].process.pid
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(process, number)
    assert group.reset(0, 0).tolist() == [0, 1, process, 0]


def test_warnings_are_told_once(
    doing: Callable[..., EnvironmentSpec], opened: Callable[..., WorkerGroup], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.warns(UserWarning, match="an odd one") as caught:  # here, not by a worker
        opened([doing("warn"), doing("warn"), EnvironmentSpec("HalfCheetah-v5")], 2).close()
    assert len(caught) == 1
    assert capfd.readouterr() == ("", "")  # nor is MuJoCo's deprecation line, which `test_envs` shows otherwise


def test_a_worker_that_hangs_in_a_step_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first environment hangs in its 20th step, once; the third one has another worker and loses nothing."""
    monkeypatch.chdir(tmp_path)
    group = make_group([EnvironmentSpec("odd_environments:Hangs-v0"), counting(), counting()], 2, timeout=1.0)
    with contextlib.closing(group):
        assert isinstance(group, WorkerGroup)
        assert [list(worker.names) for worker in group._workers] == [[0, 2], [1]]
        processes = [worker.process for worker in group._workers]
        for index in range(3):
            group.reset(index, index)
        action = np.zeros((3, group.action_size), np.float32)
        for step in range(19):
            group.begin_step(action)
            assert group.end_step().observation[1, 1] == step + 1
        group.begin_step(action)
        with pytest.warns(UserWarning, match=r"has not answered for 1 s and was replaced; .*Hangs-v0, .* replaced so far: 1$"):
            assert group.end_step().observation[1, 1] == 20
        assert group.lost.tolist() == [True, False, True]
        assert [worker.process is process for worker, process in zip(group._workers, processes, strict=True)] == [False, True]
        assert processes[0].poll() == -signal.SIGKILL
        group.reset(2, 7)
        assert group.lost.tolist() == [True, False, False]
        group.begin_step(action)  # not of the first environment, which has not been reset
        assert group.end_step().observation[:, 1].tolist() == [0, 21, 1]
        group.reset(0, 8)
        for _ in range(30):
            group.begin_step(action)
            group.end_step()
        assert not group.lost.any()


def test_an_environment_that_hangs_again_and_again_is_named(doing: Callable[..., EnvironmentSpec]) -> None:
    group = WorkerGroup([doing("hang")], 1, timeout=0.5)
    with contextlib.closing(group), pytest.warns(UserWarning, match="replaced so far: 3"):
        for _ in range(env_workers.MAX_RESTARTS):
            group.reset(0, 0)
            group.begin_step(np.zeros((1, 1), np.float32))
            group.end_step()
        group.reset(0, 0)
        group.begin_step(np.zeros((1, 1), np.float32))
        with pytest.raises(EnvironmentFailure, match=r"has not answered for 0\.5 s, .* doing_environments:Doing-v0.*env_timeout"):
            group.end_step()


def test_hangs_with_a_step_in_between_are_not_in_a_row(
    doing: Callable[..., EnvironmentSpec], opened: Callable[..., WorkerGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second step hangs."""
    monkeypatch.setattr(env_workers, "MAX_RESTARTS", 1)
    group, action = opened([doing("hang", when=2)], 1, timeout=0.5), np.zeros((1, 1), np.float32)
    for num_hangs in (1, 2):
        group.reset(0, 0)
        group.begin_step(action)
        group.end_step()
        group.begin_step(action)
        with pytest.warns(UserWarning, match=f"replaced so far: {num_hangs}$"):
            group.end_step()


def test_a_hang_at_a_reset_is_named(doing: Callable[..., EnvironmentSpec]) -> None:
    group = WorkerGroup([doing("hang at reset")], 1, timeout=0.5)
    with contextlib.closing(group), pytest.raises(EnvironmentFailure, match=r"has not answered for 0\.5 s"):
        group.reset(0, 0)


def test_repeating_an_episode_may_take_longer_than_a_step(
    doing: Callable[..., EnvironmentSpec], opened: Callable[..., WorkerGroup]
) -> None:
    group = opened([doing("slow")], 1, timeout=0.5)
    assert group.repeat(0, 3, np.zeros((8, 1), np.float32)).observation[3] == 8
    group.begin_step(np.zeros((1, 1), np.float32))
    assert not group.lost.any() and group.end_step().observation[0, 3] == 9


def test_any_timeout_is_possible(opened: Callable[..., WorkerGroup]) -> None:
    """The system cannot wait for more milliseconds than 32 bits hold."""
    assert opened([counting()], 1, timeout=1e30).reset(0, 0)[1] == 0


def test_a_worker_may_take_longer_to_start_than_to_step(opened: Callable[..., WorkerGroup]) -> None:
    """Its imports alone take longer than this."""
    opened([counting()], 1, timeout=0.05)


def test_a_hang_at_the_start_is_named(doing: Callable[..., EnvironmentSpec], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_process, "START_SECONDS", 0.5)
    with pytest.raises(
        EnvironmentFailure, match=r"has not answered for 0\.5 s, with the environments doing_environments:Doing-v0"
    ):
        WorkerGroup([doing("hang in a worker", path=str(os.getpid()))], 1, timeout=0.05)


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan")])
def test_a_timeout_that_is_not_positive_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="^env_timeout_seconds must be positive, or null"):
        make_group([counting()], 0, timeout=seconds)


def test_nothing_is_left_after_close() -> None:
    def left() -> tuple[list[str], int, list[str]]:
        shared = [line for line in Path("/proc/self/maps").read_text().splitlines() if "environments" in line]
        return shared, len(os.listdir("/proc/self/fd")), os.listdir("/dev/shm")

    gc.collect()  # what another test has left
    before = left()
    closed, deleted = WorkerGroup([counting()], 1), WorkerGroup([counting()], 1)
    processes = [group._workers[0].process for group in (closed, deleted)]
    assert all(process.poll() is None for process in processes) and len(left()[0]) == len(before[0]) + 2
    closed.close()
    closed.close()
    assert processes[0].returncode == 0
    deleted.reset(0, 0)
    deleted.begin_step(np.zeros((1, 1)))
    del deleted  # in the middle of a step
    gc.collect()
    assert processes[1].returncode == 0
    del closed
    gc.collect()
    assert left() == before


def test_a_temporary_file_serves_where_there_is_no_memfd(
    opened: Callable[..., WorkerGroup], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    group = opened([counting()], 1)
    assert str(tmp_path) in Path("/proc/self/maps").read_text() and not list(tmp_path.iterdir())
    group.reset(0, 0)
    group.begin_step(np.zeros((1, 1)))
    assert group.end_step().reward.tolist() == [1]


def test_a_fork_does_not_end_its_parents_workers(opened: Callable[..., WorkerGroup]) -> None:
    group = opened([counting()], 1)
    fork = os.fork()
    if fork == 0:
        try:
            group.close()
        finally:
            os._exit(0)
    os.waitpid(fork, 0)
    assert group.reset(0, 0)[1] == 0


def test_a_group_that_cannot_be_made_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    start = subprocess.Popen

    def noted(*args: Any, **kwargs: Any) -> Any:
        started.append(start(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", noted)
    monkeypatch.setitem(gym.registry, "OnlyHere-v0", gym.spec("Counting-v0"))
    with pytest.raises(ValueError):
        WorkerGroup([counting(), EnvironmentSpec("OnlyHere-v0")], 2)
    assert [process.poll() for process in started] == [0, 0]


PARENT = """
import sys
import numpy as np
from metagenrl_pl.environments.workers import WorkerGroup
from metagenrl_pl.environments.environment import EnvironmentSpec

first = "odd_environments:Hangs-v0" if sys.argv[1] == "kill while one hangs" else "toy_environments:Counting-v0"
group = WorkerGroup([EnvironmentSpec(first), EnvironmentSpec("toy_environments:Counting-v0")], 2)
for index in range(2):
    group.reset(index, 0)
print(*[worker.process.pid for worker in group._workers], flush=True)
while sys.argv[1].startswith("kill"):
    group.begin_step(np.zeros((2, 1)))
    group.end_step()
"""


@pytest.mark.parametrize("end", ["kill", "kill while one hangs", "exit"])
def test_workers_end_with_their_parent(end: str, tmp_path: Path) -> None:
    def is_alive(process: int) -> bool:
        try:
            return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False

    shared = os.listdir("/dev/shm")
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    parent = subprocess.Popen(
        [sys.executable, "-X", "dev", "-c", PARENT, end],  # which tells what is not closed
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with parent:
        assert parent.stdout is not None
        workers = [int(process) for process in parent.stdout.readline().split()]
        assert len(workers) == 2
        while end == "kill while one hangs" and not (tmp_path / "hangs_once").exists():
            time.sleep(0.01)
        if end.startswith("kill"):
            assert all(map(is_alive, workers))
            parent.kill()
        _, errors = parent.communicate(timeout=30)
    until = time.monotonic() + 60
    while any(map(is_alive, workers)) and time.monotonic() < until:
        time.sleep(0.01)
    assert not any(map(is_alive, workers))
    assert (errors, parent.returncode) == ("", 0 if end == "exit" else -signal.SIGKILL)
    assert os.listdir("/dev/shm") == shared


# ----------------------------------------------------------------------------------------------------------------------- errors


def failure_of(group: EnvironmentGroup) -> Exception:
    """What resets and steps raise."""
    with pytest.raises(Exception) as caught:
        for index in range(len(group)):
            group.reset(index, 0)
        for _ in range(3):
            group.begin_step(np.zeros((len(group), 1)))
            group.end_step()
    return caught.value


@pytest.mark.parametrize(
    ("do", "message", "line"),
    [
        ("value", "in step 1 of an episode ValueError: bad value", 'raise ValueError("bad value")'),
        ("own", "in step 1 of an episode Own: what it says", 'raise Own("what it says")'),
        ("fail at reset", "at a reset OSError: no reset", 'raise OSError("no reset")'),
    ],
)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_an_environment_raises_is_raised_here(
    do: str, message: str, line: str, num_workers: int, doing: Callable[..., EnvironmentSpec], opened: Callable[..., WorkerGroup]
) -> None:
    specs = [counting(), doing(do)]
    error = failure_of(opened(specs, 1) if num_workers else SerialGroup(specs))
    assert type(error) is EnvironmentFailure
    assert str(error).startswith(f"environment doing_environments:Doing-v0[do={do}]: {message} (doing_environments.py, line ")
    told = error.__notes__[0] if num_workers else "".join(traceback.format_exception(error))
    assert line in told


def test_after_an_error_answers_still_belong_to_their_questions(
    doing: Callable[..., EnvironmentSpec], opened: Callable[..., WorkerGroup]
) -> None:
    group = opened([counting(), doing("own", when=2), doing("value", when=2)], 3)
    assert "episode Own: " in str(failure_of(group))  # of two the first, as one after another would
    assert group.reset(0, 0)[1] == 0 and group.reset(1, 0)[3] == 0 and group.reset(2, 0)[3] == 0
    group.begin_step(np.zeros((3, 1)))
    steps = group.end_step()
    assert steps.observation[0, 1] == steps.observation[1, 3] == steps.observation[2, 3] == 1


def test_an_interrupted_step_is_not_taken_for_the_next(
    opened: Callable[..., WorkerGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(worker: Any) -> None:
        raise KeyboardInterrupt

    group = opened([counting()], 1)
    group.reset(0, 0)
    group.begin_step(np.zeros((1, 1)))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(worker_process.WorkerProcess, "receive", interrupted)
        group.end_step()
    with pytest.raises(AssertionError, match="the previous step has not ended"):
        group.reset(0, 0)
    assert group.end_step().reward.tolist() == [1] and group.reset(0, 0)[1] == 0


@pytest.mark.parametrize("specs", [["Pendulum-v1", "Pendulm-v1"], ["CartPole-v1", "Pendulm-v1"], ["no_such_module:X-v0"]])
def test_what_cannot_be_made_is_refused_as_in_one_process(specs: list[str]) -> None:
    def refusal(make: Callable[[Sequence[EnvironmentSpec]], EnvironmentGroup]) -> str:
        with pytest.raises(ValueError) as caught:
            make([EnvironmentSpec(id) for id in specs])
        return str(caught.value)

    assert refusal(lambda specs: WorkerGroup(specs, 2)) == refusal(SerialGroup)


def test_what_only_this_process_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gym.registry, "OnlyHere-v0", gym.spec("Counting-v0"))
    with pytest.raises(ValueError) as caught:
        WorkerGroup([counting(), EnvironmentSpec("OnlyHere-v0")], 1)
    assert str(caught.value) == (
        "environment OnlyHere-v0: cannot be made in a worker process (Environment `OnlyHere` doesn't exist); "
        "valid is 'module:OnlyHere-v0' with the module that registers it, or env_workers=0"
    )
    with pytest.raises(
        ValueError, match=r"^environment .*: its kwargs cannot be sent to a worker process \(.*\); valid: env_workers=0$"
    ):
        WorkerGroup([EnvironmentSpec("toy_environments:Showing-v0", {"observation": lambda: 0})], 1)


def test_the_death_of_a_worker_is_told(doing: Callable[..., EnvironmentSpec], opened: Callable[..., WorkerGroup]) -> None:
    group = opened([counting(), doing("exit"), counting(ends_after=5)], 2)
    error = failure_of(group)
    assert type(error) is EnvironmentFailure
    assert str(error) == "a worker process died, with the environments doing_environments:Doing-v0[do=exit]: exit code 7"
    with pytest.raises(RuntimeError, match="Doing-v0.*: exit code 7"):
        group.reset(1, 0)

    assert list(group._workers[0].names) == [0, 2]
    os.kill(group._workers[0].process.pid, signal.SIGSTOP)  # so that it dies while it should step
    group.begin_step(np.zeros((3, 1)), np.array([True, False, True]))
    os.kill(group._workers[0].process.pid, signal.SIGKILL)
    with pytest.raises(
        RuntimeError, match=r"Counting-v0, toy_environments:Counting-v0\[ends_after=5\]: signal SIGKILL, which the sys"
    ):
        group.end_step()
    group.close()


# --------------------------------------------------------------------------------------------------------------- the number


@pytest.mark.parametrize(
    ("num_workers", "num_environments", "num_processes", "cores", "chosen"),
    [
        (None, 20, 1, 3, 0),
        (None, 20, 1, 4, 3),
        (None, 20, 1, 16, 15),
        (None, 20, 1, 64, 20),
        (None, 20, 2, 16, 7),
        (None, 20, 4, 15, 0),
        (0, 20, 1, 16, 0),
        (2, 20, 1, 1, 2),
        (8, 5, 1, 4, 5),
    ],
)
def test_the_number_of_workers(
    num_workers: int | None, num_environments: int, num_processes: int, cores: int, chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(env_workers, "num_cores", lambda: cores)
    assert choose_num_workers(num_workers, num_environments, num_processes) == chosen


@pytest.mark.parametrize("value", [-1, 1.0, True, "2"])
def test_numbers_that_cannot_serve_are_refused(value: Any) -> None:
    with pytest.raises(ValueError) as caught:
        choose_num_workers(value, 4)
    assert str(caught.value) == f"env_workers must be null, to choose, or a whole number from 0, got {value!r}"


@pytest.mark.parametrize(
    ("quota", "chosen"), [(None, 9), ("max 100000", 9), ("600000 100000", 5), ("650000 100000", 5), ("50000 100000", 0)]
)
def test_only_cores_that_this_process_may_use_count(
    quota: str | None, chosen: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(1, 20, 2)), raising=False)
    monkeypatch.setattr(machine, "_CPU_QUOTA", tmp_path / "cpu.max")
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota + "\n")
    assert choose_num_workers(None, 100) == chosen


def test_make_group_chooses_the_kind(monkeypatch: pytest.MonkeyPatch, opened: Callable[..., WorkerGroup]) -> None:
    monkeypatch.setattr(env_workers, "WorkerGroup", opened)
    monkeypatch.setattr(env_workers, "num_cores", lambda: 2)
    for num_workers in (0, None):
        assert type(make_group([counting()], num_workers)) is SerialGroup
    group = make_group([counting()], 3)
    assert type(group) is WorkerGroup and num_processes(group) == 1
    with pytest.raises(ValueError, match="env_workers must be a whole number from 1 for .*, got 0"):
        opened([counting()], 0)


@pytest.mark.parametrize("kinds", ["ABABABAB", "AAAABBBB", "AAB", "ABCABCA"])
def test_every_worker_gets_a_mix_of_kinds(kinds: str) -> None:
    assigned = assign_to_workers([EnvironmentSpec(kind) for kind in kinds], 2)
    assert sorted(index for indices in assigned for index in indices) == list(range(len(kinds)))
    for kind in set(kinds):
        counts = [sum(kinds[index] == kind for index in indices) for indices in assigned]
        assert max(counts) - min(counts) <= 1


def test_environments_are_closed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some fail when they are closed again."""
    closed: list[Environment] = []
    monkeypatch.setattr(Environment, "close", lambda self: closed.append(self))
    group = SerialGroup(MIXED)
    group.close()
    group.close()
    assert len(closed) == len(MIXED)
