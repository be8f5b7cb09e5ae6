"""Which objective goes into the package, and what its card tells."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from metagenrl_pl.objectives import LearnedObjective
from metagenrl_pl.results.origin import Origin
from metagenrl_pl.results.rows import MetaTestRow, append_rows
from metagenrl_pl.results.run_folders import Run
from metagenrl_pl.results.scores import Score
from ship import best_on_validation, scores_by_environment


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


def best(runs: list[Run], others: list[Run] | None = None) -> tuple[Run, list[Score]]:
    return best_on_validation(runs, others or [], ["B"])


def test_validation_environments_choose() -> None:
    runs = [run_of(0, {"A": [9.0, 9.0], "B": [5.0], "C": [90.0]}), run_of(1, {"A": [8.0, 8.0], "B": [6.0], "C": [1.0]})]
    chosen, scores = best(runs)
    assert chosen is runs[1]
    assert scores_by_environment(scores) == {
        "A": {"env_steps": 100, "agents": 2, "return": 8.0, "normalised": 0.8},
        "B": {"env_steps": 100, "agents": 1, "return": 6.0, "normalised": 0.6},
        "C": {"env_steps": 100, "agents": 1, "return": 1.0, "normalised": 0.1},
    }


def test_tests_of_an_objective_count_with_the_run_that_made_it() -> None:
    made = [run_of(0, {"A": [9.0]}), run_of(1, {"A": [9.0]})]
    tested = [
        run_of(seed, {"B": [value]})._replace(folder=Path(f"test_{seed}"), meta_trains=False)
        for seed, value in ((0, 7.0), (1, 3.0))
    ]
    chosen, scores = best([*made, *tested])
    assert chosen is made[0] and {score.environment for score in scores} == {"A", "B"}


def test_what_fails_in_training_is_not_taken() -> None:
    runs = [run_of(0, {"A": [9.0, 4.0], "B": [20.0]}), run_of(1, {"A": [8.0, 8.0], "B": [1.0]})]
    assert best(runs)[0] is runs[1]
    with pytest.raises(
        ValueError, match=r"no objective can be taken; seed 0: an agent in A, where it was meta-trained, scored 0\.40"
    ):
        best(runs[:1])


def test_refuses_runs_that_differ_in_more_than_their_seed() -> None:
    runs = [run_of(0, {"A": [5.0]}, {"meta.gradient": "clip"}), run_of(1, {"A": [5.0]}, {"meta.gradient": "normalize"})]
    with pytest.raises(ValueError, match="valid are runs that differ in their seed alone, these are: .*clip.*normalize"):
        best(runs)


def test_baselines_may_lie_elsewhere() -> None:
    whole = run_of(0, {"A": [5.0], "B": [5.0]})
    alone = whole._replace(folder=Path("alone"), rows=[row for row in whole.rows if row.method == "learned"])
    with pytest.raises(ValueError, match="no run has random or critic there"):
        best([alone])
    assert best([alone], [whole])[1][0].normalised_final == 0.5


def test_a_run_that_diverged_is_not_taken() -> None:
    runs = [run_of(0, {"A": [9.0], "B": [float("nan"), 9.0]}), run_of(1, {"A": [8.0], "B": [7.0, 8.0]})]
    assert best(runs)[0] is runs[1]


def ship(runs: Path, to: Path) -> subprocess.CompletedProcess[str]:
    """Run the command on the objective of a run that was tested on A and B."""
    LearnedObjective(hidden_units=8).save(runs / "objective.safetensors", {"seed": 3, "training_environments": ["A"]})
    append_rows(runs / "meta_test.csv", run_of(3, {"A": [8.0], "B": [2.0]}).rows)
    script = Path(__file__).parents[2] / "benchmarks" / "ship.py"
    command = [sys.executable, str(script), str(runs), "--name", "mine", "--validation", "B", "--to", str(to)]
    environment = {**os.environ, "PYTHONPATH": str(script.parents[1] / "src")}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)


def test_the_card_tells_where_it_comes_from(tmp_path: Path) -> None:
    done = ship(tmp_path, tmp_path / "package")
    assert done.returncode == 0, done.stderr
    card = LearnedObjective.load(tmp_path / "package" / "mine.safetensors").card
    assert (card["seed"], card["licence"], card["made_by"]) == (3, "Apache-2.0", "python benchmarks/protocol.py")
    assert card["chosen_by"] == ["B"]
    assert card["scores"]["B"] == {"env_steps": 100, "agents": 1, "return": 2.0, "normalised": 0.2}


def test_a_folder_that_cannot_be_made_is_told_in_a_line(tmp_path: Path) -> None:
    done = ship(tmp_path, Path("/proc/x"))
    assert done.returncode == 2 and done.stderr.endswith("error: [Errno 2] No such file or directory: '/proc/x'\n")
    assert "Traceback" not in done.stderr


def test_refuses_runs_that_were_not_tested_where_it_counts() -> None:
    with pytest.raises(ValueError, match="seed 0: not tested in A"):
        best([run_of(0, {"B": [5.0]})])
    with pytest.raises(ValueError, match="seed 0: no result in B"):
        best([run_of(0, {"A": [9.0]})])


def test_seeds_are_compared_in_the_same_environments() -> None:
    runs = [run_of(0, {"A": [9.0], "B": [9.0]}), run_of(1, {"A": [9.0], "B": [6.0], "C": [2.0]})]
    chosen, _ = best_on_validation(runs, [], ["B", "C"])
    assert chosen is runs[1]
    with pytest.raises(ValueError, match="seed 0: no result in C"):
        best_on_validation(runs[:1], [], ["B", "C"])
