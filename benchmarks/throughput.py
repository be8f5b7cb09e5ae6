"""How fast update cycles are on this machine's CPU, and where their time goes.

    python benchmarks/throughput.py [--quick] [--full] [--compile] [--threads 1] [--seed 0] [--out FILE]

The objective is the learned one with one SGD inner step, after the annealing. A cycle is one env step of every agent and one update;
every second one also updates policies and objective, so times per cycle are means over whole pairs.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch

from clock import PARTS, REST, Clock
from measure import Job, Result, Turns, Worker, arguments, call_each, elapsed, machine, prepare, ratio, report, serve
from metagenrl_pl.agents.population import AgentSettings
from metagenrl_pl.agents.stacked_networks import norm_per_agent
from metagenrl_pl.learning.cycle import Agents
from metagenrl_pl.learning.meta_update import MetaTask, factored_meta_gradients, general_meta_gradients
from metagenrl_pl.training.datamodule import ReplayDataModule
from metagenrl_pl.training.module import MetaGenRL
from workloads import META, assign_round_robin, make_agents, run_cycles, updates

WORKLOADS = {64: (["Pendulum-v1", "InvertedPendulum-v5", "Reacher-v5"], 32), 350: (["HalfCheetah-v5"], 100)}
"""By hidden units of an agent's networks: the environments, dealt round robin, and the windows per update."""


def agents_of(num_agents: int, units: int, seed: int, only: int | None = None, **options: Any) -> Agents:
    """The agents of a workload; with `only`, nothing but that one of them."""
    ids, num_windows = WORKLOADS[units]
    specs, first = assign_round_robin(ids, num_agents), only or 0
    settings = AgentSettings(units, num_windows=num_windows)
    chosen = specs if only is None else specs[only : only + 1]
    return make_agents(chosen, settings, seed, first=first, **options)


def population_sizes(sizes: Mapping[int, Sequence[int]], seed: int, turns: Turns) -> Result:
    """Whole cycles by network size (the keys of `sizes`) and population size."""
    names = {(units, n): f"{units} units, {n} agents" for units in sizes for n in sizes[units]}
    times = turns.take({name: partial(run_cycles, agents_of(n, units, seed)) for (units, n), name in names.items()})
    times = {name: [s / 2 for s in seconds] for name, seconds in times.items()}  # one cycle
    rows = []
    for (units, n), name in names.items():
        cycles = 1 / median(times[name])
        rows.append([units, n, 1e3 / cycles, cycles, n * cycles, ratio(times[name], times[names[units, sizes[units][0]]])])
    columns = ["hidden units", "agents", "ms per cycle", "cycles per s", "agent env steps per s", "time / time of 1 agent"]
    return Result("Update cycles by size of networks and population", columns, rows, times)


def parts_of_a_cycle(num_agents: int, seed: int, turns: Turns, num_cycles: int) -> Result:
    """Where the time of a whole cycle goes, and what Lightning adds to it."""
    agents, clock = agents_of(num_agents, 64, seed), Clock()
    clock.put_on_cycle(agents)
    run_cycles(agents)
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(turns.number):
        clock.take()
        whole = elapsed(partial(run_cycles, agents), num_cycles // 2) / 2
        parts = {part: seconds / num_cycles for part, seconds in clock.take().items()}
        parts = {part: parts[part] for part in PARTS}
        for part, seconds in {**parts, REST: whole - sum(parts.values()), "whole cycle": whole}.items():
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
    twin, agents = (agents_of(1, 64, seed, num_stored=0, learns=False) for _ in range(2))
    env_steps = (num_turns + 2) * num_cycles  # the first batch warms up, the last has no successor that ends its time
    callback = SideBySide(partial(run_cycles, twin, num_cycles))
    silent: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", devices=1, max_epochs=1, enable_checkpointing=False, callbacks=[callback], **silent)
    trainer.fit(MetaGenRL(agents), ReplayDataModule(agents, env_steps, num_cycles))
    for name, p in agents.population.policy.items():
        assert torch.equal(p, twin.population.policy[name]), "not the same cycles"
    both = {"1 agent without meta update, Lightning": callback.lightning, "1 agent without meta update, bare loop": callback.bare}
    return {name: [s / num_cycles for s in seconds[1 : num_turns + 1]] for name, seconds in both.items()}


def stacking(num_agents: int, units: int, seed: int, turns: Turns) -> Result:
    """A stacked population against its agents one at a time."""
    stacked = updates(agents_of(num_agents, units, seed))
    agents = [updates(agents_of(num_agents, units, seed, only=i)) for i in range(num_agents)]
    one_at_a_time = {name: partial(call_each, [agent[name] for agent in agents]) for name in stacked}
    title = f"A stacked population against one agent at a time ({num_agents} agents of {units} units)"
    return turns.compare(title, ("stacked", "one at a time"), stacked, one_at_a_time)


def meta_gradient_paths(workloads: Sequence[tuple[int, int]], seed: int, turns: Turns) -> Result:
    """The factored path to the meta-gradient against the general one on the same inputs, for (agents, hidden units)."""
    paths: tuple[dict[str, Job], dict[str, Job]] = ({}, {})
    differences = []
    for num_agents, units in workloads:
        agents = agents_of(num_agents, units, seed)
        windows = agents.collector.draw(2 * agents.settings.num_windows)
        task = MetaTask(agents.population.policy, agents.population.critics, windows)
        alpha = agents.objective.stacked_parameters(num_agents)
        inputs = (agents.population.networks, agents.objective, META.inner, META.judge, alpha, task)
        factored, general = factored_meta_gradients(*inputs)[0], general_meta_gradients(*inputs)[0]
        difference = norm_per_agent({name: factored[name] - general[name] for name in general})
        differences.append(float((difference / norm_per_agent(general)).max()))
        for path, function in zip(paths, (factored_meta_gradients, general_meta_gradients), strict=True):
            path[f"{num_agents} agents of {units} units"] = partial(function, *inputs)
    result = turns.compare("Two exact paths to the meta-gradient", ("factored", "general"), *paths)
    result.columns.append("largest relative difference")
    result.rows = [[*row, difference] for row, difference in zip(result.rows, differences, strict=True)]
    return result


def jobs_of(agents: Agents) -> dict[str, Job]:
    """The updates and a pair of cycles."""
    return {**updates(agents), "pair of cycles": partial(run_cycles, agents)}


def compiling(num_agents: int, units: int, seed: int, turns: Turns) -> Result:
    """Updates and pairs of cycles through `torch.compile` against eager ones."""
    sides = [agents_of(num_agents, units, seed, compile=compile) for compile in (True, False)]
    compiled, eager = (jobs_of(agents) for agents in sides)
    return turns.compare(f"torch.compile ({num_agents} agents of {units} units)", ("compiled", "eager"), compiled, eager)


def allocator(num_agents: int, options: argparse.Namespace, turns: Turns) -> Result:
    """Pairs of cycles with and without `keep_freed_memory`, which lasts as long as a process: so each in one of its own."""
    common = [f"--seed={options.seed}", f"--threads={options.threads}", f"--worker-agents={num_agents}"]
    kept, given_back = workers = [Worker(__file__, *common, f"--allocator={kind}") for kind in ("kept", "default")]
    name, title = "pair of cycles", f"Memory that tensors free ({num_agents} agents of 64 units)"
    try:
        return turns.compare(title, ("kept", "given back"), {name: kept.ask}, {name: given_back.ask})
    finally:
        for worker in workers:
            worker.close()


def main() -> None:
    """Measure, print, write."""
    parser = arguments("How fast update cycles are on this machine's CPU, and where their time goes.", "throughput.json")
    parser.add_argument("--full", action="store_true", help="also 20 agents of 350 units, minutes more")
    parser.add_argument("--compile", action="store_true", help="also torch.compile against eager, minutes more")
    parser.add_argument("--allocator", choices=["kept", "default"], help=argparse.SUPPRESS)
    parser.add_argument("--worker-agents", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    prepare(options.threads, keep_memory=options.allocator != "default")
    if options.allocator:
        agents = agents_of(options.worker_agents, 64, options.seed)
        return serve(lambda question: run_cycles(agents))

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
    report(options, machine(turns), measurements)


if __name__ == "__main__":
    main()
