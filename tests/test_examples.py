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
