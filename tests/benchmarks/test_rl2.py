"""RL2: what a trial keeps and resets, and runs from the command line."""

import sys
from pathlib import Path

import numpy as np
import pytest
from toy_environments import Counting  # noqa: F401 (which registers them all)

import rl2
from metagenrl_pl.environments.environment import Environment, EnvironmentSpec
from metagenrl_pl.experience.collector import episode_seed
from metagenrl_pl.results.rows import read_rows

SIZES = (4, 3)  # wider than Approach's 2 observations and 1 action


def test_a_trial_goes_on_over_episodes() -> None:
    trial, environment = rl2.Trial(EnvironmentSpec("Approach-v0"), 5, SIZES, 10), Environment(EnvironmentSpec("Approach-v0"))
    assert trial.observation_space.shape == (4 + 3 + 2,) and trial.action_space.shape == (3,)
    following = trial.reset()[0]
    for episode in range(2):  # of four steps each
        expected, first = environment.reset(episode_seed(5, episode)), following
        np.testing.assert_array_equal(first[:2], expected)
        assert first[-1] == 1 and not first[2:4].any()
        # The first step of a trial has seen no action and no reward, that of a later episode those that ended the one before.
        assert np.any(first[4:-1]) == (episode > 0)
        total = 0.0
        for step in range(4):
            action = np.array([0.25 * (step + 1), 9.0, 9.0], np.float32)  # padding is not looked at
            following, reward, terminated, truncated, info = trial.step(action)
            observation, own_reward, own_terminated, _ = environment.step(action[:1])
            total += own_reward
            assert (reward, terminated, truncated) == (own_reward, False, False)
            assert following[4] == action[0] and not following[5:7].any() and following[-2] == np.float32(reward)
            assert following[-1] == own_terminated == (step == 3)
            assert info == ({"episode_return": pytest.approx(total)} if own_terminated else {})
            if not own_terminated:
                np.testing.assert_array_equal(following[:2], observation)
    trial.step(action)
    assert trial.step(action)[3]  # the tenth step ends the trial
    again = trial.reset()[0]
    np.testing.assert_array_equal(again[:2], environment.reset(episode_seed(5, 3)))  # it had begun the third episode, 2
    assert not again[4:-1].any() and again[-1] == 1


def command(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["rl2.py", "--out", str(folder), *arguments])
    rl2.main()


def test_each_seed_is_meta_trained_and_tested_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [
        *("env.train=[Pendulum-v1,toy_environments:Approach-v0]", "env.test=[Reacher-v5]", "agent.hidden_units=4"),
        *(
            "callbacks.meta_test.seeds=[0,1]",
            "callbacks.meta_test.env_steps=120",
            "callbacks.meta_test.evaluate_every_env_steps=50",
        ),
    ]
    arguments = ["--seeds", "1", "--env-steps", "10", "--trial-env-steps", "50", *small]
    command(tmp_path, monkeypatch, *arguments)
    rows = read_rows(tmp_path / "meta_test.csv")
    assert [(row.environment, row.method, row.seed, row.env_steps) for row in rows] == [
        ("Reacher-v5", "rl2", number, n) for number in (2, 3) for n in (50, 100, 120)
    ]
    assert len({row.episode_return for row in rows}) == len(rows) and all(row.episode_return < 0 for row in rows)
    capsys.readouterr()
    command(tmp_path, monkeypatch, *arguments)
    assert capsys.readouterr().out == "" and read_rows(tmp_path / "meta_test.csv") == rows


def test_mistakes_are_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="^error: .*hidden"):
        command(tmp_path, monkeypatch, "agent.hidden=3")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"sb3-contrib is not installed; pip install -e \"\.\[train,baselines\]\""):
        command(tmp_path, monkeypatch)
