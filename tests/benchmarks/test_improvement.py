"""The tables of final returns and of probabilities of improvement, from the repository's own results."""

import re
import shutil
from pathlib import Path

import pytest

from improvement import main, scores_in, tables
from metagenrl_pl.results.rows import read_rows

RESULTS = Path(__file__).parents[2] / "results" / "paper_inputs"


def test_tables_of_three_seeds_and_other_methods() -> None:
    of_learned = [RESULTS / f"seed_{seed}" for seed in range(3)]
    lines = tables(scores_in(of_learned, [RESULTS / "baselines"])[0]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert cells[0] == ["", "HalfCheetah-v5", "Hopper-v5", "InvertedDoublePendulum-v5", "Swimmer-v5"]
    assert [row[0] for row in cells[2:6]] == ["learned, seed 0", "learned, seed 1", "learned, seed 2", "learned objective"]
    assert cells[2][3] == "8,488, 9,356, 1,566" and cells[5][3] == "3,151 (9)"
    of_reinforce = [row for row in cells if row[0] == "off-policy REINFORCE (GAE)"]
    assert of_reinforce[0][1:] == ["-427 (6)", "264 (6)", "318 (6)", "31 (6)"]
    assert of_reinforce[1][1].startswith("0.40 [") and of_reinforce[1][2:] == ["0.74", "0.04", "0.76", "0.06"]


def test_objectives_of_other_folders_are_not_part_of_the_method() -> None:
    scores, notes = scores_in([RESULTS / "seed_0"], [RESULTS])
    assert not notes
    assert {score.meta_training_seed for score in scores if score.method == "learned"} == {0}
    assert {score.method for score in scores} >= {"reinforce", "critic", "untrained", "random"}


def test_some_environments_can_be_chosen() -> None:
    of_learned = [RESULTS / f"seed_{seed}" for seed in range(3)]
    shown = tables(scores_in(of_learned, [RESULTS / "baselines"], ["Hopper-v5", "Swimmer-v5"])[0])
    assert "|  | Hopper-v5 | Swimmer-v5 |" in shown and "| off-policy REINFORCE (GAE) | 0.05 [" in shown  # of 0.04 and 0.06
    with pytest.raises(ValueError, match="^Walker2d-v5: no learned objective was tested there; valid: HalfCheetah-v5, Hopper-v5"):
        scores_in(of_learned, [], ["Walker2d-v5"])


def test_a_folder_without_objectives_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["improvement.py", str(RESULTS / "baselines")])
    with pytest.raises(SystemExit, match="no learned objective was tested there"):
        main()


def test_what_is_left_out_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Another objective of the same seed, with agents of the same numbers, does not count."""
    shutil.copytree(RESULTS / "seed_0", tmp_path / "copy")
    file = tmp_path / "copy" / "meta_test.csv"
    file.write_text(re.sub(r"\d+\.\d+(?=,\d*$)", "1.0", file.read_text(), flags=re.M))
    monkeypatch.setattr("sys.argv", ["improvement.py", str(RESULTS / "seed_0"), str(tmp_path / "copy")])
    main()
    printed, told = capsys.readouterr()
    assert "8,488, 9,356, 1,566" in printed and told.startswith("note: ") and "copy" in told


def test_agents_with_other_settings_are_not_compared() -> None:
    """Those of the protocol learn from 16 windows of 10 steps, and these from 32 of 20."""
    own, baselines = RESULTS / "seed_1", RESULTS.parent / "protocol" / "baselines"
    alone, _ = scores_in([own], [])
    scores, notes = scores_in([own], [baselines])
    assert scores == alone and any("is not compared: its agents differ in agent.num_windows" in note for note in notes)


def test_objectives_whose_agents_have_other_settings_are_not_one_method() -> None:
    alone, _ = scores_in([RESULTS / "seed_1"], [])
    scores, notes = scores_in([RESULTS / "seed_1", RESULTS.parent / "protocol" / "light" / "seed_0"], [])
    assert scores == alone and any("is not compared: its agents differ in agent.num_windows" in note for note in notes)


def test_what_is_left_out_of_the_other_methods_is_told(tmp_path: Path) -> None:
    """Agents of the same numbers with other returns, and a run without results."""
    for name in ("baselines", "copy"):
        shutil.copytree(RESULTS / "baselines" / "ddpg_seed_1", tmp_path / name)
    file = tmp_path / "copy" / "meta_test.csv"
    file.write_text(re.sub(r"-?\d+\.\d+(?=,\d*$)", "1.0", file.read_text(), flags=re.M))
    (tmp_path / "untested").mkdir()
    (tmp_path / "untested" / "config.yaml").write_text("seed: 0\n")
    scores, notes = scores_in([RESULTS / "seed_0"], [tmp_path])
    assert [note.split(" ")[0] for note in notes].count("critic") == 4 and any(
        note.startswith("untested is left out") for note in notes
    )
    assert all(score.final != 1.0 for score in scores)


def test_longer_tests_can_be_compared_with_shorter_ones() -> None:
    """Cut to the length of the shorter ones, not judged at the last evaluation of the longer."""
    folder = RESULTS.parent / "paper_inputs_cooled_protocol_length"
    short, long = (
        {score.agent: score.final for score in scores_in([folder / "seed_0"], [folder], None, env_steps)[0]}
        for env_steps in (12000, 40000)
    )
    rows = read_rows(folder / "seed_0" / "meta_test.csv")
    for row in (row for row in rows if row.env_steps in (12000, 40000)):
        assert (short if row.env_steps == 12000 else long)[row.environment, "learned", 0, row.seed] == row.episode_return
    assert short.keys() == long.keys() and {agent[1] for agent in short} == {"learned", "reinforce"}
