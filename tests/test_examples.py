"""The examples run as their users run them."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from metagenrl_pl.objectives import LearnedObjective

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "plain_torch.py"


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """In a folder of its own, with nothing of the checkout but the library in reach."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLE), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def objective(tmp_path: Path) -> str:
    path = tmp_path / "objective.safetensors"
    LearnedObjective(hidden_units=8).save(path)
    return str(path)


def test_plain_torch(objective: str, tmp_path: Path) -> None:
    """A good episode of Pendulum. The printed episodes begin alike, so only a policy that has changed returns something else."""
    done = run("--objective", objective, "--env-steps", "220", "--seed", "3", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"^Pendulum-v1  env steps +([\d,]+)  mean return (-?[\d.]+)$", done.stdout, re.MULTILINE)
    assert [int(steps) for steps, _ in lines] == [0, 44, 88, 132, 176, 220]
    returns = [float(value) for _, value in lines]
    assert returns[0] != returns[-1]
    assert all(-2000 < value < 0 for value in returns)  # a step of Pendulum costs at most 16.3, an episode has 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "--objective is missing: "), (["--objective", "nowhere"], "objective.path=nowhere: no such file")],
)
def test_plain_torch_says_what_is_missing(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *arguments])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
