"""Curves of a population, read from `metrics.csv`."""

from pathlib import Path

import numpy as np

from metagenrl_pl.results.training_curves import agent_curves, mean_curve, thin_out


def test_curves_of_agents_by_environment_and_kind(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(
        "env_steps,agreement/A/agent_0,episode_return/A/agent_1,evaluation_return/B/agent_2\n100,0.5,,1\n200,nan,3,2\n300,0.7,,\n"
    )
    assert agent_curves(tmp_path / "gone.csv", ["agreement"]) == {}
    curves = agent_curves(tmp_path / "metrics.csv", ["agreement", "episode_return"])
    assert {name: set(kinds) for name, kinds in curves.items()} == {"A": {"agreement", "episode_return"}}
    ((env_steps, values),) = curves["A"]["agreement"]
    assert (env_steps.tolist(), values.tolist()) == ([100, 300], [0.5, 0.7])


def test_the_mean_begins_where_all_have_begun() -> None:
    env_steps, mean = mean_curve([(np.array([100, 300]), np.array([10.0, 30.0])), (np.array([200, 300]), np.array([40.0, 20.0]))])
    assert (env_steps.tolist(), mean.tolist()) == ([200, 300], [30.0, 25.0])


def test_thin_curves_are_means_of_neighbours() -> None:
    curve = (np.arange(10), np.arange(10.0) ** 2)
    assert thin_out(curve, 10) is curve
    env_steps, values = thin_out(curve, 5)
    assert (env_steps.tolist(), values.tolist()) == ([0.5, 2.5, 4.5, 6.5, 8.5], [0.5, 6.5, 20.5, 42.5, 72.5])
