"""What the benchmarks share: jobs that take turns, the facts of a machine, tables and JSON files.

What is compared takes turns in one run (A B A B ...), and a ratio is the median over turns of the ratio within a turn, so that a busy
machine slows both sides. Absolute times are medians and belong to the machine.
"""

import argparse
import json
import logging
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from metagenrl_pl.common.files import path_argument
from metagenrl_pl.common.machine import keep_freed_memory

ROOT = Path(__file__).parents[1]
RESULTS = "results/performance"

Job = Callable[[], object]


@dataclass
class Result:
    """A table, and the seconds that it was made from: per call of each job, by turn."""

    title: str
    columns: list[str]
    rows: list[list[Any]]
    seconds: dict[str, list[float]] = field(default_factory=dict)


def wait() -> None:
    """Wait until the GPU is idle, if one is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def elapsed(job: Job, num_calls: int = 1) -> float:
    """Seconds per call."""
    wait()
    start = time.perf_counter()
    for _ in range(num_calls):
        job()
    wait()
    return (time.perf_counter() - start) / num_calls


def call_each(jobs: Iterable[Job]) -> None:
    """Call jobs one after another."""
    for job in jobs:
        job()


def ratio(seconds: Sequence[float], base: Sequence[float]) -> float:
    """How many times as long, as a median over turns."""
    return median(s / b for s, b in zip(seconds, base, strict=True))


@dataclass
class Turns:
    """Lets jobs take turns: how often each, and for about how many seconds at a time."""

    number: int
    seconds: float

    def take(self, jobs: Mapping[str, Job]) -> dict[str, list[float]]:
        """Seconds per call of each job, by turn, after a warm-up."""
        for job in jobs.values():
            job()
        num_calls = {name: max(1, round(self.seconds / elapsed(job))) for name, job in jobs.items()}
        times: dict[str, list[float]] = {name: [] for name in jobs}
        for _ in range(self.number):
            for name, job in jobs.items():
                times[name].append(elapsed(job, num_calls[name]))
        return times

    def compare(self, title: str, sides: tuple[str, str], first: Mapping[str, Job], second: Mapping[str, Job]) -> Result:
        """A row for each name: the job of the first side, that of the second, and how many times as long the second takes."""
        both = zip(sides, (first, second), strict=True)
        times = self.take({f"{name}, {side}": job for side, jobs in both for name, job in jobs.items()})
        rows = []
        for name in first:
            a, b = (times[f"{name}, {side}"] for side in sides)
            rows.append([name, 1e3 * median(a), 1e3 * median(b), ratio(b, a)])
        return Result(title, ["", *(f"{side}, ms" for side in sides), f"{sides[1]} / {sides[0]}"], rows, times)


class MatrixProduct:
    """A large square product in float32: how fast this machine computes when nothing else is in the way.

    Args:
        size: rows and columns.
        device: where it is computed.
    """

    def __init__(self, size: int = 1024, device: torch.device | str = "cpu") -> None:
        self.flop = 2 * size**3
        self._factor, self._out = (torch.rand(size, size, device=device) for _ in range(2))

    def __call__(self) -> Tensor:
        """Compute it."""
        return torch.mm(self._factor, self._factor, out=self._out)


class Worker:
    """A process of its own, which works when this one asks it to.

    What lasts as long as a process (its threads, its allocator) can so take turns as well.

    Args:
        script: what it runs; ends in `serve`.
        arguments: of its command line.
    """

    def __init__(self, script: str, *arguments: str) -> None:
        command = [sys.executable, script, *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, question: str = "") -> str:
        """The answer to a line.

        Raises:
            RuntimeError: if the process has ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            print(question, file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise RuntimeError(f"a measured process ended with code {self._process.wait()}")
        return answer.strip()

    def close(self) -> None:
        """End the process by closing its input."""
        self._process.communicate()


def serve(answer: Callable[[str], object]) -> None:
    """Be the process behind a `Worker`: a line of output for each line of input."""
    for line in sys.stdin:
        print(answer(line.strip()), flush=True)


def machine(turns: Turns) -> dict[str, Any]:
    """What absolute times depend on."""
    product = MatrixProduct()
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load average": os.getloadavg()[0],
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "float32 gigaflops": 1e-9 * product.flop / median(turns.take({"product": product})["product"]),
    }


def _processor() -> str:
    """Its name and, since clouds hide the name, its family and model."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().split("\n\n")[0].splitlines() if file.exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if "model name" not in facts:
        return platform.processor() or platform.machine()
    return f"{facts['model name']} (family {facts.get('cpu family')}, model {facts.get('model')})"


def format_value(value: Any) -> str:
    """A table's entry; of a float three digits, of nothing a dash."""
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def show(console: Console, result: Result) -> None:
    """Print a table."""
    table = Table(title=Text(result.title), title_justify="left")  # names of environments have brackets
    for i, column in enumerate(result.columns):
        table.add_column(column, justify="right" if i else "left")
    for row in result.rows:
        table.add_row(*map(format_value, row))
    console.print(table)


def arguments(description: str, out: str) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark; `out` is the name of its JSON file."""
    parser = argparse.ArgumentParser(description=description)
    quick = "seconds instead of minutes: shows that it works, not how fast it is"
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; default 1")
    parser.add_argument("--seed", type=int, default=0, help="of agents and objective; default 0")
    parser.add_argument("--out", type=path_argument, help=f"a JSON file; default {RESULTS}/{out}, with --quick none")
    parser.set_defaults(default_out=ROOT / RESULTS / out)
    return parser


def add_compile(parser: argparse.ArgumentParser) -> None:
    """Let the user choose whether what takes minutes to compile is measured."""
    text = "also measure what is compiled, which takes minutes the first time; default yes, with --quick no"
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help=text)


def parse_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options of the command line, defaults settled."""
    options = parser.parse_args()
    if getattr(options, "compile", False) is None:
        options.compile = not options.quick
    return options


def prepare(threads: int, keep_memory: bool = True) -> None:
    """Set this process up as train.py does, and keep Lightning quiet."""
    torch.set_num_threads(threads)
    if keep_memory:
        keep_freed_memory()
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


def report(options: argparse.Namespace, facts: Mapping[str, Any], measurements: Iterable[Callable[[], Result]]) -> None:
    """Measure, print each table when it is there, and write all of them to the JSON file."""
    console, results = Console(), []
    console.print(", ".join(f"{name} {format_value(value)}" for name, value in facts.items()))
    for measure in measurements:
        results.append(measure())
        show(console, results[-1])
    out = options.out or (None if options.quick else options.default_out)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        settings = {name: value for name, value in vars(options).items() if isinstance(value, bool | int | float | str | list)}
        content = {"machine": dict(facts), "options": settings, "results": [asdict(result) for result in results]}
        out.write_text(json.dumps(content, indent=1) + "\n")
        console.print(f"Written: {out}", soft_wrap=True)
