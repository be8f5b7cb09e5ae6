"""`python train.py` from start to end: how long it takes, and how much memory.

    python benchmarks/default_run.py [--quick] [--seed 0] [--warm FOLDER] [--out FILE] [OVERRIDE ...]

Nothing is compiled before, unless a folder of compiled updates is given. Memory is the largest sum over all processes of the run, compilers
among them, of their share of pages in memory (Linux alone); it is read twice a second.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import ROOT, Result, Turns, arguments, machine, parse_options, prepare, report
from metagenrl_pl.common.commands import hydra_override
from metagenrl_pl.common.files import path_argument

QUICK = ["experiment=debug", "env_steps=100"]


def share_of_memory(root: int) -> int:
    """Bytes that a process and its descendants have in memory; pages that several of them share count once."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    total = 0
    for process in parents:
        ancestor = process
        while ancestor in parents and ancestor != root:
            ancestor = parents[ancestor]
        if ancestor == root:
            with contextlib.suppress(OSError, ValueError):
                lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
                (line,) = [line for line in lines if line.startswith("Pss:")]
                total += 1024 * int(line.split()[1])
    return total


def run(overrides: list[str]) -> Result:
    """Train, and look at the processes."""
    start, before, memory = time.monotonic(), os.times(), 0
    process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), *overrides], start_new_session=True)
    while process.poll() is None:
        memory = max(memory, share_of_memory(process.pid))
        time.sleep(0.5)
    if process.returncode:
        sys.exit(process.returncode)
    after, seconds = os.times(), time.monotonic() - start
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    rows: list[list[Any]] = [["minutes", seconds / 60], ["CPU minutes", cpu / 60], ["GB of memory", memory / 1e9]]
    return Result("python train.py", ["", "measured"], rows, {"whole run": [seconds]})


def main() -> None:
    """Measure, print, write."""
    parser = arguments(__doc__.splitlines()[0], "default_run.json")
    parser.add_argument("--warm", type=path_argument, metavar="FOLDER", help="of compiled updates; a new one by default")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE")
    options = parse_options(parser)
    prepare(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        cache = options.warm or Path(folder) / "compiled"
        folders = [hydra_override("compile_cache", str(cache)), hydra_override("run_dir", f"{folder}/run")]
        overrides = [*folders, f"seed={options.seed}", *options.overrides]
        overrides += QUICK if options.quick else []
        report(options, machine(Turns(1, 0.01) if options.quick else Turns(3, 0.5)), [lambda: run(overrides)])


if __name__ == "__main__":
    main()
