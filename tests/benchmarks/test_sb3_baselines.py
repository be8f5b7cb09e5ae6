"""Agents of Stable-Baselines3 under the protocol's conditions."""

import sys
from pathlib import Path

import numpy as np
import pytest

import sb3_baselines
from metagenrl_pl.environments.environment import Environment, EnvironmentSpec
from metagenrl_pl.evaluation.fresh_agents import fresh_seed
from metagenrl_pl.experience.collector import episode_seed
from metagenrl_pl.results.rows import read_rows
from sb3_baselines import Episodes, train_agent
from side_by_side import compose_run

PENDULUM = EnvironmentSpec("Pendulum-v1")
SMALL = [
    *(
        "env.test=[Pendulum-v1,Reacher-v5]",
        "agent.hidden_units=8",
        "agent.random_env_steps=20",
        "callbacks.meta_test.num_episodes=1",
    ),
    *("callbacks.meta_test.env_steps=50", "callbacks.meta_test.evaluate_every_env_steps=20"),
]


def command(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["sb3_baselines.py", "--out", str(folder), *arguments])
    sb3_baselines.main()


def test_agents_are_tested_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command(tmp_path, monkeypatch, *SMALL, "--seeds", "0", "2")
    rows = read_rows(tmp_path / "ppo" / "meta_test.csv")
    agents = [("Pendulum-v1", 0), ("Reacher-v5", 0), ("Pendulum-v1", 2), ("Reacher-v5", 2)]
    assert [(row.environment, row.seed, row.env_steps) for row in rows] == [(*agent, n) for agent in agents for n in (20, 40, 50)]
    assert {row.method for row in rows} == {"ppo"} and all(row.episode_return < 0 for row in rows)

    capsys.readouterr()
    command(tmp_path, monkeypatch, *SMALL, "--seeds", "0", "2")  # nothing is left to do
    file = tmp_path / "ppo" / "meta_test.csv"
    assert capsys.readouterr().out == f"{file} has all agents already\n" and read_rows(file) == rows
    with pytest.raises(
        SystemExit, match=r"ppo/meta_test.csv holds an agent of Pendulum-v1, seed 0, that was tested at other env st"
    ):
        command(tmp_path, monkeypatch, *SMALL, "callbacks.meta_test.env_steps=40")
    with pytest.raises(SystemExit, match=r"ppo holds a run of other settings \(agent.hidden_units: 8, not 4\)"):
        command(tmp_path, monkeypatch, *SMALL, "agent.hidden_units=4")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("env.test=[CartPole-v1]", "environment CartPole-v1: its actions are"),
        ("agent.hidden=3", "^error: .*hidden"),
        ("callbacks.meta_test=null", "^error: callbacks.meta_test is null; valid is a meta-test"),
    ],
)
def test_mistakes_are_told_in_a_line(override: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=words):
        command(tmp_path, monkeypatch, override)
    assert not any(tmp_path.iterdir())


def test_a_missing_library_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"stable-baselines3 is not installed; pip install -e \"\.\[train,sb3\]\""):
        command(tmp_path, monkeypatch)


@pytest.mark.parametrize("method", sb3_baselines.SB3_METHODS)
def test_an_agent_follows_from_its_number(method: str) -> None:
    settings = compose_run(["experiment=protocol", *SMALL])
    first, again, other = (train_agent((method, PENDULUM, number), settings) for number in (0, 0, 1))
    assert first == again
    assert all(row.episode_return != another.episode_return for row, another in zip(first, other, strict=True))


def test_episodes_are_those_of_a_meta_test() -> None:
    seed = fresh_seed(PENDULUM, 3)
    episodes, environment = Episodes(PENDULUM, seed), Environment(PENDULUM)
    for number in range(2):
        np.testing.assert_array_equal(episodes.reset(seed=9)[0], environment.reset(episode_seed(seed, number)))
        for action in ([0.5], [-1.0]):
            observation, *rest, _ = episodes.step(np.array(action, np.float32))
            expected, *others = environment.step(np.array(action, np.float32))
            np.testing.assert_array_equal(observation, expected)
            assert rest == others
