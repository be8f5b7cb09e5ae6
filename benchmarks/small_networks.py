"""Small networks with the paper's windows: what compiling and the factored meta-gradient gain, and what a larger population costs.

    python benchmarks/small_networks.py [--no-compile] [--agents 20] [--units 64] [--windows 100] [--env ID] [--quick]
                                        [--threads 1] [--seed 0] [--out FILE]

The reference is the program in its plainest form: stacked, eager, and with the meta-gradient through the whole inner loop
(`general_meta_gradients`). Whole cycles, environments included; all agents live in the same one, so that many agents do many times the
work of one.
"""

import argparse
from functools import partial
from statistics import median
from typing import Any

import torch

from measure import Result, Turns, add_compile, arguments, machine, parse_options, prepare, ratio, report
from metagenrl_pl.agents.population import AgentSettings
from metagenrl_pl.agents.stacked_networks import norm_per_agent
from metagenrl_pl.learning.cycle import Agents
from workloads import assign_round_robin, make_agents, run_cycles, updates

REFERENCE, EAGER, COMPILED = "eager, general meta-gradient", "eager", "compiled"
WAYS: dict[str, dict[str, Any]] = {REFERENCE: {"general": True}, EAGER: {}, COMPILED: {"compile": True}}


def agents_of(num_agents: int, way: str, options: argparse.Namespace) -> Agents:
    """A population that learns in one of the ways."""
    settings = AgentSettings(options.units, num_windows=options.windows, window_length=options.window_length)
    return make_agents(assign_round_robin([options.env], num_agents), settings, options.seed, **WAYS[way])


def times_of(options: argparse.Namespace, turns: Turns) -> dict[str, list[float]]:
    """Seconds of a pair of cycles, by turn, for one agent and for all of them in each of the ways."""
    ways = list(WAYS) if options.compile else [REFERENCE, EAGER]
    populations = {f"{n} agents, {way}": agents_of(n, way, options) for n in (1, options.agents) for way in ways}
    check_same_gradients(options)
    # Populations of two sizes in one process: each is to be compiled for its own shapes, as where it is alone.
    torch._dynamo.config.automatic_dynamic_shapes = False
    return turns.take({name: partial(run_cycles, agents) for name, agents in populations.items()})


def check_same_gradients(options: argparse.Namespace) -> None:
    """What is compared computes the same: the first meta-gradient of both eager ways, as far as float32 goes."""
    gradients = []
    for way in (REFERENCE, EAGER):
        agents = agents_of(1, way, options)
        updates(agents)["meta update"]()
        gradients.append({name: p.grad[None] for name, p in agents.objective.named_parameters() if p.grad is not None})
    difference = norm_per_agent({name: gradients[0][name] - gradients[1][name] for name in gradients[0]})
    assert (difference < 1e-3 * norm_per_agent(gradients[0])).all(), "not the same meta-gradient"


def compare_ways(times: dict[str, list[float]], title: str) -> Result:
    """How much faster than the reference each way is."""
    rows = []
    for name, seconds in times.items():
        population = name.partition(", ")[0]
        gain = ratio(times[f"{population}, {REFERENCE}"], seconds)
        rows.append([name, 1e3 * median(seconds) / 2, gain])
    halved = {name: [s / 2 for s in seconds] for name, seconds in times.items()}
    return Result(f"Cycles against the reference ({title})", ["", "ms per cycle", "reference / time"], rows, halved)


def compare_sizes(times: dict[str, list[float]], num_agents: int, title: str) -> Result:
    """What many agents cost beside one."""
    rows = []
    for name in times:
        if name.startswith("1 agents, "):
            way = name.partition(", ")[2]
            many = times[f"{num_agents} agents, {way}"]
            rows.append([way, 1e3 * median(times[name]) / 2, 1e3 * median(many) / 2, ratio(many, times[name])])
    columns = ["", "1 agent, ms per cycle", f"{num_agents} agents, ms per cycle", f"{num_agents} agents / 1 agent"]
    return Result(f"Cost of a population ({title})", columns, rows)


def main() -> None:
    """Measure, print, write."""
    parser = arguments("What compiling gains, and what a larger population costs, with small networks.", "small_networks.json")
    add_compile(parser)
    parser.add_argument("--agents", type=int, default=20, help="of the larger population; default 20")
    parser.add_argument("--units", type=int, default=64, help="hidden units of the agents' networks; default 64")
    parser.add_argument("--windows", type=int, default=100, help="windows per update; default 100")
    parser.add_argument("--window-length", type=int, default=20, help="steps in a window; default 20")
    parser.add_argument("--env", default="Pendulum-v1", help="of every agent; default Pendulum-v1")
    options = parse_options(parser)
    if options.quick:
        options.agents, options.windows = 3, 10
    prepare(options.threads)
    turns = Turns(1, 0.01) if options.quick else Turns(7, 1.0)
    facts, times = machine(turns), times_of(options, turns)
    title = f"{options.env}, {options.units} units, {options.windows} windows of {options.window_length}"
    report(options, facts, [lambda: compare_ways(times, title), lambda: compare_sizes(times, options.agents, title)])


if __name__ == "__main__":
    main()
