"""RL2: what a trial keeps and resets, and runs from the command line."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_environments import Counting  # noqa: F401 (which registers them all)

import rl2
from metagenrl_pl.environments.environment import Environment, EnvironmentSpec
from metagenrl_pl.experience.collector import episode_seed
from metagenrl_pl.results.rows import read_rows
from side_by_side import compose_run

SMALL = [
    *("env.train=[Reacher-v5,toy_environments:Approach-v0]", "env.test=[Pendulum-v1,Hopper-v5]", "agent.hidden_units=4"),
    *(
        "callbacks.meta_test.seeds=[0,1]",
        "callbacks.meta_test.env_steps=120",
        "callbacks.meta_test.evaluate_every_env_steps=50",
    ),
]
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
    arguments = ["--seeds", "1", "--env-steps", "10", "--trial-env-steps", "50", *SMALL]
    command(tmp_path, monkeypatch, *arguments)
    assert "Hopper-v5 is left out: it has more observations or actions" in capsys.readouterr().out
    file = tmp_path / "seed_1" / "meta_test.csv"
    rows = read_rows(file)
    assert [(row.environment, row.method, row.seed, row.env_steps) for row in rows] == [
        ("Pendulum-v1", "rl2", number, n) for number in (2, 3) for n in (50, 100, 120)
    ]
    assert len({row.episode_return for row in rows}) == len(rows) and all(row.episode_return < 0 for row in rows)
    command(tmp_path, monkeypatch, *arguments)
    assert capsys.readouterr().out == f"{file.parent} has ended already\n" and read_rows(file) == rows
    with pytest.raises(SystemExit, match=r"seed_1 holds a run of other settings \(env_steps: 10, not 20\)"):
        command(tmp_path, monkeypatch, *arguments, "--env-steps", "20")


@pytest.mark.slow
def test_a_seed_that_was_stopped_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = compose_run(["experiment=protocol", *SMALL])
    whole = rl2.meta_test

    def stopped(trained: Any, spec: EnvironmentSpec, number: int, *rest: Any) -> Any:
        if number == 3:
            raise KeyboardInterrupt
        return whole(trained, spec, number, *rest)

    monkeypatch.setattr(rl2, "meta_test", stopped)
    with pytest.raises(KeyboardInterrupt):
        rl2.run_seed(settings, 1, 10, 50, tmp_path)
    monkeypatch.setattr(rl2, "meta_test", whole)
    rl2.run_seed(settings, 1, 10, 50, tmp_path)
    assert {row.seed for row in read_rows(tmp_path / "seed_1" / "meta_test.csv")} == {2, 3}


@pytest.mark.slow
def test_rewards_are_normalised_in_each_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pendulum's are ten times InvertedPendulum's. Both become about as large."""
    pytest.importorskip("sb3_contrib")
    settings = compose_run(["experiment=protocol", "env.train=[Pendulum-v1,InvertedPendulum-v5]"])
    _, environment = rl2.meta_train(settings, 0, 512, 200, (4, 1))
    rewards = [np.abs(environment.step(np.zeros((2, 1), np.float32))[1]) for _ in range(100)]
    pendulum, inverted_pendulum = np.mean(rewards, 0)
    environment.close()
    assert 1 / 3 < pendulum / inverted_pendulum < 3


def test_what_is_wider_than_all_training_environments_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"env\.test: no environment has at most 3 observations and 1 actions"):
        command(tmp_path, monkeypatch, "env.train=[Pendulum-v1]", "env.test=[Hopper-v5]")


def test_mistakes_are_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="^error: .*hidden"):
        command(tmp_path, monkeypatch, "agent.hidden=3")
    with pytest.raises(SystemExit, match="^error: seed=3 is set by this command; valid is --seeds"):
        command(tmp_path, monkeypatch, "seed=3")
    with pytest.raises(SystemExit, match="^error: callbacks.meta_test is null; valid is a meta-test"):
        command(tmp_path, monkeypatch, "callbacks.meta_test=null")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"sb3-contrib is not installed; pip install -e \"\.\[train,baselines\]\""):
        command(tmp_path, monkeypatch)
