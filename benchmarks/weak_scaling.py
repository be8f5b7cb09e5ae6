"""Weak scaling of `train.py` over processes: the same number of agents in each, env steps per second of all of them.

    python benchmarks/weak_scaling.py [--devices 1 2] [--agents-per-process 3] [--env-steps 1500] [--strategy ddp] [--quick]
                                      [--threads 1] [--seed 0] [--out FILE]

Short runs of the default experiment on the CPU take turns. Counted are the update cycles per second that a run logs once updates have
begun; in a cycle every agent of every process takes one env step. So starting up and the first, random env steps do not count.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import fmean, median

from measure import ROOT, Result, Turns, arguments, machine, prepare, report
from metagenrl_pl.common.commands import hydra_override

FIRST_STEPS = 100  # env steps of each agent before updates begin, and between two lines of the log
COLUMN = "throughput/update_cycles_per_second"


def env_steps_per_second(num_devices: int, options: argparse.Namespace) -> float:
    """Of all agents together, in one run.

    Raises:
        RuntimeError: if the run fails.
    """
    num_agents = num_devices * options.agents_per_process
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            f"trainer.strategy={options.strategy}",
            f"trainer.devices={num_devices}",
            "trainer.accelerator=cpu",
            f"population.size={num_agents}",
            f"num_threads={options.threads}",
            f"seed={options.seed}",
            f"env_steps={options.env_steps}",
            f"updates_per_batch={FIRST_STEPS // 2}",
            f"agent.random_env_steps={FIRST_STEPS}",
            f"agent.warmup_env_steps={FIRST_STEPS}",
            "meta.annealing_env_steps=0",
            f"callbacks.throughput.every_env_steps={FIRST_STEPS}",
            *(f"callbacks.{name}=null" for name in ("meta_test", "final_report", "checkpoint", "objective_export")),
            "logger=csv",
            hydra_override("run_dir", f"{folder}/run"),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
        command = [sys.executable, str(ROOT / "train.py"), *overrides]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"train.py {' '.join(overrides)} ended with code {done.returncode}:\n{done.stderr[-2000:]}")
        with open(Path(folder) / "run" / "metrics.csv") as file:
            lines = [line for line in csv.DictReader(file) if line.get(COLUMN)]
    # The first line that counts updates began with none and built what later ones find ready.
    learning = [float(line[COLUMN]) for line in lines if int(line["env_steps"]) > 2 * FIRST_STEPS]
    return num_agents * fmean(learning)


def scaling(options: argparse.Namespace, num_turns: int) -> Result:
    """Runs of all numbers of processes, in turns."""
    speeds: dict[int, list[float]] = defaultdict(list)
    for _ in range(num_turns):
        for num_devices in options.devices:
            speeds[num_devices].append(env_steps_per_second(num_devices, options))
    first = options.devices[0]
    rows = []
    for num_devices, values in speeds.items():
        gain = median(v / base for v, base in zip(values, speeds[first], strict=True))
        efficiency = 100 * gain * first / num_devices
        rows.append([num_devices, num_devices * options.agents_per_process, median(values), gain, efficiency])
    columns = ["processes", "agents", "agent env steps per s", f"speed / {first} process", "efficiency, %"]
    seconds = {f"{num_devices} processes, per env step": [1 / v for v in values] for num_devices, values in speeds.items()}
    return Result(f"Weak scaling, {options.agents_per_process} agents per process", columns, rows, seconds)


def main() -> None:
    """Measure, print, write."""
    parser = arguments("Weak scaling of train.py over processes.", "weak_scaling.json")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2], help="numbers of processes; default 1 2")
    parser.add_argument("--agents-per-process", type=int, default=3, help="default 3")
    parser.add_argument("--env-steps", type=int, default=1500, help="of each agent in a run; default 1500")
    parser.add_argument("--strategy", default="ddp", help="of the trainer; default ddp")
    options = parser.parse_args()
    if options.quick:
        options.env_steps = 4 * FIRST_STEPS
    prepare(options.threads)
    num_turns = 1 if options.quick else 5
    facts = machine(Turns(1, 0.01) if options.quick else Turns(5, 0.5))
    report(options, facts, [lambda: scaling(options, num_turns)])


if __name__ == "__main__":
    main()
