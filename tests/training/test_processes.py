"""Whole runs of train.py in several processes: the bits of one process, its files, and its way to end."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning_fabric.utilities.distributed import _set_num_threads_if_needed
from omegaconf import OmegaConf
from tiny_runs import differences, leaves

from metagenrl_pl.config.schema import ConfigError
from metagenrl_pl.training.checkpoint_io import PROJECT_KEY
from metagenrl_pl.training.processes import check_trainer, launching

ROOT = Path(__file__).parents[2]
TRAIN = [sys.executable, str(ROOT / "train.py")]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(ROOT / "train.py")]
TINY = [
    *("env.train=[Pendulum-v1,InvertedPendulum-v5]", "population.size=4", "env_steps=230", "updates_per_batch=10"),
    "population.lifetime_env_steps=90",  # births in all processes, and between a checkpoint and its resume
    *("agent.hidden_units=8", "agent.num_windows=5", "agent.window_length=3"),
    *("agent.random_env_steps=60", "agent.warmup_env_steps=20", "meta.annealing_env_steps=100"),
    "judge=returns",
    *("env.test=[Pendulum-v1]", "callbacks.meta_test.env_steps=40", "callbacks.meta_test.evaluate_every_env_steps=20"),
    *("callbacks.meta_test.num_episodes=1", "callbacks.meta_test.seeds=[0,1,2]"),
    *("callbacks.checkpoint.every_env_steps=100", "callbacks.checkpoint.keep=null"),
    *("callbacks.episode_returns.every_env_steps=50", "callbacks.diagnostics.every_env_steps=50"),
    *("trainer.accelerator=cpu", "logger=csv", "env_workers=0"),
]
THREE = [*TINY, "population.size=3", "callbacks.meta_test=null"]
SHORT = [*TINY, "callbacks.meta_test=null", "callbacks.final_report=null", "env_steps=40"]
TWO = "trainer.devices=2"


def start(folder: Path, arguments: Sequence[str], command: Sequence[str] = TRAIN) -> subprocess.Popen[str]:
    """A run in a process group of its own."""
    folder.mkdir(exist_ok=True)
    paths = os.pathsep.join(map(str, (ROOT / "src", ROOT, ROOT / "tests")))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; kills what hangs."""
    try:
        output, errors = process.communicate(timeout=200)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, output, errors


def run(folder: Path, arguments: Sequence[str], command: Sequence[str] = TRAIN) -> str:
    """A run that has to end well; what it printed."""
    code, output, errors = ended(start(folder, arguments, command))
    assert code == 0 and "Traceback" not in errors, errors
    return output


def run_all(*runs: tuple[Path, Sequence[str]]) -> list[str]:
    """Runs that know nothing of each other, side by side."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda arguments: run(*arguments), runs))


def is_anybody_left(process: subprocess.Popen[str]) -> bool:
    """Whether a process of a run that has ended still lives after ten seconds."""
    for _ in range(100):
        listed = subprocess.run(["ps", "-A", "-o", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
        alive = [line for line in listed.splitlines() if line.split()[0] == str(process.pid) and line.split()[1][0] != "Z"]
        if not alive:
            return False
        time.sleep(0.1)
    return True


def metrics(run_dir: Path) -> list[dict[str, str]]:
    """The lines of metrics.csv without what clocks say; empty ones left out."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = [{name: value for name, value in row.items() if "throughput" not in name} for row in csv.DictReader(file)]
    return [row for row in rows if sum(map(bool, row.values())) > 1]


def contents(checkpoint: Path) -> dict[str, Any]:
    """Every number and tensor of a checkpoint; of the configuration only what the processes share."""
    content = torch.load(checkpoint, weights_only=True)
    config = content[PROJECT_KEY]["config"]
    content[PROJECT_KEY]["config"] = {name: config[name] for name in ("env", "agent", "population", "seed", "env_steps")}
    return dict(leaves(content))


def assert_same(one: Path, other: Path, checkpoints: Sequence[int], num_agents: int = 4, since: int = 0) -> None:
    """Two runs gave the same bits, the lines of metrics after `since` env steps included, and they learned something."""
    for env_steps in checkpoints:
        name = f"checkpoints/env_steps_{env_steps:09d}.ckpt"
        assert differences(contents(one / name), contents(other / name)) == []
    learned = [path for path in contents(one / name) if path.startswith(f"/{PROJECT_KEY}/learner/population/policy")]
    assert learned and contents(one / name)[learned[0]].shape[0] == num_agents
    assert contents(one / name)[f"/{PROJECT_KEY}/learner/num_updates"] == checkpoints[-1] - 20
    replays = [sorted((folder / name).with_suffix(".replay").iterdir()) for folder in (one, other)]
    assert [path.name for path in replays[0]] == [f"agent_{agent:03d}.safetensors" for agent in range(num_agents)]
    assert [path.name for path in replays[1]] == [path.name for path in replays[0]]
    assert [path.read_bytes() for path in replays[0]] == [path.read_bytes() for path in replays[1]]
    assert (one / "objective.safetensors").read_bytes() == (other / "objective.safetensors").read_bytes()
    lines = [[row for row in metrics(folder) if int(row["env_steps"]) > since] for folder in (one, other)]
    assert lines[0] == lines[1] and {"200", "230"} <= {row["env_steps"] for row in lines[0]}
    assert any(name.startswith("episode_return/") and value for row in lines[0] for name, value in row.items())


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """The folders of runs of four agents in one process and in two, and what the second printed, which has the default folder."""
    folder = tmp_path_factory.mktemp("four")
    _, printed = run_all((folder, [*TINY, "run_dir=one"]), (folder / "two", [*TINY, TWO]))
    (two,) = (folder / "two" / "runs").iterdir()  # named after a time, and the processes start at different times
    return folder / "one", two, printed


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of three agents in one process: a whole one (`straight`) and one that ends after 120 env steps (`short`)."""
    folder = tmp_path_factory.mktemp("three")
    run_all((folder, [*THREE, "run_dir=straight"]), (folder, [*THREE, "run_dir=short", "env_steps=120"]))
    return folder


# ------------------------------------------------------------------------------------------------------------- the same bits


def test_two_processes_compute_what_one_does(four: tuple[Path, Path, str]) -> None:
    one, two, _ = four
    assert_same(one, two, [100, 200, 230])
    rows = (one / "meta_test.csv").read_text()
    assert rows == (two / "meta_test.csv").read_text()
    assert rows.count("\n") == 1 + 4 * 3 * 2 + 3  # header, four methods at two evaluations, random actions


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_in_two(three: Path) -> None:
    """Of uneven shares."""
    shutil.copytree(three / "short", three / "wider")
    run(three, ["ckpt_path=wider/checkpoints/env_steps_000000120.ckpt", "env_steps=230", TWO])
    # The short run told its returns at its end, so that the next line has those of fewer episodes.
    assert_same(three / "straight", three / "wider", [200, 230], num_agents=3, since=150)


@pytest.mark.slow
def test_a_run_of_two_processes_that_is_told_to_stop_goes_on_in_one(three: Path) -> None:
    process = start(three, [*THREE, "run_dir=stopped", TWO])
    while not (three / "stopped" / "metrics.csv").exists():  # after 50 env steps
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)  # to the first process alone
    code, output, errors = ended(process)
    assert code == 3 and "Traceback" not in errors, errors
    assert not is_anybody_left(process)
    (line,) = [line for line in output.splitlines() if "To go on" in line]
    checkpoint = line.rpartition("ckpt_path=")[2]
    assert (three / checkpoint).exists() and "env_steps_000000230" not in checkpoint
    run(three, [f"ckpt_path={checkpoint}", "trainer.devices=1"])
    assert_same(three / "straight", three / "stopped", [230], num_agents=3)


@pytest.mark.slow
def test_environments_in_workers_give_the_same_bits(four: tuple[Path, Path, str], tmp_path: Path) -> None:
    run(tmp_path, [*TINY, "run_dir=workers", "env_workers=2"])
    assert_same(four[0], tmp_path / "workers", [100, 200, 230])
    assert (four[0] / "meta_test.csv").read_text() == (tmp_path / "workers" / "meta_test.csv").read_text()


@pytest.mark.slow
def test_evolution_in_two_processes_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """Whole runs in one process and in two, and one of two processes that goes on in one, through three generations."""
    kept = [option for option in TINY if option not in ("meta.annealing_env_steps=100", "judge=returns")]
    evolving = [*kept, "meta=evolution", "callbacks.meta_test=null"]
    run_all((tmp_path, [*evolving, "run_dir=one"]), (tmp_path, [*evolving, "run_dir=two", TWO]))
    assert_same(tmp_path / "one", tmp_path / "two", [100, 200, 230])
    run(tmp_path, [*evolving, "run_dir=short", "env_steps=120", TWO])
    run(tmp_path, ["ckpt_path=short/checkpoints/env_steps_000000120.ckpt", "env_steps=230", "trainer.devices=1"])
    assert_same(tmp_path / "one", tmp_path / "short", [200, 230], since=150)
    before, after = (contents(tmp_path / f"one/checkpoints/env_steps_{n:09d}.ckpt") for n in (100, 230))
    name = "/state_dict/objective.head.out.weight"
    assert not torch.equal(before[name], after[name])


# ------------------------------------------------------------------------------------------------------------------ mistakes


def test_an_agent_that_breaks_in_the_second_process_is_named_by_the_first(tmp_path: Path) -> None:
    environments = "env.train=[Pendulum-v1,InvertedPendulum-v5,toy_environments:Breaking-v0]"
    one_life = ["population.lifetime_env_steps=null"]  # a fresh agent would not break
    process = start(tmp_path, [*THREE, environments, *one_life, "run_dir=here", TWO])
    code, _, errors = ended(process)
    assert code == 2
    assert re.fullmatch(r"error: critic_loss of agent 2 is (inf|nan) after \d+ updates; .*\n", errors)
    assert not is_anybody_left(process)


@pytest.mark.slow
def test_an_environment_that_fails_in_the_second_process_is_named(tmp_path: Path) -> None:
    failing = "{id: 'toy_environments:Showing-v0', kwargs: {observation: [0.0, 0.0], reward: nan}}"
    process = start(tmp_path, [*THREE, f"env.train=[Pendulum-v1,InvertedPendulum-v5,{failing}]", "run_dir=here", TWO])
    code, _, errors = ended(process)
    (told,) = re.findall("^error: .*", errors, re.MULTILINE)
    assert told.startswith("error: environment toy_environments:Showing-v0[") and "the reward is nan" in told
    assert code in (2, -signal.SIGKILL)  # its own end, or Lightning's, which kills the others of a dead process
    assert "Traceback" not in errors and not is_anybody_left(process)


def test_what_lightning_does_anyway_may_be_asked_for() -> None:
    harmless = {"fast_dev_run": False, "max_steps": -1, "overfit_batches": 0, "max_time": None, "limit_train_batches": None}
    check_trainer(OmegaConf.create(harmless))
    for key, value in {"fast_dev_run": True, "max_steps": 0, "overfit_batches": 1, "limit_train_batches": 1}.items():
        with pytest.raises(ConfigError, match=f"trainer.{key}={value} would end the run unsaved"):
            check_trainer(OmegaConf.create({**harmless, key: value}))


# ------------------------------------------------------------------------------------------------------------------- folders


def files_of(run_dir: Path) -> list[str]:
    assert OmegaConf.load(run_dir / "config.yaml").env_steps == 40
    replay = run_dir / "checkpoints" / "env_steps_000000040.replay"
    assert len(list(replay.iterdir())) == 4
    return sorted(path.name for path in run_dir.iterdir()) + sorted(path.name for path in (run_dir / "checkpoints").iterdir())


FILES = [".lock", "checkpoints", "config.yaml", "metrics.csv", "objective.json", "objective.safetensors", "provenance.json"]
FILES += ["env_steps_000000040.ckpt", "env_steps_000000040.replay"]


def test_two_processes_leave_what_one_does(four: tuple[Path, Path, str]) -> None:
    """In the folder that the first has chosen, and nowhere else."""
    one, two, printed = four
    assert sorted(path.name for path in one.parent.iterdir()) == ["one", "two"]
    assert [path.name for path in (one.parent / "two").iterdir()] == ["runs"] and list(two.parent.iterdir()) == [two]
    assert printed.count(f"Run folder: runs/{two.name} ") == 1
    names = [sorted(path.relative_to(folder) for path in folder.rglob("*")) for folder in (one, two)]
    assert names[0] == names[1] and Path("checkpoints/env_steps_000000230.replay/agent_003.safetensors") in names[0]
    assert OmegaConf.load(two / "config.yaml").callbacks.checkpoint.run_dir == f"runs/{two.name}"


def test_processes_of_a_job_get_its_overrides_and_all_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    hydra = SimpleNamespace(mode=RunMode.MULTIRUN, overrides=SimpleNamespace(task=["seed=1"]))
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: hydra)
    monkeypatch.setattr(sys, "argv", given := ["train.py", "-m", "--config-dir", "mine", "seed=1,2"])
    with launching("run"):
        assert sys.argv == ["train.py", "--config-dir", "mine", "seed=1"]
    assert sys.argv is given


def test_lightning_keeps_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """For launched processes it chooses one itself, by cores, unless a variable does."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with launching("run"):
            _set_num_threads_if_needed(1)
            assert torch.get_num_threads() == 3
        assert "OMP_NUM_THREADS" not in os.environ  # the next job of a sweep may have another number
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_torchrun_starts_one_run(tmp_path: Path) -> None:
    printed = run(tmp_path, [*SHORT, TWO, "trainer.strategy=ddp"], TORCHRUN)
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert list(tmp_path.iterdir()) == [tmp_path / "runs"] and printed.count("Run folder: ") == 1
    assert files_of(run_dir) == FILES


@pytest.mark.slow
def test_every_job_of_a_sweep_runs_in_two_processes(tmp_path: Path) -> None:
    printed = run(tmp_path, ["-m", "seed=0,1", *SHORT, TWO])
    assert list(tmp_path.iterdir()) == [tmp_path / "runs"] and printed.count("Run folder: ") == 2
    (sweep,) = (tmp_path / "runs").iterdir()
    assert sorted(path.name for path in sweep.iterdir()) == ["0", "1", "multirun.yaml"]
    for job in ("0", "1"):
        assert files_of(sweep / job) == FILES and OmegaConf.load(sweep / job / "config.yaml").seed == int(job)
    assert (sweep / "0" / "objective.safetensors").read_bytes() != (sweep / "1" / "objective.safetensors").read_bytes()
