"""The table that a run prints at its end."""

import io
import math

import pytest
from rich.console import Console
from rich.text import Text

from metagenrl_pl.reporting.final_table import final_tables, returns_so_far
from metagenrl_pl.results.methods import METHODS, Method
from metagenrl_pl.results.rows import MetaTestRow

LEARNED = [MetaTestRow("Hopper-v5", "learned", seed, 500, seed + 1 / 3, stage) for stage in (1000, 2000) for seed in (0, 1)]
BASELINE = [MetaTestRow("Hopper-v5", "critic", 0, 500, -2.5)]


def _cells(rows: list[MetaTestRow]) -> tuple[list[str], list[list[str]], set[str], str]:
    """Header, rows of cells, the texts in bold, caption."""
    (table,) = final_tables(rows, width=200)
    columns = [list(column.cells) for column in table.columns]
    bold = {str(cell) for column in columns for cell in column if isinstance(cell, Text) and cell.style == "bold"}
    header = [str(column.header) for column in table.columns]
    return header, [[str(cell) for cell in row] for row in zip(*columns, strict=True)], bold, str(table.caption)


def test_final_table() -> None:
    rows = [
        MetaTestRow("Pendulum-v1", "random", 0, 0, -1300.0),
        MetaTestRow("Pendulum-v1", "my_method", 0, 500, -900.0),
        MetaTestRow("Hopper-v5", "critic", 0, 250, 99.0),  # not the largest env_steps
        MetaTestRow("Hopper-v5", "critic", 0, 500, 12.0),
        MetaTestRow("Hopper-v5", "critic", 0, 300, 99.0),  # not the largest env_steps
        MetaTestRow("Hopper-v5", "critic", 1, 500, 14.0),
        MetaTestRow("Hopper-v5", "learned", 0, 500, 77.0, 1000),  # not the newest stage
        MetaTestRow("Hopper-v5", "learned", 0, 500, 20.0, 2000),
        MetaTestRow("Hopper-v5", "learned", 1, 500, 20.0, 2000),
        MetaTestRow("Pendulum-v1", "learned", 0, 500, -1000.0, 2000),
        MetaTestRow("Pendulum-v1", "learned", 1, 500, -1010.0, 2000),
    ]
    header, cells, bold, caption = _cells(rows)
    assert header == ["method", "Hopper-v5", "Pendulum-v1"]
    assert cells == [
        ["learned objective", "20.0 ± 0.0", "-1,005 ± 64"],  # t(0.95, 1) = 12.706, times the standard error 5
        ["DDPG/TD3", "13.0 ± 12.7", "-"],
        ["random actions", "-", "-1,300"],
        ["my_method", "-", "-900"],
    ]
    assert bold == {"20.0 ± 0.0", "-900"}
    assert "over 1 to 2 seeds" in caption
    assert "after 500 env steps" in caption
    assert "meta-trained for 2,000 env steps per agent" in caption


def test_final_table_of_one_seed_says_so_and_shows_means_only() -> None:
    _, cells, bold, caption = _cells([MetaTestRow("Hopper-v5", "learned", 0, 500, 1.234, 1000), *BASELINE])
    assert cells == [["learned objective", "1.23"], ["DDPG/TD3", "-2.50"]]
    assert bold == {"1.23"}
    assert caption.startswith("one seed: mean only, no interval")


def test_final_table_survives_a_diverged_agent_and_odd_names() -> None:
    rows = [
        MetaTestRow("a[red]", "critic", 0, 1, math.nan),
        MetaTestRow("a[red]", "critic", 1, 1, 1.0),
        MetaTestRow("a[red]", "[b]", 0, 1, 2.0),
    ]
    header, cells, bold, _ = _cells(rows)
    assert header == ["method", "a[red]"]
    assert cells == [["DDPG/TD3", "diverged"], ["[b]", "2.00"]]
    assert bold == {"2.00"}


def test_final_table_prints() -> None:
    console = Console(width=100, file=io.StringIO(), record=True)
    for table in [*final_tables(LEARNED, 100), *final_tables([], 100)]:
        console.print(table)
    words = console.export_text().split()
    assert "learned" in words
    assert "results" in words  # the caption of the empty table: no results yet


def test_a_method_is_known_by_its_description(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [MetaTestRow("A", "sac", 0, 1, 2.0), *(row._replace(environment="A") for row in LEARNED)]
    assert [row[0] for row in _cells(rows)[1]] == ["learned objective", "sac"]
    monkeypatch.setitem(METHODS, "sac", Method("sac", "SAC (own)", "SAC", "#123456"))
    assert [row[0] for row in _cells(rows)[1]] == ["learned objective", "SAC (own)"]


def test_names_of_environments_are_whole_at_80_columns() -> None:
    names = ["HalfCheetah-v5", "InvertedDoublePendulum-v5", "InvertedPendulum-v5", "Reacher-v5"]
    methods = ("learned", "untrained", "reinforce", "critic", "random")
    rows = [MetaTestRow(name, method, seed, 9, 1234.5 + seed) for name in names for method in methods for seed in (0, 1)]
    console = Console(width=80, file=io.StringIO(), record=True)
    tables = final_tables(rows, 80)
    for table in tables:
        console.print(table)
    text = console.export_text()
    assert len(tables) == 2 and all(name in text for name in names)  # two environments side by side where they fit
    assert text.count("1,235 ± 6") == len(names) * len(methods) and text.count("over 2 seeds") == 1


def test_returns_so_far() -> None:
    table = returns_so_far({"critic": (200, {"A": 12.0, "B": -1.0}), "learned": (100, {"A": math.nan})})
    cells = [[str(cell) for cell in row] for row in zip(*(column.cells for column in table.columns), strict=True)]
    assert [str(column.header) for column in table.columns] == ["environment", "learned", "DDPG/TD3"]
    assert cells == [["A", "diverged", "12.0"], ["B", "-", "-1.00"], ["after env steps", "100", "200"]]
