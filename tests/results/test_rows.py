"""`meta_test.csv`."""

from pathlib import Path

import pytest

from metagenrl_pl.common.files import ForeignFileError
from metagenrl_pl.results.rows import (
    COLUMNS,
    MetaTestRow,
    append_rows,
    drop_rows,
    newest_stage,
    read_rows,
)

LEARNED = [MetaTestRow("Hopper-v5", "learned", seed, 500, seed + 1 / 3, stage) for stage in (1000, 2000) for seed in (0, 1)]
BASELINE = [MetaTestRow("Hopper-v5", "critic", 0, 500, -2.5)]
UNTRAINED = [MetaTestRow("Hopper-v5", "untrained", 0, 500, -7.0, 0)]


def test_rows_come_back_as_they_went(tmp_path: Path) -> None:
    path = tmp_path / "run" / "meta_test.csv"
    assert read_rows(path) == []

    append_rows(path, LEARNED[:1])
    append_rows(path, LEARNED[1:] + BASELINE)

    assert read_rows(path) == LEARNED + BASELINE
    lines = path.read_text().splitlines()
    assert lines[0] == "environment,method,seed,env_steps,return,meta_training_env_steps"
    assert lines[-1] == "Hopper-v5,critic,0,500,-2.5,"
    assert len(lines) == 6


@pytest.mark.parametrize("kept_bytes", [0, 5, 70, 90])
def test_a_half_written_line_is_skipped_and_then_cut_off(tmp_path: Path, kept_bytes: int) -> None:
    path = tmp_path / "meta_test.csv"
    append_rows(path, LEARNED[:1])
    whole = path.read_bytes()
    assert whole.index(b"\n") < 70 < 90 < len(whole) - 1  # header cut at 0 and 5, the row at 70 and 90
    path.write_bytes(whole[:kept_bytes])

    assert read_rows(path) == []
    append_rows(path, BASELINE)

    assert read_rows(path) == BASELINE
    assert len(path.read_text().splitlines()) == 2


def test_a_row_made_twice_counts_once_and_the_later_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "meta_test.csv"
    again = BASELINE[0]._replace(episode_return=4.0)
    append_rows(path, [*BASELINE, *LEARNED, again])
    assert read_rows(path) == [again, *LEARNED]


def test_rows_that_are_made_again_are_dropped_alone(tmp_path: Path) -> None:
    path = tmp_path / "meta_test.csv"
    drop_rows(path, lambda row: True)
    assert not path.exists()
    append_rows(path, UNTRAINED + LEARNED + BASELINE)

    drop_rows(path, lambda row: (row.meta_training_env_steps or 0) > 2000)
    assert read_rows(path) == UNTRAINED + LEARNED + BASELINE
    drop_rows(path, lambda row: (row.meta_training_env_steps or 0) > 1999)
    assert read_rows(path) == UNTRAINED + LEARNED[:2] + BASELINE
    append_rows(path, LEARNED[2:])
    assert sorted(read_rows(path), key=str) == sorted(UNTRAINED + LEARNED + BASELINE, key=str)


def test_refuses_a_file_with_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "meta_test.csv"
    path.write_text("environment,reward\nHopper-v5,1\n")
    with pytest.raises(ValueError, match=r"meta_test.csv has the columns environment,reward"):
        append_rows(path, BASELINE)
    with pytest.raises(ValueError, match=r"meta_test.csv has the columns environment,reward"):
        read_rows(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Hopper-v5,learned,x,1,1.0,1", "seed is 'x'; valid is a whole number from 0"),
        ("Hopper-v5,learned,0,1e400,1.0,1", "env_steps is '1e400'; valid is a whole number from 0"),
        ("Hopper-v5,learned,0,1,good,1", "return is 'good'; valid is a number"),
        ("Hopper-v5,learned,0,1,1.0,-1", "meta_training_env_steps is '-1'; valid is a whole number from 0"),
        ("Hopper-v5,learned,0,1,1.0", "5 cells; valid is 6, as in its header"),
    ],
)
def test_refuses_a_file_with_other_content(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "meta_test.csv"
    path.write_text(f"{','.join(COLUMNS)}\nHopper-v5,learned,0,1,nan,\n{line}\n")
    with pytest.raises(ForeignFileError, match=f"meta_test.csv, row 3: {message}$"):
        read_rows(path)


def test_newest_stage_is_each_methods_own() -> None:
    assert newest_stage(UNTRAINED + LEARNED + BASELINE) == UNTRAINED + LEARNED[2:] + BASELINE
