"""Which objective goes into the package, and what its card tells."""

from pathlib import Path

import pytest

from metagenrl_pl.results import MetaTestRow
from metagenrl_pl.run_folders import Origin, Run
from ship import best_on_training_environments, scores_by_environment


def run_of(seed: int, learned: dict[str, list[float]], settings: dict[str, object] | None = None) -> Run:
    """A run that meta-trained on A and was tested on A and B, where random actions get 0 and DDPG/TD3 10."""
    rows = [
        MetaTestRow(environment, "learned", agent, 100, value, 500)
        for environment, values in learned.items()
        for agent, value in enumerate(values)
    ]
    for environment in learned:
        rows += [MetaTestRow(environment, "random", 0, 0, 0.0), MetaTestRow(environment, "critic", 0, 100, 10.0)]
    return Run(Path(f"seed_{seed}"), f"seed_{seed}", rows, Origin(seed, ("A",), settings or {}), True, 10)


def test_training_environments_choose() -> None:
    runs = [run_of(0, {"A": [5.0, 7.0], "B": [30.0]}), run_of(1, {"A": [8.0, 8.0], "B": [1.0]})]
    best, scores = best_on_training_environments(runs)
    assert best is runs[1]
    assert scores_by_environment(scores) == {
        "A": {"env_steps": 100, "agents": 2, "return": 8.0, "normalised": 0.8},
        "B": {"env_steps": 100, "agents": 1, "return": 1.0, "normalised": 0.1},
    }


def test_refuses_runs_that_differ_in_more_than_their_seed() -> None:
    runs = [run_of(0, {"A": [5.0]}, {"meta.gradient": "clip"}), run_of(1, {"A": [5.0]}, {"meta.gradient": "normalize"})]
    with pytest.raises(ValueError, match="valid are runs that differ in their seed alone, these are: .*clip.*normalize"):
        best_on_training_environments(runs)


def test_refuses_runs_that_were_not_tested_on_a_training_environment() -> None:
    with pytest.raises(ValueError, match="no run was tested on an environment that it was meta-trained on"):
        best_on_training_environments([run_of(0, {"B": [5.0]})])
