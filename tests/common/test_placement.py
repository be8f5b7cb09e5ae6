"""Placement: which agents live where, and that gathering over real processes keeps every bit."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from metagenrl_pl.common.placement import Placement

GATHERS = Path(__file__).parents[1] / "gathering_process.py"


@pytest.mark.parametrize(
    ("num_agents", "world_size", "sizes"),
    [(7, 3, [3, 2, 2]), (20, 8, [3, 3, 3, 3, 2, 2, 2, 2]), (4, 2, [2, 2]), (3, 3, [1, 1, 1]), (5, 1, [5]), (2, 3, [1, 1, 0])],
)
def test_blocks_are_even_and_in_order(num_agents: int, world_size: int, sizes: list[int]) -> None:
    placements = [Placement(num_agents, rank, world_size) for rank in range(world_size)]
    assert [len(placement.agents) for placement in placements] == sizes
    assert [agent for placement in placements for agent in placement.agents] == list(range(num_agents))
    for placement in placements:
        assert [placement.block(rank) for rank in range(world_size)] == [other.agents for other in placements]


def test_each_process_takes_its_own() -> None:
    names, rows = list("abcdefg"), torch.arange(14).view(7, 2)
    placements = [Placement(7, rank, 3) for rank in range(3)]
    assert [placement.local(names) for placement in placements] == [["a", "b", "c"], ["d", "e"], ["f", "g"]]
    assert [placement.local_rows(rows)[:, 0].tolist() for placement in placements] == [[0, 2, 4], [6, 8], [10, 12]]


def test_a_single_process_has_all_and_needs_no_group() -> None:
    placement, rows = Placement(3), torch.randn(3, 2)
    assert placement.agents == range(3) and placement.local("abc") == ["a", "b", "c"]
    assert placement.gather(rows) is rows and torch.equal(placement.local_rows(rows), rows)
    assert placement.gather_list([1, 2, 3]) == [1, 2, 3] and placement.gather_objects("x") == ["x"]


@pytest.mark.parametrize(("num_agents", "world_size"), [(7, 3), (2, 3)])
def test_what_is_gathered_is_what_was_dealt(num_agents: int, world_size: int, tmp_path: Path) -> None:
    """In real processes, whose shares are uneven; the last case has one without an agent."""
    command = [sys.executable, str(GATHERS), str(tmp_path / "store"), str(num_agents), str(world_size)]
    processes = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in range(world_size)
    ]
    for process in processes:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert output == "7 dtypes and shapes, lists and objects\n"
