"""The benchmarks run and write what they print; how fast anything is, no test asserts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_throughput(tmp_path: Path) -> None:
    out = tmp_path / "new" / "throughput.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "throughput.py"), "--quick", "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr

    report = json.loads(out.read_text())
    assert report["machine"]["float32 gigaflops"] > 0 and report["options"]["seed"] == 0
    results = {result["title"].split(" (")[0]: result for result in report["results"]}
    assert list(results) == [
        "Update cycles by size of networks and population",
        "Parts of a cycle",
        "A stacked population against one agent at a time",
        "Two exact paths to the meta-gradient",
        "Memory that tensors free",
    ]
    for title, result in results.items():
        assert title in done.stdout
        assert all(len(row) == len(result["columns"]) for row in result["rows"])

    *parts, whole, _ = (ms for _, ms, _ in results["Parts of a cycle"]["rows"])
    assert abs(sum(parts) - whole) < 1e-9 * whole  # in a single turn the parts add up to the whole
    ((_, _, _, _, difference),) = results["Two exact paths to the meta-gradient"]["rows"]
    assert 0 < difference < 1e-4  # float32 sums in another order
