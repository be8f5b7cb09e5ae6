"""The benchmarks run and write what they print; how fast anything is, no test asserts."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
Report = dict[str, Any]


def quick_run(script: str, tmp_path: Path, *options: str) -> tuple[Report, str]:
    """The JSON and the text that a quick run of a benchmark gives; the parts that every report has are checked."""
    out = tmp_path / "new" / "report.json"
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--quick", "--out", str(out), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr

    report = json.loads(out.read_text())
    assert report["machine"]["float32 gigaflops"] > 0 and report["options"]["seed"] == 0
    for result in report["results"]:
        assert result["title"].split(" (")[0] in done.stdout
        assert all(len(row) == len(result["columns"]) for row in result["rows"])
        assert all(seconds for seconds in result["seconds"].values())
    return report, done.stdout


def columns_of(result: Report, *names: str) -> Iterator[float]:
    """The numbers of some columns, where there are any."""
    for row in result["rows"]:
        yield from (value for name, value in zip(result["columns"], row, strict=True) if name in names and value is not None)


@pytest.mark.slow
def test_throughput(tmp_path: Path) -> None:
    report, _ = quick_run("throughput.py", tmp_path)
    results = {result["title"].split(" (")[0]: result for result in report["results"]}
    assert list(results) == [
        "Update cycles by size of networks and population",
        "A stacked population against one agent at a time",
        "Two exact paths to the meta-gradient",
        "Memory that tensors free",
    ]

    ((_, _, _, _, difference),) = results["Two exact paths to the meta-gradient"]["rows"]
    assert 0 <= difference < 1e-4  # NaN is not; float32 sums may be in another order


@pytest.mark.slow
def test_cycle(tmp_path: Path) -> None:
    report, _ = quick_run("cycle.py", tmp_path, "--size", "small-ops", "--units", "64", "--windows", "16")
    parts, arithmetic = report["results"]
    *ms, whole = columns_of(parts, "ms per cycle")
    assert abs(sum(ms) - whole) < 1e-6 * whole and min(ms) >= 0
    assert len(list(columns_of(parts, "floor / time, %"))) == 4  # critic, policy, meta and the whole
    assert all(0 < share <= 100 for share in columns_of(parts, "floor / time, %"))

    for _, needed, counted in arithmetic["rows"]:
        # Little is done twice. Torch counts matrix products alone, padded inputs included; those with a single output are sums here.
        assert 0.8 * counted < needed < 1.15 * counted


@pytest.mark.slow
def test_default_cycle(tmp_path: Path) -> None:
    report, _ = quick_run("cycle.py", tmp_path, "--size", "default", "--profile")
    _, overhead, _, operators = report["results"]
    rows = {name: ms for name, ms, _ in overhead["rows"]}
    *parts, together, with_checkpoints = rows.values()
    assert abs(sum(parts) - together) < 1e-9 and min(parts) > 0 and with_checkpoints > together
    assert all(ms > 0 for ms in columns_of(operators, "ms per cycle"))


@pytest.mark.slow
def test_small_networks(tmp_path: Path) -> None:
    report, _ = quick_run("small_networks.py", tmp_path)
    ways, growth = report["results"]
    assert all(value > 0 for value in columns_of(ways, "ms per cycle", "reference / time"))
    assert all(value > 0 for value in columns_of(growth, "3 agents / 1 agent"))


@pytest.mark.slow
def test_against_sb3(tmp_path: Path) -> None:
    pytest.importorskip("stable_baselines3")
    report, _ = quick_run("against_sb3.py", tmp_path)
    comparison, stacked = report["results"]
    speeds = list(columns_of(comparison, "speed / stable-baselines3 at its best"))
    assert len(speeds) == 2 and speeds[0] == 1 and speeds[1] > 0
    assert all(share > 0 for share in columns_of(stacked, "floor / time, %", "time / time of 1 agent"))


@pytest.mark.slow
def test_weak_scaling(tmp_path: Path) -> None:
    report, _ = quick_run("weak_scaling.py", tmp_path, "--devices", "1", "--strategy", "auto")
    ((processes, agents, speed, gain, efficiency),) = report["results"][0]["rows"]
    assert (processes, agents, gain, efficiency) == (1, 3, 1, 100) and speed > 0


@pytest.mark.slow
def test_gpu_script_without_a_gpu(tmp_path: Path) -> None:
    report, _ = quick_run("gpu.py", tmp_path, "--device", "cpu")
    cycles, updates, left_out = report["results"]
    assert left_out["rows"] == []
    assert len(list(columns_of(cycles, "eager / time"))) == 2
    assert all(value > 0 for row in (*cycles["rows"], *updates["rows"]) for value in row[1:])


@pytest.mark.slow
def test_gpu_script_records_what_it_leaves_out(tmp_path: Path) -> None:
    report, _ = quick_run("gpu.py", tmp_path, "--device", "cpu", "--limit", "0")
    *_, left_out = report["results"]
    assert left_out["rows"] == [[name, "left out: out of time"] for name in ("eager", "eager, TF32")]


def test_paper_graph(tmp_path: Path) -> None:
    report, _ = quick_run("paper_graph.py", tmp_path)
    for result, products in zip(report["results"], (3.0, 11.9), strict=True):
        *_, cycle = result["rows"]
        assert cycle[0] == "cycle" and cycle[3] == products and abs(cycle[2] * cycle[4] - products) < 1e-9
        assert all(value > 0 for value in columns_of(result, "ms", "matrix products"))


def test_environments(tmp_path: Path) -> None:
    report, _ = quick_run("environments.py", tmp_path, "--workers", "1")
    assert [result["title"] for result in report["results"]] == ["2 x Pendulum-v1", "2 x LunarLander-v3[continuous=True]"]
    for result in report["results"]:
        assert all(value > 0 for value in columns_of(result, "env steps per s", "speed / this process"))
        assert result["rows"][0][2] == 1  # this process against itself


@pytest.mark.slow
def test_the_default_run_is_measured_whole(tmp_path: Path) -> None:
    report, _ = quick_run("default_run.py", tmp_path)
    minutes, cpu_minutes, memory = (row[1] for row in report["results"][0]["rows"])
    assert minutes > 0 and cpu_minutes > 0 and memory > 0.2  # PyTorch alone takes 0.2 GB
