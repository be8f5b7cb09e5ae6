"""How fast update cycles are on this machine's CPU, and where their time goes.

    python benchmarks/throughput.py [--quick] [--full] [--compile] [--threads 1] [--seed 0] [--out FILE]

What is compared takes turns in one run (A B A B ...), and a ratio is the median over turns of the ratio within a turn, so that
a busy machine slows both sides. Absolute times are medians and belong to this machine. The objective is the learned one with one SGD
inner step, after the annealing. A cycle is one env step of every agent and one update; every second one also updates policies and
objective, so times per cycle are means over whole pairs.
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
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.table import Table

from metagenrl_pl.collector import Collector
from metagenrl_pl.datamodule import MacroBatch, ReplayDataModule, ReplaySettings
from metagenrl_pl.env_group import SerialGroup
from metagenrl_pl.envs import EnvironmentSpec
from metagenrl_pl.inner import SGD
from metagenrl_pl.learner import Learner, MetaSettings
from metagenrl_pl.module import MetaGenRL
from metagenrl_pl.networks import first_critic
from metagenrl_pl.nn import norm_per_agent
from metagenrl_pl.objectives import LearnedObjective
from metagenrl_pl.population import AgentSettings, Population
from metagenrl_pl.replay import Replay
from metagenrl_pl.run import keep_freed_memory
from metagenrl_pl.streams import derive_seed
from metagenrl_pl.updates import MetaTask
from metagenrl_pl.updates.meta import factored_meta_gradients, general_meta_gradients

OUT = "results/performance/throughput.json"
WORKLOADS = {64: (["Pendulum-v1", "InvertedPendulum-v5", "Reacher-v5"], 32), 350: (["HalfCheetah-v5"], 100)}
"""By hidden units of an agent's networks: the environments, dealt round robin, and the windows per update."""
NUM_STORED, CAPACITY = 250, 100_000  # replay slots of each agent: filled at random before anything is measured, and all

PARTS = {
    "environments and acting": ("collector", "step"),
    "window sampling": ("collector", "draw"),
    "critic update": ("learner", "_update_critics"),
    "policy update": ("learner", "_update_policies"),
    "meta update": ("learner", "_update_objective"),
}
"""Methods that a cycle consists of, by what they do."""

Job = Callable[[], object]


@dataclass
class Result:
    """A table, and the seconds that it was made from: per call of each job, by turn."""

    title: str
    columns: list[str]
    rows: list[list[Any]]
    seconds: dict[str, list[float]]


class Agents:
    """A population with its environments and experience, ready to learn; with `only`, nothing but that agent of it.

    Unless it `learns`, the objective is frozen. `num_stored` env steps of each agent are taken at random at once.
    """

    def __init__(
        self,
        num_agents: int,
        units: int,
        seed: int,
        only: int | None = None,
        compile: bool = False,
        learns: bool = True,
        num_stored: int = NUM_STORED,
    ) -> None:
        ids, num_windows = WORKLOADS[units]
        chosen = range(num_agents) if only is None else [only]
        self.specs = [EnvironmentSpec(ids[i % len(ids)]) for i in chosen]
        self.seeds = [derive_seed(seed, "agent", i) for i in chosen]
        environments = SerialGroup(self.specs)
        self.sizes = environments.sizes
        self.settings = AgentSettings(units, num_windows=num_windows, random_env_steps=num_stored, warmup_env_steps=1)
        self.objective, self.inner = LearnedObjective(seed=seed), SGD()
        meta = MetaSettings(annealing_env_steps=0) if learns else None
        self.population = Population(self.sizes, self.seeds, self.settings)
        self.learner = Learner(self.population, self.objective, self.settings, self.seeds, self.inner, meta, compile)
        replay, noise = Replay(self.sizes, CAPACITY, self.settings.window_length), self.settings.exploration_noise
        self.collector = Collector(environments, self.seeds, replay, self.population.act, noise, random_env_steps=num_stored)
        for _ in range(num_stored):
            self.collector.step()

    def cycles(self, num_cycles: int = 2) -> None:
        """What `MetaGenRL.training_step` does with a macro batch, without Lightning."""
        for collector in MacroBatch(self.collector, num_cycles):
            self.learner.update(collector.draw, collector.env_steps)
        self.learner.checked_metrics()

    def updates(self) -> dict[str, Job]:
        """The three updates, on windows that stay the same."""
        learner, num_windows = self.learner, self.settings.num_windows
        windows, twice = self.collector.draw(num_windows), self.collector.draw(2 * num_windows)
        return {
            "critic update": lambda: learner._update_critics(windows, learner.critic_optimizer.step),
            "policy update": lambda: learner._update_policies(windows, self.collector.env_steps),
            "meta update": lambda: learner._update_objective(twice),
        }


def elapsed(job: Job, num_calls: int = 1) -> float:
    """Seconds per call."""
    start = time.perf_counter()
    for _ in range(num_calls):
        job()
    return (time.perf_counter() - start) / num_calls


def call_each(jobs: Sequence[Job]) -> None:
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


def population_sizes(sizes: Mapping[int, Sequence[int]], seed: int, turns: Turns) -> Result:
    """Whole cycles by network size (the keys of `sizes`) and population size."""
    names = {(units, n): f"{units} units, {n} agents" for units in sizes for n in sizes[units]}
    times = turns.take({name: Agents(n, units, seed).cycles for (units, n), name in names.items()})
    times = {name: [s / 2 for s in seconds] for name, seconds in times.items()}  # one cycle
    rows = []
    for (units, n), name in names.items():
        cycles = 1 / median(times[name])
        rows.append([units, n, 1e3 / cycles, cycles, n * cycles, ratio(times[name], times[names[units, sizes[units][0]]])])
    columns = ["hidden units", "agents", "ms per cycle", "cycles per s", "agent env steps per s", "time / time of 1 agent"]
    return Result("Update cycles by size of networks and population", columns, rows, times)


def clocked(clock: dict[str, float], part: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, adding the seconds that it takes to those of its part."""

    def call(*arguments: Any) -> Any:
        start = time.perf_counter()
        out = method(*arguments)
        clock[part] += time.perf_counter() - start
        return out

    return call


def parts_of_a_cycle(num_agents: int, seed: int, turns: Turns, num_cycles: int) -> Result:
    """Where the time of a whole cycle goes, and what Lightning adds to it."""
    agents, clock = Agents(num_agents, 64, seed), dict.fromkeys(PARTS, 0.0)
    for part, (owner, name) in PARTS.items():
        setattr(getattr(agents, owner), name, clocked(clock, part, getattr(getattr(agents, owner), name)))
    agents.cycles()
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(turns.number):
        clock.update(dict.fromkeys(PARTS, 0.0))
        whole = elapsed(agents.cycles, num_cycles // 2) / 2
        parts = {part: seconds / num_cycles for part, seconds in clock.items()}
        for part, seconds in {**parts, "rest (targets, checks)": whole - sum(parts.values()), "whole cycle": whole}.items():
            times[part].append(seconds)
    rows = [[part, 1e3 * median(seconds), 100 * ratio(seconds, times["whole cycle"])] for part, seconds in times.items()]
    lightning = lightning_and_bare(seed, 4 * turns.number, num_cycles)
    added = median(w - b for w, b in zip(*lightning.values(), strict=True))
    rows.append(["Lightning, added to it", 1e3 * added, 100 * added / median(times["whole cycle"])])
    title = f"Parts of a cycle ({num_agents} agents of 64 units, {num_cycles} cycles per batch)"
    return Result(title, ["", "ms per cycle", "% of a cycle"], rows, {**times, **lightning})


class SideBySide(pl.Callback):
    """Runs `bare`, the same cycles without Lightning, before Lightning runs a macro batch, and times both."""

    def __init__(self, bare: Job) -> None:
        self.bare: list[float] = []
        self.lightning: list[float] = []
        self._bare, self._since = bare, 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """From one of these to the next Lightning does all that it does for a batch."""
        if batch_idx > 0:
            self.lightning.append(time.perf_counter() - self._since)
        self.bare.append(elapsed(self._bare))
        self._since = time.perf_counter()


def lightning_and_bare(seed: int, num_turns: int, num_cycles: int) -> dict[str, list[float]]:
    """Seconds per cycle of `Trainer.fit` and of a loop over the same cycles.

    Lightning's part does not depend on what a cycle does, so this is one agent without a meta update, which shows it best.
    """
    twin = Agents(1, 64, seed, num_stored=0, learns=False)
    module = MetaGenRL(twin.sizes, twin.seeds, twin.objective, twin.settings)
    env_steps = (num_turns + 2) * num_cycles  # the first batch warms up, the last has no successor that ends its time
    datamodule = ReplayDataModule(twin.specs, twin.seeds, twin.settings, ReplaySettings(CAPACITY), env_steps, num_cycles)
    callback = SideBySide(partial(twin.cycles, num_cycles))
    silent: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", devices=1, max_epochs=1, enable_checkpointing=False, callbacks=[callback], **silent)
    trainer.fit(module, datamodule)
    for name, p in module.learner.population.policy.items():
        assert torch.equal(p, twin.population.policy[name]), "not the same cycles"
    both = {"1 agent without meta update, Lightning": callback.lightning, "1 agent without meta update, bare loop": callback.bare}
    return {name: [s / num_cycles for s in seconds[1 : num_turns + 1]] for name, seconds in both.items()}


def stacking(num_agents: int, units: int, seed: int, turns: Turns) -> Result:
    """A stacked population against its agents one at a time."""
    stacked = Agents(num_agents, units, seed).updates()
    agents = [Agents(num_agents, units, seed, only=i).updates() for i in range(num_agents)]
    one_at_a_time = {name: partial(call_each, [agent[name] for agent in agents]) for name in stacked}
    title = f"A stacked population against one agent at a time ({num_agents} agents of {units} units)"
    return turns.compare(title, ("stacked", "one at a time"), stacked, one_at_a_time)


def meta_gradient_paths(workloads: Sequence[tuple[int, int]], seed: int, turns: Turns) -> Result:
    """The factored path to the meta-gradient against the general one on the same inputs, for (agents, hidden units)."""
    paths: tuple[dict[str, Job], dict[str, Job]] = ({}, {})
    differences = []
    for num_agents, units in workloads:
        agents = Agents(num_agents, units, seed)
        windows = agents.collector.draw(2 * agents.settings.num_windows)
        task = MetaTask(agents.population.policy, first_critic(agents.population.critics), windows)
        alpha = agents.objective.stacked_parameters(num_agents)
        inputs = (agents.population.networks, agents.objective, agents.inner, alpha, task)
        factored, general = factored_meta_gradients(*inputs)[0], general_meta_gradients(*inputs)[0]
        difference = norm_per_agent({name: factored[name] - general[name] for name in general})
        differences.append(float((difference / norm_per_agent(general)).max()))
        for path, function in zip(paths, (factored_meta_gradients, general_meta_gradients), strict=True):
            path[f"{num_agents} agents of {units} units"] = partial(function, *inputs)
    result = turns.compare("Two exact paths to the meta-gradient", ("factored", "general"), *paths)
    result.columns.append("largest relative difference")
    result.rows = [[*row, difference] for row, difference in zip(result.rows, differences, strict=True)]
    return result


def compiling(num_agents: int, units: int, seed: int, turns: Turns) -> Result:
    """Updates and pairs of cycles through `torch.compile` against eager ones."""
    sides = [Agents(num_agents, units, seed, compile=compile) for compile in (True, False)]
    compiled, eager = ({**agents.updates(), "pair of cycles": agents.cycles} for agents in sides)
    return turns.compare(f"torch.compile ({num_agents} agents of {units} units)", ("compiled", "eager"), compiled, eager)


def allocator(num_agents: int, options: argparse.Namespace, turns: Turns) -> Result:
    """Pairs of cycles with and without `keep_freed_memory`, which lasts as long as a process: so each in one of its own."""
    command = [
        sys.executable,
        __file__,
        f"--seed={options.seed}",
        f"--threads={options.threads}",
        f"--worker-agents={num_agents}",
    ]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    kept, given_back = workers = [subprocess.Popen([*command, f"--allocator={kind}"], **pipes) for kind in ("kept", "default")]

    def ask(worker: "subprocess.Popen[str]") -> None:
        assert worker.stdin is not None and worker.stdout is not None
        print(file=worker.stdin, flush=True)
        if not worker.stdout.readline():
            raise RuntimeError(f"a measured process ended with code {worker.wait()}")

    name, title = "pair of cycles", f"Memory that tensors free ({num_agents} agents of 64 units)"
    try:
        return turns.compare(title, ("kept", "given back"), {name: partial(ask, kept)}, {name: partial(ask, given_back)})
    finally:
        for worker in workers:
            worker.communicate()  # closes its input, which ends it


def work(num_agents: int, seed: int) -> None:
    """Be a process of `allocator`: a pair of cycles for each line of input."""
    agents = Agents(num_agents, 64, seed)
    for _ in sys.stdin:
        agents.cycles()
        print(flush=True)


def machine(threads: int, turns: Turns) -> dict[str, Any]:
    """What absolute times depend on."""
    matrix = torch.rand(1024, 1024)
    seconds = turns.take({"product": lambda: matrix @ matrix})["product"]
    return {
        "cores": os.cpu_count(),
        "threads": threads,
        "load average": os.getloadavg()[0],
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "float32 gigaflops": 2e-9 * 1024**3 / median(seconds),
    }


def shown(value: Any) -> str:
    """A table's entry; of a float three digits."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def show(console: Console, result: Result) -> None:
    """Print a table."""
    table = Table(title=result.title, title_justify="left")
    for i, column in enumerate(result.columns):
        table.add_column(column, justify="right" if i else "left")
    for row in result.rows:
        table.add_row(*map(shown, row))
    console.print(table)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="How fast update cycles are on this machine's CPU, and where their time goes.")
    parser.add_argument(
        "--quick", action="store_true", help="seconds instead of minutes: shows that it works, not how fast it is"
    )
    parser.add_argument("--full", action="store_true", help="also 20 agents of 350 units, minutes more")
    parser.add_argument("--compile", action="store_true", help="also torch.compile against eager, minutes more")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; default 1")
    parser.add_argument("--seed", type=int, default=0, help="of agents and objective; default 0")
    parser.add_argument("--out", type=Path, help=f"a JSON file; default {OUT}, with --quick none")
    parser.add_argument("--allocator", choices=["kept", "default"], help=argparse.SUPPRESS)
    parser.add_argument("--worker-agents", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.allocator != "default":
        keep_freed_memory()  # as train.py does
    if options.allocator:
        return work(options.worker_agents, options.seed)

    warnings.filterwarnings("ignore", module="pytorch_lightning")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    quick, seed, num_agents = options.quick, options.seed, 2 if options.quick else 6
    turns = Turns(1, 0.01) if quick else Turns(5, 1.0)
    sizes = {64: [1, 2]} if quick else {64: [1, 2, 6, 20], 350: [1, 2, 6, *([20] if options.full else [])]}
    measurements: list[Callable[[], Result]] = [
        lambda: population_sizes(sizes, seed, turns),
        lambda: parts_of_a_cycle(num_agents, seed, turns, 4 if quick else 50),
        lambda: stacking(num_agents, 64, seed, turns),
        lambda: meta_gradient_paths([(num_agents, 64)] if quick else [(6, 64), (2, 350)], seed, turns),
        lambda: allocator(num_agents, options, turns),
    ]
    if options.compile:
        measurements.append(lambda: compiling(num_agents, 64, seed, turns))
    facts, results, console = machine(options.threads, turns), [], Console()
    console.print(", ".join(f"{name} {shown(value)}" for name, value in facts.items()))
    for measure in measurements:
        results.append(measure())
        show(console, results[-1])
    out = options.out or (None if quick else Path(__file__).parents[1] / OUT)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        settings = {name: getattr(options, name) for name in ("quick", "full", "compile", "threads", "seed")}
        report = {"machine": facts, "options": settings, "results": [asdict(result) for result in results]}
        out.write_text(json.dumps(report, indent=1) + "\n")
        console.print(f"Written: {out}")


if __name__ == "__main__":
    main()
