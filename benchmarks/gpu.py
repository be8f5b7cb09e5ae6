"""The paper's population on a GPU: eager, compiled, in TF32, with and without environments, against the floor.

    python benchmarks/gpu.py [--device cuda] [--agents 20] [--limit 480] [--no-compile] [--quick] [--threads 1] [--seed 0]
                             [--out FILE]

Twenty agents on LunarLander and HalfCheetah with networks and windows of the paper. The floor of a cycle is the larger of two times: its
needed arithmetic over the measured rate of a large matrix product (in float32, or in TF32 where that is used), and the bytes of activations
that it has to move over the measured rate of a copy; `benchmarks/arithmetic.py` says how both are counted. What fails is recorded and
the rest goes on; what would begin after the limit, in seconds, is left out.
"""

import argparse
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from arithmetic import total, work_per_cycle
from clock import CRITIC
from measure import (
    Job,
    MatrixProduct,
    Result,
    Turns,
    add_compile,
    arguments,
    elapsed,
    parse_options,
    prepare,
    ratio,
    report,
    wait,
)
from metagenrl_pl.agents.population import AgentSettings
from metagenrl_pl.learning.cycle import Agents
from workloads import assign_round_robin, make_agents, pair_of_updates, run_cycles, updates

IDS = ["LunarLanderContinuous-v3", "HalfCheetah-v5"]
FLOAT32, TF32 = "highest", "high"
VARIANTS = {
    "eager": (False, FLOAT32),
    "compiled, TF32": (True, TF32),
    "compiled": (True, FLOAT32),
    "eager, TF32": (False, TF32),
}
"""Whether compiled, and the precision of matrix products; the most telling first."""

WARMUP_CALLS = 4  # compiling, then recording a CUDA graph, then replaying it
UPDATES, CYCLES = "updates alone", "with environments"


class Copy:
    """A large copy on the device: how fast memory is.

    Args:
        size: bytes, read once and written once.
        device: whose memory.
    """

    def __init__(self, size: int, device: str) -> None:
        self._source, self._target = (torch.rand(size // 4, device=device) for _ in range(2))
        self.bytes = 2 * size

    def __call__(self) -> Tensor:
        """Do it."""
        return self._target.copy_(self._source)


def at_precision(precision: str, job: Job) -> Job:
    """The job, with matrix products at a precision."""

    def call() -> None:
        torch.set_float32_matmul_precision(precision)
        job()

    return call


class Bench:
    """Measures what works and remembers why the rest did not.

    Args:
        options: of the command line.
        turns: how often each job is measured, and for how long.
    """

    def __init__(self, options: argparse.Namespace, turns: Turns) -> None:
        self.options, self.turns = options, turns
        self.errors: dict[str, str] = {}
        self.times: dict[str, list[float]] = {}
        self._deadline = time.monotonic() + options.limit
        self._settings = AgentSettings(8, num_windows=4) if options.quick else AgentSettings()
        self._num_per_call: dict[str, int] = {}
        self.variants = {name: how for name, how in VARIANTS.items() if options.compile or not how[0]}

    def attempt(self, name: str, job: Callable[[], Any]) -> Any:
        """What the job returns, or None, with the error on record."""
        if time.monotonic() > self._deadline:
            self.errors[name] = "left out: out of time"
            return None
        try:
            return job()
        except Exception as error:  # whatever a GPU, its compiler or its memory may raise
            self.errors[name] = f"{type(error).__name__}: {str(error)[:2000]}"
            return None

    def machine(self) -> dict[str, Any]:
        """What absolute times depend on."""
        device, quick = self.options.device, self.options.quick
        product, copy = MatrixProduct(512 if quick else 8192, device), Copy(2**22 if quick else 2**30, device)
        jobs: dict[str, Job] = {"float32": at_precision(FLOAT32, product), "TF32": at_precision(TF32, product), "copy": copy}
        seconds = {name: median(times) for name, times in self.turns.take(jobs).items()}
        on_gpu = torch.device(device).type == "cuda"
        return {
            "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
            "platform": platform.platform(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda if on_gpu else None,
            "threads": torch.get_num_threads(),
            "float32 gigaflops": 1e-9 * product.flop / seconds["float32"],
            "TF32 gigaflops": 1e-9 * product.flop / seconds["TF32"],
            "copied gigabytes per s": 1e-9 * copy.bytes / seconds["copy"],
        }

    def measure(self) -> None:
        """Warm every variant up, then let all that work take turns."""
        jobs: dict[str, Job] = {}
        for variant in self.variants:
            ready = self.attempt(variant, partial(self._warmed_up, variant))
            jobs |= ready or {}
        for _ in range(self.turns.number):
            for name in list(jobs):
                seconds = self.attempt(name, partial(elapsed, jobs[name], self._num_per_call[name]))
                if seconds is None:
                    del jobs[name]
                else:
                    self.times.setdefault(name, []).append(seconds)

    def _warmed_up(self, variant: str) -> dict[str, Job]:
        compile, precision = VARIANTS[variant]
        agents = self._agents(compile)
        halves: dict[str, Job] = {
            UPDATES: partial(pair_of_updates, agents),
            CYCLES: partial(run_cycles, agents),
            **updates(agents),
        }
        jobs = {}
        for part, job in halves.items():
            name, job = f"{variant}: {part}", at_precision(precision, job)
            for _ in range(WARMUP_CALLS):
                job()
            wait()
            self._num_per_call[name] = max(1, round(self.turns.seconds / elapsed(job)))
            jobs[name] = job
        return jobs

    def _agents(self, compile: bool) -> Agents:
        specs = assign_round_robin(IDS, self.options.agents)
        return make_agents(
            specs, self._settings, self.options.seed, compile=compile, device=self.options.device, env_workers=None
        )

    def cycles(self, facts: dict[str, Any]) -> Result:
        """Whole cycles and their floors."""
        agents, num_agents = self._agents(compile=False), self.options.agents
        work = total(work_per_cycle(agents.replay.sizes, self._settings, agents.objective).values())
        traffic = 1e-9 * work.bytes / facts["copied gigabytes per s"]
        rows: list[list[Any]] = []
        for variant, (_, precision) in self.variants.items():
            arithmetic = 1e-9 * work.flop / facts["TF32 gigaflops" if precision == TF32 else "float32 gigaflops"]
            floor = max(arithmetic, traffic)
            times = {part: self.times.get(f"{variant}: {part}") for part in (UPDATES, CYCLES)}
            alone, whole = (None if seconds is None else median(seconds) / 2 for seconds in times.values())
            reference = self.times.get(f"eager: {UPDATES}")
            row: list[Any] = [variant, alone and 1e3 * alone, whole and 1e3 * whole]
            row += [alone and num_agents / alone, whole and num_agents / whole]
            row += [1e3 * arithmetic, 1e3 * traffic, alone and 100 * floor / alone]
            seconds = times[UPDATES]
            row += [ratio(reference, seconds) if reference and seconds and len(reference) == len(seconds) else None]
            rows.append(row)
        columns = ["", "ms per cycle", CYCLES, "agent env steps per s", CYCLES]
        columns += ["arithmetic floor, ms", "traffic floor, ms", "floor / time, %", "eager / time"]
        units, windows = self._settings.hidden_units, f"{self._settings.num_windows} windows of {self._settings.window_length}"
        work_text = f"{1e-9 * work.flop:.3g} GFLOP and {1e-9 * work.bytes:.3g} GB per cycle"
        return Result(f"Cycles of {num_agents} agents of {units} units, {windows} ({work_text})", columns, rows, self.times)

    def updates(self) -> Result:
        """Each update by itself."""
        columns = ["", *self.variants]
        parts: dict[str, list[Any]] = defaultdict(list)
        names = dict.fromkeys(name.partition(": ")[2] for name in self.times)
        for part in [name for name in names if name not in (UPDATES, CYCLES)] or [CRITIC]:
            for variant in self.variants:
                seconds = self.times.get(f"{variant}: {part}")
                parts[part].append(1e3 * median(seconds) if seconds else None)
        return Result("Updates, ms each", columns, [[part, *values] for part, values in parts.items()])

    def failures(self) -> Result:
        """What did not work, and why."""
        return Result("Left out", ["", "reason"], [[name, text] for name, text in self.errors.items()])


def main() -> None:
    """Measure, print, write."""
    parser = arguments("The paper's population on a GPU.", "gpu.json")
    parser.add_argument("--device", default="cuda", help="default cuda")
    parser.add_argument("--agents", type=int, help="default 20, with --quick 2")
    parser.add_argument("--limit", type=float, default=480, help="seconds after which nothing new begins; default 480")
    add_compile(parser)
    options = parse_options(parser)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit(f"error: --device={options.device} is not there; valid: cpu")
    options.agents = options.agents or (2 if options.quick else 20)
    prepare(options.threads)
    bench = Bench(options, Turns(1, 0.01) if options.quick else Turns(5, 0.5))
    facts = bench.machine()
    bench.measure()
    report(options, facts, [lambda: bench.cycles(facts), bench.updates, bench.failures])


if __name__ == "__main__":
    main()
