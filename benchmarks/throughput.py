"""How fast update cycles are on this machine's CPU, and where their time goes.

    python benchmarks/throughput.py [--quick] [--full] [--compile] [--threads 1] [--seed 0] [--out FILE]

What is compared takes turns in one run (A B A B ...), and a ratio is the median over the turns of the ratio within a turn: a busy
machine slows both sides. Absolute times are medians too and belong to this machine. The objective is the learned one with one SGD
inner step, after the annealing; a cycle is one env step of every agent and one update, and every second one updates policies and
objective too, so times per cycle are means over pairs.
"""

import argparse
import os
import platform
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.table import Table

from metagenrl_pl.collector import Collector
from metagenrl_pl.datamodule import MacroBatch, ReplayDataModule, ReplaySettings
from metagenrl_pl.envs import Environment, EnvironmentSpec
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

OUT = Path(__file__).parents[1] / "results" / "performance" / "throughput.json"
WORKLOADS = {64: (["Pendulum-v1", "InvertedPendulum-v5", "Reacher-v5"], 32), 350: (["HalfCheetah-v5"], 100)}
"""By hidden units of an agent's networks: the environments, dealt round robin, and the windows per update."""

Job = Callable[[], object]
Times = dict[str, list[float]]
"""Seconds per call of each job, by turn."""


@dataclass
class Result:
    """A table, with the seconds that it was made from."""

    title: str
    columns: list[str]
    rows: list[list[str | int | float]]
    seconds: Times


@dataclass
class Effort:
    """How long to measure: turns of each job, and seconds of each turn."""

    turns: int
    seconds: float


class Agents:
    """A population with its environments and a replay that holds a few episodes, ready to learn.

    Args:
        num_agents, hidden_units: size of the population and of its networks.
        seed: everything random follows from it.
        compile: run the updates through `torch.compile`.
        only: take this agent of the population and no other.
        num_stored: env steps of each agent, at random, before anything is measured.
    """

    def __init__(
        self, num_agents: int, hidden_units: int, seed: int, compile: bool = False, only: int | None = None, num_stored: int = 250
    ) -> None:
        ids, num_windows = WORKLOADS[hidden_units]
        chosen = range(num_agents) if only is None else [only]
        self.specs = [EnvironmentSpec(ids[i % len(ids)]) for i in chosen]
        self.seeds = [derive_seed(seed, "agent", i) for i in chosen]
        self.settings = AgentSettings(hidden_units, num_windows=num_windows, random_env_steps=num_stored, warmup_env_steps=1)
        environments = [Environment(spec) for spec in self.specs]
        self.sizes = [(environment.observation_size, environment.action_size) for environment in environments]
        self.objective, self.inner, self.meta = LearnedObjective(seed=seed), SGD(), MetaSettings(annealing_env_steps=0)
        population = Population(self.sizes, self.seeds, self.settings)
        self.learner = Learner(population, self.objective, self.settings, self.seeds, self.inner, self.meta, compile)
        replay = Replay(self.sizes, 100_000, self.settings.window_length)
        noise = self.settings.exploration_noise
        self.collector = Collector(environments, self.seeds, replay, population.act, noise, random_env_steps=num_stored)
        for _ in range(num_stored):
            self.collector.step()

    def cycles(self, num_cycles: int = 2) -> None:
        """What `MetaGenRL.training_step` does with a macro batch, without Lightning."""
        for collector in MacroBatch(self.collector, num_cycles):
            self.learner.update(collector.draw, collector.env_steps)
        self.learner.check_finite()

    def updates(self) -> dict[str, Job]:
        """The three updates, each on windows that stay the same."""
        learner, windows = self.learner, self.collector.draw(2 * self.settings.num_windows)
        half = windows.slice(0, self.settings.num_windows)
        return {
            "critic update": lambda: learner._update_critics(half, learner.critic_optimizer.step),
            "policy update": lambda: learner._update_policies(half, self.collector.env_steps),
            "meta update": lambda: learner._update_objective(windows),
        }


def elapsed(job: Job, num_calls: int = 1) -> float:
    """Seconds per call."""
    start = time.perf_counter()
    for _ in range(num_calls):
        job()
    return (time.perf_counter() - start) / num_calls


def take_turns(jobs: Mapping[str, Job], effort: Effort) -> Times:
    """Time every job in turn, several times over, after a warm-up."""
    num_calls = {}
    for name, job in jobs.items():
        job()
        num_calls[name] = max(1, round(effort.seconds / elapsed(job)))
    times: Times = {name: [] for name in jobs}
    for _ in range(effort.turns):
        for name, job in jobs.items():
            times[name].append(elapsed(job, num_calls[name]))
    return times


def ratio(times: Sequence[float], base: Sequence[float]) -> float:
    """How many times `base` it takes, as a median over turns."""
    return median(t / b for t, b in zip(times, base, strict=True))


def versus(title: str, times: Times, pairs: Mapping[str, tuple[str, str]], names: tuple[str, str], num_cycles: int = 1) -> Result:
    """A table of what takes `names[0]` and `names[1]`, side by side, for each pair of jobs; a job makes `num_cycles` calls."""
    rows: list[list[str | int | float]] = []
    for label, (a, b) in pairs.items():
        absolute = [1e3 * median(times[job]) / num_cycles for job in (a, b)]
        rows.append([label, *absolute, ratio(times[b], times[a])])
    return Result(title, ["", f"{names[0]}, ms", f"{names[1]}, ms", "ratio"], rows, times)


def population_sizes(sizes: Mapping[int, Sequence[int]], seed: int, effort: Effort) -> Result:
    """Whole cycles on real environments, by network size (`sizes`' keys) and population size."""
    jobs = {(u, n): Agents(n, u, seed).cycles for u in sizes for n in sizes[u]}
    times = take_turns({f"{u} units, {n} agents": job for (u, n), job in jobs.items()}, effort)
    rows: list[list[str | int | float]] = []
    for u, n in jobs:
        seconds = times[f"{u} units, {n} agents"]
        cycles = 2 / median(seconds)
        rows.append([u, n, 1e3 / cycles, cycles, n * cycles, ratio(seconds, times[f"{u} units, {sizes[u][0]} agents"])])
    columns = ["hidden units", "agents", "ms per cycle", "cycles per s", "agent env steps per s", "time ratio to first"]
    return Result("Update cycles by size of population and networks", columns, rows, {k: [t / 2 for t in v] for k, v in times.items()})


class SideBySide(pl.Callback):
    """Lets a twin run each macro batch before Lightning runs the same, and times both and the twin's parts."""

    def __init__(self, twin: Agents, num_cycles: int) -> None:
        self.times: dict[str, list[float]] = defaultdict(list)
        self._twin, self._num_cycles, self._since = twin, num_cycles, 0.0
        self._clock: dict[str, float] = {}
        collector, learner = twin.collector, twin.learner
        self._watch("environments and acting", collector, "step")
        self._watch("window sampling", collector, "draw")
        self._watch("critic update", learner, "_update_critics")
        self._watch("policy update", learner, "_update_policies")
        self._watch("meta update", learner, "_update_objective")

    def _watch(self, part: str, owner: object, name: str) -> None:
        """Let the clock of a part run while a method does."""
        method = getattr(owner, name)

        def watched(*arguments: Any) -> Any:
            start = time.perf_counter()
            out = method(*arguments)
            self._clock[part] += time.perf_counter() - start
            return out

        self._clock[part] = 0.0
        setattr(owner, name, watched)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Between two of these Lightning does all that it does for a batch."""
        if batch_idx > 0:
            self.times["with Lightning"].append((time.perf_counter() - self._since) / self._num_cycles)
        self._clock = dict.fromkeys(self._clock, 0.0)
        self.times["bare loop"].append(elapsed(lambda: self._twin.cycles(self._num_cycles)) / self._num_cycles)
        for part, seconds in self._clock.items():
            self.times[part].append(seconds / self._num_cycles)
        self._since = time.perf_counter()


def parts_of_a_cycle(num_agents: int, seed: int, effort: Effort, updates_per_batch: int = 50) -> Result:
    """Where a cycle's time goes, Lightning's part being the difference between `Trainer.fit` and a loop over the same cycles."""
    twin = Agents(num_agents, 64, seed, num_stored=0)
    module = MetaGenRL(twin.sizes, twin.seeds, LearnedObjective(seed=seed), twin.settings, twin.inner, twin.meta)
    env_steps = (effort.turns + 2) * updates_per_batch  # the first batch warms up, the last one ends without a successor
    datamodule = ReplayDataModule(twin.specs, twin.seeds, twin.settings, ReplaySettings(100_000), env_steps, updates_per_batch)
    callback = SideBySide(twin, updates_per_batch)
    silent: dict[str, Any] = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    pl.Trainer(accelerator="cpu", devices=1, max_epochs=1, callbacks=[callback], **silent).fit(module, datamodule)
    for name, p in module.learner.population.policy.items():
        assert torch.equal(p, twin.learner.population.policy[name]), "both sides must do the same cycles"

    times = {name: seconds[1 : effort.turns + 1] for name, seconds in callback.times.items()}
    whole, bare = times.pop("with Lightning"), times.pop("bare loop")
    known = [sum(parts) for parts in zip(*times.values(), strict=True)]
    times["rest (targets, checks)"] = [b - k for b, k in zip(bare, known, strict=True)]
    times["Lightning"] = [w - b for w, b in zip(whole, bare, strict=True)]
    times["whole cycle"] = whole
    rows: list[list[str | int | float]] = [[part, 1e3 * median(s), 100 * ratio(s, whole)] for part, s in times.items()]
    title = f"Parts of a cycle ({num_agents} agents, 64 units, {updates_per_batch} cycles per batch)"
    return Result(title, ["", "ms per cycle", "% of the cycle"], rows, times)


def stacking(num_agents: int, units: int, seed: int, effort: Effort) -> Result:
    """A stacked population against its agents one at a time."""
    stacked = Agents(num_agents, units, seed).updates()
    single = [Agents(num_agents, units, seed, only=i).updates() for i in range(num_agents)]
    jobs: dict[str, Job] = {}
    for update, job in stacked.items():
        jobs[f"{update}, stacked"] = job
        jobs[f"{update}, one at a time"] = lambda update=update: [agent[update]() for agent in single]
    pairs = {update: (f"{update}, stacked", f"{update}, one at a time") for update in stacked}
    title = f"Stacked population against one agent at a time ({num_agents} agents, {units} units)"
    return versus(title, take_turns(jobs, effort), pairs, ("stacked", "one at a time"))


def meta_gradient_paths(workloads: Sequence[tuple[int, int]], seed: int, effort: Effort) -> Result:
    """The factored path to the meta-gradient against the general one on the same inputs, for (hidden units, agents)."""
    jobs: dict[str, Job] = {}
    pairs, differences = {}, []
    for units, num_agents in workloads:
        agents = Agents(num_agents, units, seed)
        population = agents.learner.population
        windows = agents.collector.draw(2 * agents.settings.num_windows)
        task = MetaTask(population.policy, first_critic(population.critics), windows)
        inputs = (population.networks, agents.objective, agents.inner, agents.objective.stacked_parameters(num_agents), task)
        label = f"{units} units, {num_agents} agents"
        pairs[label] = (f"{label}, factored", f"{label}, general")
        jobs[pairs[label][0]] = lambda inputs=inputs: factored_meta_gradients(*inputs)
        jobs[pairs[label][1]] = lambda inputs=inputs: general_meta_gradients(*inputs)
        factored, general = factored_meta_gradients(*inputs)[0], general_meta_gradients(*inputs)[0]
        difference = norm_per_agent({name: factored[name] - general[name] for name in general}) / norm_per_agent(general)
        differences.append(float(difference.max()))
    result = versus("Two exact paths to the meta-gradient", take_turns(jobs, effort), pairs, ("factored", "general"))
    result.columns.append("largest relative difference of an agent's gradient")
    for row, value in zip(result.rows, differences, strict=True):
        row.append(value)
    return result


def compiling(num_agents: int, units: int, seed: int, effort: Effort) -> Result:
    """Updates and whole cycles through `torch.compile` against eager ones."""
    jobs: dict[str, Job] = {}
    for kind in ("eager", "compiled"):
        agents = Agents(num_agents, units, seed, compile=kind == "compiled")
        for name, job in {**agents.updates(), "pair of cycles": agents.cycles}.items():
            jobs[f"{name}, {kind}"] = job
    pairs = {name: (f"{name}, compiled", f"{name}, eager") for name in (*agents.updates(), "pair of cycles")}
    return versus(f"torch.compile ({num_agents} agents, {units} units)", take_turns(jobs, effort), pairs, ("compiled", "eager"))


def allocator(num_agents: int, seed: int, threads: int, effort: Effort) -> Result:
    """Eager cycles with and without `keep_freed_memory`, which lasts as long as a process: each in a process of its own."""
    command = [sys.executable, __file__, "--seed", str(seed), "--threads", str(threads), "--agents", str(num_agents), "--allocator"]
    workers = {
        kind: subprocess.Popen([*command, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for kind in ("tuned", "default")
    }

    def ask(worker: subprocess.Popen[str]) -> None:
        assert worker.stdin is not None and worker.stdout is not None
        print(file=worker.stdin, flush=True)
        if not worker.stdout.readline():
            raise RuntimeError(f"the measured process ended with code {worker.wait()}")

    try:
        times = take_turns({kind: lambda worker=worker: ask(worker) for kind, worker in workers.items()}, effort)
    finally:
        for worker in workers.values():
            worker.communicate()  # the end of its input ends it
    title = f"Memory kept when tensors free it ({num_agents} agents, 64 units)"
    return versus(title, times, {"cycle": ("tuned", "default")}, ("kept (run.keep_freed_memory)", "given back"), num_cycles=2)


def answer(num_agents: int, seed: int) -> None:
    """Be a worker of `allocator`: a pair of cycles for each line."""
    agents = Agents(num_agents, 64, seed)
    for _ in sys.stdin:
        agents.cycles()
        print(flush=True)


def machine(threads: int, effort: Effort) -> dict[str, Any]:
    """Facts to judge absolute times by."""
    size = 1024
    a = torch.randn(size, size)
    seconds = take_turns({"product": lambda: a @ a}, effort)["product"]
    return {
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": threads,
        "float32_gflops": 2e-9 * size**3 / median(seconds),
        "float32_product_seconds": seconds,
    }


def shown(value: str | int | float) -> str:
    """Three digits of a float."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def show(console: Console, result: Result) -> None:
    """Print a table."""
    table = Table(*result.columns, title=result.title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in result.rows:
        table.add_row(*map(shown, row))
    console.print(table)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Measure update cycles on this machine's CPU.")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes; shows that it works, not how fast it is")
    parser.add_argument("--full", action="store_true", help="also 20 agents of 350 units: minutes more")
    parser.add_argument("--compile", action="store_true", help="also torch.compile against eager: minutes more")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch (1)")
    parser.add_argument("--seed", type=int, default=0, help="of agents and objective (0)")
    parser.add_argument("--out", type=Path, help=f"JSON file ({OUT.relative_to(OUT.parents[2])}; with --quick none)")
    parser.add_argument("--agents", type=int, default=6, help=argparse.SUPPRESS)
    parser.add_argument("--allocator", choices=["tuned", "default"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.allocator != "default":
        keep_freed_memory()  # as train.py does
    if options.allocator:
        return answer(options.agents, options.seed)

    warnings.filterwarnings("ignore", module="pytorch_lightning")
    n, seed, quick = options.agents, options.seed, options.quick
    sizes: dict[int, list[int]] = {64: [1, 6]} if quick else {64: [1, 2, 6, 20], 350: [1, 2, 6]}
    if options.full:
        sizes[350] = [1, 2, 6, 20]
    effort = Effort(1, 0.05) if quick else Effort(5, 1.0)
    console, facts = Console(), machine(options.threads, effort)
    ...


if __name__ == "__main__":
    main()
