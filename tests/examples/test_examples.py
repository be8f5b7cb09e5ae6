"""The examples run as their users run them."""

import itertools
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from torch import Tensor, nn

from examples.own_objective import Blend
from metagenrl_pl.integrations import actor_loss
from metagenrl_pl.objectives import LearnedObjective
from metagenrl_pl.results.rows import read_rows

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "td3_learned_objective.py"


@pytest.mark.parametrize("objective", ["as in the paper", "light", "mixture"])
def test_td3_with_a_learned_objective(
    objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two environments of Pendulum with episodes of 200 steps; updates begin after the first ones."""
    if objective == "as in the paper":
        LearnedObjective(hidden_units=8).save(path := tmp_path / "objective.safetensors")
        objective = str(path)
    seen: list[Tensor] = []

    def keep(objective: Any, policy: nn.Module, *arguments: Any) -> Tensor:
        seen.append(nn.utils.parameters_to_vector(policy.parameters()).detach().clone())
        return actor_loss(objective, policy, *arguments)

    monkeypatch.setattr("metagenrl_pl.integrations.actor_loss", keep)
    arguments = ["--total-timesteps", "480", "--learning-starts", "420", "--num-envs", "2", "--batch-size", "8"]
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "--objective", objective, *arguments])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    lines = re.findall(r"^steps +([\d,]+)  mean return of the newest episodes +(-?[\d.]+)", capsys.readouterr().out, re.MULTILINE)
    assert [int(steps) for steps, _ in lines] == [432, 480]
    assert all(-2000 < float(value) < 0 for _, value in lines)  # a step of Pendulum costs at most 16.3
    assert len(seen) > 5 and all(not torch.equal(one, other) for one, other in itertools.pairwise(seen))  # it learns


def test_td3_with_a_learned_objective_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "--objective", "nowhere.safetensors"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert str(caught.value).startswith("error: nowhere.safetensors: no such file") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("Pendulum-v9", "error: Environment version `v9` for environment `Pendulum` doesn't exist"),
        ("Acrobot-v1", "error: a space is Discrete(3); valid is a Box of one dimension"),
        ("Unbounded-v0", "error: the actions are Box(-inf, inf, (1,), float32); valid are bounded ones"),
    ],
)
def test_environments_that_do_not_fit_are_named(env_id: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    box = gym.spaces.Box(-np.inf, np.inf, (1,))
    gym.register("Unbounded-v0", lambda **_: gym.wrappers.TransformAction(gym.make("Pendulum-v1"), lambda action: action, box))
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "--env-id", env_id])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert str(caught.value).startswith(message)
    del gym.registry["Unbounded-v0"]


def test_actions_of_64_bits_work(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    box = gym.spaces.Box(-2, 2, (1,), np.float64)
    gym.register("Wide-v0", lambda **_: gym.wrappers.TransformAction(gym.make("Pendulum-v1"), lambda action: action, box))
    monkeypatch.setattr(
        sys, "argv", [str(EXAMPLE), "--env-id", "Wide-v0", "--total-timesteps", "210", "--learning-starts", "205"]
    )
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert "steps       210" in capsys.readouterr().out
    del gym.registry["Wide-v0"]


def test_few_lines_differ_from_td3() -> None:
    assert EXAMPLE.read_text().count("# learned\n") <= 10


@pytest.mark.slow
def test_an_objective_of_ones_own_is_meta_trained_kept_and_used(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}

    def train(*arguments: str) -> str:
        common = ["compile=false", "agent.hidden_units=8", "agent.num_windows=3", "agent.warmup_env_steps=20", "env_workers=0"]
        command = [sys.executable, str(ROOT / "train.py"), *arguments, *common]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    tests = ["callbacks.meta_test.env_steps=30", "callbacks.meta_test.evaluate_every_env_steps=30", "env.test=Pendulum-v1"]
    printed = train(
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
    (command,) = re.findall(r"^  python train.py (experiment=meta_test .*) env.train=", printed, re.MULTILINE)
    train(*command.split(), "env=pendulum", "env_steps=30", "population.size=1", "run_dir=used")
    assert {row.method for row in read_rows(tmp_path / "used" / "meta_test.csv")} == {"learned", "critic", "random"}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "env_steps"), [("use_an_objective", "1500"), ("meta_train_your_own", "600")])
def test_a_notebook_runs_and_is_shown_with_its_pictures(
    name: str, env_steps: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTEBOOK_ENV_STEPS", env_steps)
    path = ROOT / "examples" / f"{name}.ipynb"
    shown = nbformat.read(path, 4)
    NotebookClient(nbformat.read(path, 4), timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    pictures = [output for cell in shown.cells for output in cell.get("outputs", ()) if "image/png" in output.get("data", ())]
    assert pictures and "/tmp" not in str([cell.source for cell in shown.cells])
