"""Runs that are killed, stopped and damaged in many ways, and environments that break habits. In minutes: `-m faults`."""

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import odd_environments
import pytest
import torch
from forks import Ended, Fork
from tiny_runs import tiny_objective

from metagenrl_pl.common.exit_codes import INTERRUPTED, MISTAKE, STOPPED
from metagenrl_pl.launch.run_folder import has_run
from metagenrl_pl.objectives import LearnedObjective
from metagenrl_pl.results.origin import read_card
from metagenrl_pl.training.checkpoint_io import AtomicCheckpointIO, CheckpointError

pytestmark = pytest.mark.faults
ROOT = Path(__file__).parents[2]

SMALL = ["experiment=debug", "population.size=2", "env.train=[Pendulum-v1,InvertedPendulum-v5]", "run_dir=run", "logger=csv"]
SMALL += ["agent.window_length=3", "agent.num_windows=2", "agent.random_env_steps=40", "agent.warmup_env_steps=40"]
SMALL += ["env_steps=120", "updates_per_batch=4", "callbacks.checkpoint.every_env_steps=8", "callbacks.final_report=null"]
WITHOUT_TEST = [*SMALL, "callbacks.meta_test=null"]
WITH_TEST = [*SMALL, "env.test=[Pendulum-v1]", "callbacks.meta_test.env_steps=60", "callbacks.meta_test.every_env_steps=40"]
RESULTS = ("metrics.csv", "meta_test.csv", "objective.safetensors")


def run(folder: Path, *arguments: str, before: Callable[[], object] = lambda: None) -> Ended:
    return Fork(folder, *arguments, before=before).wait()


def results(folder: Path) -> dict[str, Any]:
    """What a run leaves, without what depends on the time."""
    files = {name: (folder / "run" / name) for name in RESULTS}
    found: dict[str, Any] = {name: path.read_bytes() for name, path in files.items() if path.exists()}
    lines = found["metrics.csv"].decode().splitlines()
    timed = [index for index, name in enumerate(lines[0].split(",")) if name.startswith("throughput/")]
    found["metrics.csv"] = [[cell for index, cell in enumerate(line.split(",")) if index not in timed] for line in lines]
    return found


class Straight:
    """A run that nobody stopped: its results and its seconds."""

    def __init__(self, folder: Path, arguments: list[str]) -> None:
        start = time.monotonic()
        ended = run(folder, *arguments)
        self.seconds = time.monotonic() - start
        assert ended.code == 0, ended
        self.folder, self.results = folder, results(folder)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Straight:
    return Straight(tmp_path_factory.mktemp("straight"), WITHOUT_TEST)


@pytest.fixture(scope="module")
def straight_with_test(tmp_path_factory: pytest.TempPathFactory) -> Straight:
    return Straight(tmp_path_factory.mktemp("with_test"), WITH_TEST)


def go_on(folder: Path, arguments: list[str]) -> Ended:
    """Resume, or begin again where nothing has been saved."""
    if list((folder / "run" / "checkpoints").glob("env_steps_*.ckpt")):
        return run(folder, "ckpt_path=run")
    if has_run(folder / "run"):  # something was written before the first checkpoint was whole: the refusal says to delete it
        ended = run(folder, *arguments)
        assert ended.code == MISTAKE and "or to delete it first, since it has saved no checkpoint" in ended.errors
        shutil.rmtree(folder / "run")
    return run(folder, *arguments)


# --------------------------------------------------------------------------------------------------------------- kills and stops


@pytest.mark.parametrize("seed", range(25))
def test_a_run_that_is_killed_twice_at_any_moment_gives_the_same_results(seed: int, straight: Straight, tmp_path: Path) -> None:
    moments = random.Random(seed)
    fork = Fork(tmp_path, *WITHOUT_TEST)
    fork.kill_after(straight.seconds * moments.uniform(0.05, 0.95))
    fork.wait()
    if list((tmp_path / "run" / "checkpoints").glob("env_steps_*.ckpt")):
        fork = Fork(tmp_path, "ckpt_path=run")
        fork.kill_after(straight.seconds * moments.uniform(0.05, 0.95))
        fork.wait()
    ended = go_on(tmp_path, WITHOUT_TEST)
    assert ended.code == 0 and "Traceback" not in ended.errors, ended
    assert results(tmp_path) == straight.results


@pytest.mark.parametrize("seed", range(10))
def test_so_does_one_with_meta_tests(seed: int, straight_with_test: Straight, tmp_path: Path) -> None:
    fork = Fork(tmp_path, *WITH_TEST)
    fork.kill_after(straight_with_test.seconds * random.Random(seed).uniform(0.1, 0.95))
    fork.wait()
    ended = go_on(tmp_path, WITH_TEST)
    assert ended.code == 0 and "Traceback" not in ended.errors, ended
    assert results(tmp_path) == straight_with_test.results


TWO = [*WITHOUT_TEST, "trainer.accelerator=cpu", "trainer.devices=2"]


def start_two(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """`train.py`, which starts a second process, in a session of its own."""
    command, errors = [sys.executable, str(ROOT / "train.py"), *arguments], (folder / ".stderr").open("wb")
    with errors:
        return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True)


def session(leader: int) -> list[int]:
    """The processes of a session that have not ended."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, number = file.read_text().rpartition(")")[2].split()[:4]
            if int(number) == leader and state != "Z":
                found.append(int(file.parent.name))
    return sorted(found)


def trainers(leader: int) -> list[int]:
    """The processes of a session that run `train.py`, and not what they have started for a moment, such as git."""
    found = []
    for pid in session(leader):
        with contextlib.suppress(OSError):
            if b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


@pytest.mark.parametrize("seed", range(10))
def test_two_processes_of_which_some_are_killed_end_and_resume(seed: int, straight: Straight, tmp_path: Path) -> None:
    """Both, the first or the second. Those that are left end by themselves, and the resumed run gives the bits of one process."""
    process = start_two(tmp_path, *TWO)
    while not list((tmp_path / "run").glob("metrics.csv")) and process.poll() is None:
        time.sleep(0.05)
    time.sleep(random.Random(seed).uniform(0, 2))
    alive = session(process.pid)
    for victim in {0: alive, 1: alive[:1], 2: alive[1:2]}[seed % 3]:
        os.kill(victim, signal.SIGKILL)
    process.wait(timeout=120)
    deadline = time.monotonic() + 60
    while session(process.pid):
        assert time.monotonic() < deadline, "a process is left behind"
        time.sleep(0.1)
    if list((tmp_path / "run" / "checkpoints").glob("env_steps_*.ckpt")):
        process = start_two(tmp_path, "ckpt_path=run")
    else:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        process = start_two(tmp_path, *TWO)
    assert process.wait(timeout=200) == 0, (tmp_path / ".stderr").read_text()
    assert results(tmp_path) == straight.results


@pytest.mark.parametrize("receiver", ["first", "second", "both"])
@pytest.mark.parametrize("seconds", [0.0, 0.4, 0.7, 1.5])
def test_a_signal_before_the_first_batch_ends_both_processes(
    receiver: str, seconds: float, straight: Straight, tmp_path: Path
) -> None:
    """Between the line that names the run folder and the first batch. The same command then begins the run."""
    process = start_two(tmp_path, *TWO)
    while not (tmp_path / "run" / "config.yaml").exists():
        assert process.poll() is None, (tmp_path / ".stderr").read_text()
        time.sleep(0.02)
    while len(both := trainers(process.pid)) < 2:
        assert process.poll() is None, (tmp_path / ".stderr").read_text()
        time.sleep(0.02)
    time.sleep(seconds)
    for pid in {"first": both[:1], "second": both[1:], "both": both}[receiver]:
        os.kill(pid, signal.SIGTERM)
    code = process.wait(timeout=120)
    deadline = time.monotonic() + 60
    while session(process.pid):
        assert time.monotonic() < deadline, "a process is left behind"
        time.sleep(0.1)
    assert "Traceback" not in (tmp_path / ".stderr").read_text()
    if not list((tmp_path / "run" / "checkpoints").glob("env_steps_*.ckpt")):  # on a slow machine, or the signal came early
        process = start_two(tmp_path, *TWO)
    elif code:
        process = start_two(tmp_path, "ckpt_path=run")
    assert process.wait(timeout=200) == 0, (tmp_path / ".stderr").read_text()
    assert results(tmp_path) == straight.results


@pytest.mark.parametrize("moment", range(20))
def test_a_signal_at_any_moment_ends_a_run_in_one_line_and_loses_nothing(moment: int, straight: Straight, tmp_path: Path) -> None:
    number = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)[moment % 4]
    fork = Fork(tmp_path, *WITHOUT_TEST)
    fork.kill_after(straight.seconds * (0.1 + 0.8 * moment / 20), number)
    if number == signal.SIGTERM:
        fork.kill_after(time.monotonic() - fork.start + 0.05, number)  # a scheduler may send it twice
    ended = fork.wait()
    assert "Traceback" not in ended.errors and ended.code in (0, STOPPED, INTERRUPTED), ended
    if ended.code == STOPPED:
        assert "To go on: python train.py ckpt_path=" in ended.output
    elif ended.code == INTERRUPTED:
        assert "Stopped" in ended.output + ended.errors
    if ended.code:
        ended = go_on(tmp_path, WITHOUT_TEST)
        assert ended.code == 0, ended
    assert results(tmp_path) == straight.results


# ---------------------------------------------------------------------------------------------------------------- damaged files


def damaged(content: bytes, number: int) -> bytes:
    """A file with one flipped bit, or every tenth time cut off."""
    place = random.Random(number)
    if number % 10 == 9:
        return content[: place.randrange(len(content))]
    changed = bytearray(content)
    changed[place.randrange(len(content))] ^= 1 << place.randrange(8)
    return bytes(changed)


def test_60_damaged_checkpoints_are_noticed(straight: Straight, tmp_path: Path) -> None:
    content = max((straight.folder / "run" / "checkpoints").glob("*.ckpt")).read_bytes()
    path = tmp_path / "damaged.ckpt"
    for number in range(60):
        path.write_bytes(damaged(content, number))
        with pytest.raises(CheckpointError) as caught:
            AtomicCheckpointIO().load_checkpoint(path)
        assert "\n" not in str(caught.value)


def test_60_damaged_objectives_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "objective.safetensors"
    tiny_objective().save(path, {"env_steps": 3})
    content = path.read_bytes()
    for number in range(60):
        path.write_bytes(damaged(content, number))
        with pytest.raises(ValueError, match="objective") as caught:
            LearnedObjective.load(path)
        assert "\n" not in str(caught.value)


def test_60_damaged_cards_are_read_or_named(tmp_path: Path) -> None:
    path = tmp_path / "objective.json"
    tiny_objective().save(tmp_path / "objective.safetensors", {"env_steps": 3, "settings": {"agent.discount": 0.9}})
    content = path.read_bytes()
    for number in range(60):
        path.write_bytes(damaged(content, number))
        try:
            assert isinstance(read_card(path), dict)
        except ValueError as error:
            assert "is not readable" in str(error)
    for text in ("[]", "1", "null", "[" * 100_000, '{"settings": 3}', '{"settings": {"a": 1}}'):
        path.write_text(text)
        try:
            assert isinstance(read_card(path), dict)
        except ValueError as error:
            assert "is not readable" in str(error)


@pytest.mark.parametrize("number", range(6))
def test_damaged_replays_are_noticed(number: int, straight: Straight, tmp_path: Path) -> None:
    shutil.copytree(straight.folder / "run", tmp_path / "run")
    (folder,) = (tmp_path / "run" / "checkpoints").glob("*.replay")
    path = folder / f"agent_{number % 2:03d}.safetensors"
    path.write_bytes(damaged(path.read_bytes(), number))
    ended = run(tmp_path, "ckpt_path=run", "env_steps=124")
    assert ended.code == MISTAKE and f"the replay beside it is damaged ({path.name}: its checksum is wrong)" in ended.errors


# ------------------------------------------------------------------------------------------------------------ odd environments

TRAINED = [
    "Sliding",
    "FloatsAsIntegers",
    "ScaledPictures",
    "Pictures",
    "DoublesAsHalves",
    "OneArray",
    "Nested",
    "Scalars",
    "Matrix",
]
TRAINED += [
    "Lopsided",
    "HalfActions",
    "Once",
    "Endless",
    "TwoEnds",
    "ArrayResults",
    "Beyond",
    "GlobalRandom",
    "Large",
    "Unclosable",
]
REFUSED = sorted(set(odd_environments.KINDS) - {*TRAINED, "Hangs"})


@pytest.mark.parametrize("name", TRAINED)
def test_an_odd_environment_is_trained_in(name: str, tmp_path: Path) -> None:
    environment = [f"env.train=[{name}-v0]", "population.size=1", "env_steps=80"]
    ended = run(
        tmp_path, *[argument for argument in WITHOUT_TEST if not argument.startswith(("env.train", "population"))], *environment
    )
    assert ended.code == 0 and "Traceback" not in ended.errors, ended


@pytest.mark.parametrize("name", REFUSED)
def test_an_unusable_environment_is_named(name: str, tmp_path: Path) -> None:
    environment = [f"env.train=[{name}-v0]", "population.size=1", "env_steps=80"]
    ended = run(
        tmp_path, *[argument for argument in WITHOUT_TEST if not argument.startswith(("env.train", "population"))], *environment
    )
    (line,) = [line for line in ended.errors.splitlines() if line.startswith("error: ")]
    assert ended.code == MISTAKE and "Traceback" not in ended.errors, ended
    assert name in line or "odd_environments.py, line " in line


def test_a_run_whose_environment_hangs_goes_on(tmp_path: Path) -> None:
    arguments = [a for a in WITHOUT_TEST if not a.startswith(("env.train", "population"))]
    arguments += ["env.train=[odd_environments:Hangs-v0]", "population.size=1", "env_workers=1", "env_timeout_seconds=5"]
    ended = run(tmp_path, *arguments)  # it hangs once
    assert ended.code == 0 and ended.errors.count("has not answered for 5 s and was replaced") == 1, ended


def test_an_endless_environment_is_evaluated(tmp_path: Path) -> None:
    arguments = [
        "experiment=baseline/ddpg",
        "env.train=[Endless-v0]",
        "population.size=1",
        "env_steps=20",
        "run_dir=run",
        "logger=csv",
    ]
    arguments += ["callbacks.evaluation.num_episodes=1", "callbacks.evaluation.every_env_steps=40", "callbacks.meta_test=null"]
    ended = run(tmp_path, *arguments)
    assert ended.code == 0 and "Endless-v0: declares no time limit" in ended.errors, ended


def test_a_full_disk_costs_a_save_and_not_the_run(straight: Straight, tmp_path: Path) -> None:
    def fill_for_a_while() -> None:
        save, calls = torch.save, []

        def full(*arguments: Any) -> None:
            calls.append(1)
            if 3 <= len(calls) <= 5:
                raise OSError(28, "No space left on device")
            save(*arguments)

        torch.save = full  # type: ignore[assignment]

    ended = run(tmp_path, *WITHOUT_TEST, before=fill_for_a_while)
    assert ended.code == 0 and ended.errors.count("could not be written") == 3, ended
    assert results(tmp_path) == straight.results


def test_a_limit_on_the_size_of_files_is_told_in_one_line(tmp_path: Path) -> None:
    ended = run(tmp_path, *WITHOUT_TEST, before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)))
    (line,) = [line for line in ended.errors.splitlines() if line.startswith("error: ")]
    assert ended.code == MISTAKE and line.startswith("error: run_dir=run cannot be written: "), ended
    assert "enforce fail" not in ended.errors and "Traceback" not in ended.errors, ended


def test_a_run_survives_a_closed_output(straight: Straight, tmp_path: Path) -> None:
    def close() -> None:
        end, pipe = os.pipe()
        os.close(end)
        sys.stdout = os.fdopen(pipe, "w", buffering=1)

    assert run(tmp_path, *WITHOUT_TEST, before=close).code == 0
    assert results(tmp_path) == straight.results
