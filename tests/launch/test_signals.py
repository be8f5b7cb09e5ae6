"""A run that is told to stop saves, says how to go on, and goes on to the same bits."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "train.py", "experiment=debug", "callbacks.meta_test=null", "num_threads=1"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src")}


@pytest.mark.slow
def test_sigterm_saves_and_the_run_goes_on_to_the_same_objective(tmp_path: Path) -> None:
    stopped, straight = tmp_path / "stopped", tmp_path / "straight"
    process = subprocess.Popen(
        [*COMMAND, f"run_dir={stopped}"], cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    metrics = stopped / "metrics.csv"
    while not metrics.exists():  # training has begun
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 3, errors
    assert "Traceback" not in errors
    (line,) = [line for line in output.splitlines() if "To go on" in line]
    checkpoint = line.rpartition("ckpt_path=")[2]
    assert Path(checkpoint).exists()
    assert checkpoint != str(stopped / "checkpoints/env_steps_000000400.ckpt")  # stopped before the end

    for command in ([sys.executable, "train.py", f"ckpt_path={checkpoint}"], [*COMMAND, f"run_dir={straight}"]):
        subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True)
    assert (stopped / "objective.safetensors").read_bytes() == (straight / "objective.safetensors").read_bytes()
