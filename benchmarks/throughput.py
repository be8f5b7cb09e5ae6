"""How fast eager update cycles are on this machine's CPU, by population size, and what makes them so.

    python benchmarks/throughput.py [--quick] [--full] [--threads 1] [--seed 0] [--out FILE]

The objective is the learned one with one SGD inner step, after the annealing. A cycle is one env step of every agent and one update;
every second one also updates policies and objective, so times per cycle are means over whole pairs. `cycle.py` measures where the time
of a cycle goes, and `small_networks.py` what compiling gains.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median

from measure import Job, Result, Turns, Worker, arguments, call_each, machine, prepare, ratio, report, serve
from metagenrl_pl.agents.population import AgentSettings
from metagenrl_pl.agents.stacked_networks import norm_per_agent
from metagenrl_pl.learning.cycle import Agents
from metagenrl_pl.learning.meta_update import MetaTask, factored_meta_gradients, general_meta_gradients
from workloads import META, assign_round_robin, make_agents, run_cycles, updates

WORKLOADS = {64: (["Pendulum-v1", "InvertedPendulum-v5", "Reacher-v5"], 32), 350: (["HalfCheetah-v5"], 100)}
"""By hidden units of an agent's networks: the environments, dealt round robin, and the windows per update."""


def agents_of(num_agents: int, units: int, seed: int, only: int | None = None) -> Agents:
    """The agents of a workload; with `only`, nothing but that one of them."""
    ids, num_windows = WORKLOADS[units]
    specs, first = assign_round_robin(ids, num_agents), only or 0
    settings = AgentSettings(units, num_windows=num_windows)
    chosen = specs if only is None else specs[only : only + 1]
    return make_agents(chosen, settings, seed, first=first)


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
    parser = arguments("How fast eager update cycles are on this machine's CPU, by population size.", "throughput.json")
    parser.add_argument("--full", action="store_true", help="also 20 agents of 350 units, minutes more")
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
        lambda: stacking(num_agents, 64, seed, turns),
        lambda: meta_gradient_paths([(num_agents, 64)] if quick else [(6, 64), (2, 350)], seed, turns),
        lambda: allocator(num_agents, options, turns),
    ]
    report(options, machine(turns), measurements)


if __name__ == "__main__":
    main()
