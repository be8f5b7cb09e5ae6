"""The protocol in small: its runs, what they keep, and that what has ended is not run again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from metagenrl_pl.results import read_rows
from metagenrl_pl.run_folders import find_runs, regimes_of

ROOT = Path(__file__).parents[1]
SMALL = [
    *("env_steps=60", "updates_per_batch=10", "compile=false", "population.size=3", "population.lifetime_env_steps=null"),
    *("agent.hidden_units=8", "agent.num_windows=3", "agent.window_length=3", "agent.random_env_steps=20"),
    *("agent.warmup_env_steps=20", "env.test=[Pendulum-v1,InvertedPendulum-v5,Hopper-v5]", "callbacks.meta_test.seeds=[0,1]"),
    *(
        "callbacks.meta_test.env_steps=40",
        "callbacks.meta_test.evaluate_every_env_steps=20",
        "callbacks.meta_test.num_episodes=1",
    ),
    *("logger=csv", "env_workers=0"),
]


def protocol(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / "protocol.py"), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_protocol(tmp_path: Path) -> None:
    arguments = [*SMALL, "--seeds", "0", "1", "--jobs", "2", "--keep", "kept"]
    done = protocol(tmp_path, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = (read_rows(tmp_path / "kept" / "protocol" / f"seed_{seed}" / "meta_test.csv") for seed in (0, 1))
    methods = {"learned", "untrained", "reinforce", "critic", "random"}
    assert ({row.method for row in first}, {row.method for row in second}) == (methods, {"learned"})
    assert {row.environment for row in second} == {"Pendulum-v1", "InvertedPendulum-v5", "Hopper-v5"}
    runs, _ = find_runs([tmp_path / "kept"])
    (regime,) = regimes_of(runs)
    assert [run.origin.seed for run in regime.runs if run.origin] == [0, 1]
    page = (tmp_path / "runs" / "protocol" / "report.html").read_text()
    assert "unseen" in page and "probability of improvement" in page.lower()

    again = protocol(tmp_path, *arguments)
    assert again.returncode == 0 and "exit code" not in again.stdout


def test_a_run_that_fails_is_named(tmp_path: Path) -> None:
    done = protocol(tmp_path, *SMALL, "agent.num_windows=0", "--seeds", "0")
    assert done.returncode == 1 and "1 of 1 runs did not end; see " in done.stderr and "Traceback" not in done.stderr
    assert "num_windows must be at least 1" in (tmp_path / "runs" / "protocol" / "protocol" / "seed_0.log").read_text()


@pytest.mark.parametrize("arguments", [["--variants", "nothing"], ["--levers", "--variants", "nothing"]])
def test_variants_are_those_of_the_levers(arguments: list[str], tmp_path: Path) -> None:
    done = protocol(tmp_path, *arguments)
    assert done.returncode == 2 and "--variants nothing: " in done.stderr
