"""The examples run as their users run them."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from examples.own_objective import Blend
from metagenrl_pl.objectives import LearnedObjective
from metagenrl_pl.results.rows import read_rows

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "plain_torch.py"


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """In a folder of its own, with nothing of the checkout but the library in reach."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLE), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("kind", ["as in the paper", "looks at the critic", "comes with the package"])
def test_plain_torch(kind: str, tmp_path: Path) -> None:
    """A good episode of Pendulum. The printed episodes begin alike, so only a policy that has changed returns something else."""
    path = tmp_path / "objective.safetensors"
    LearnedObjective(hidden_units=8, use_critic_gradient=kind == "looks at the critic").save(path)
    given = [] if kind == "comes with the package" else ["--objective", str(path)]
    done = run(*given, "--env-steps", "220", "--seed", "3", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"^Pendulum-v1  env steps +([\d,]+)  mean return (-?[\d.]+)$", done.stdout, re.MULTILINE)
    assert [int(steps) for steps, _ in lines] == [0, 44, 88, 132, 176, 220]
    returns = [float(value) for _, value in lines]
    assert returns[0] != returns[-1]
    assert all(-2000 < value < 0 for value in returns)  # a step of Pendulum costs at most 16.3, an episode has 200


def test_plain_torch_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "--objective", "nowhere"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert str(caught.value).startswith("objective.path=nowhere: no such file") and "\n" not in str(caught.value)


def test_an_objective_of_ones_own_is_meta_trained_kept_and_used(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}

    def train(*arguments: str) -> None:
        common = ["compile=false", "agent.hidden_units=8", "agent.num_windows=3", "agent.warmup_env_steps=20", "env_workers=0"]
        command = [sys.executable, str(ROOT / "train.py"), *arguments, *common]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr

    tests = ["callbacks.meta_test.env_steps=30", "callbacks.meta_test.evaluate_every_env_steps=30", "env.test=Pendulum-v1"]
    train(
        "--config-dir",
        str(ROOT / "examples" / "conf"),
        "experiment=debug",
        "objective=blend",
        "env_steps=80",
        "run_dir=made",
        *tests,
    )
    assert {row.method for row in read_rows(tmp_path / "made" / "meta_test.csv")} >= {"learned", "untrained"}
    objective = Blend.load(tmp_path / "made" / "objective.safetensors")
    assert isinstance(objective, Blend) and not objective.log_weights.equal(Blend(seed=0).log_weights)
    load = (
        "objective=frozen",
        "objective._target_=examples.own_objective.Blend.load",
        "objective.path=made/objective.safetensors",
    )
    train("experiment=meta_test", *load, "env=pendulum", "env_steps=30", "population.size=1", "run_dir=used")
    assert {row.method for row in read_rows(tmp_path / "used" / "meta_test.csv")} == {"learned"}
