"""One agent's update cycle against the paper's own TensorFlow graph, in units of a matrix product.

    python benchmarks/paper_graph.py [--compile] [--quick] [--threads 1] [--seed 0] [--out FILE]

The paper's graph is not shipped here. It was timed once, unmodified, in TensorFlow 2.15.1 with one thread, on an AMD Zen 3 core without
AVX-512, where a float32 product of 1024 x 1024 matrices took 39 ms. In that unit a cycle of one agent on HalfCheetah's spaces (100 windows
of 20; critic update, half a policy update, half a meta update) took 3.0 with 2 x 64 hidden units and 11.9 with 2 x 350. Here our updates
take turns with the same product, so the unit is measured under the same conditions. Objective: the paper's inputs, one SGD inner step.
"""

from functools import partial
from statistics import median
from typing import Any

from measure import Job, MatrixProduct, Result, Turns, add_compile, arguments, machine, parse_options, prepare, ratio, report
from metagenrl_pl.agents.population import AgentSettings
from workloads import assign_round_robin, make_agents, updates

PAPER = {64: 3.0, 350: 11.9}
"""Matrix products per cycle of the paper's graph, by hidden units."""

PRODUCT = "matrix product"


def cycle_in_products(units: int, compile: bool, seed: int, turns: Turns, quick: bool) -> Result:
    """The updates of one agent, and their cycle beside the paper's graph."""
    settings = AgentSettings(units, num_windows=4 if quick else 100)
    agents = make_agents(assign_round_robin(["HalfCheetah-v5"], 1), settings, seed, compile=compile)
    jobs: dict[str, Job] = {**updates(agents), PRODUCT: MatrixProduct()}
    times = turns.take(jobs)
    critic, policy, meta = (times[name] for name in jobs if name != PRODUCT)
    times["cycle"] = [c + (p + m) / 2 for c, p, m in zip(critic, policy, meta, strict=True)]
    rows: list[list[Any]] = [
        [name, 1e3 * median(seconds), ratio(seconds, times[PRODUCT]), None, None] for name, seconds in times.items()
    ]
    rows[-1][3:] = [PAPER[units], PAPER[units] / rows[-1][2]]
    columns = ["", "ms", "matrix products", "the paper's graph", "our speed / the paper's"]
    return Result(f"2 x {units} hidden units, {'compiled' if compile else 'eager'}", columns, rows, times)


def main() -> None:
    """Measure, print, write."""
    parser = arguments(__doc__.splitlines()[0], "paper_graph.json")
    add_compile(parser)
    parser.set_defaults(compile=False)
    options = parse_options(parser)
    prepare(options.threads)
    turns = Turns(1, 0.01) if options.quick else Turns(9, 1.0)
    ways = [False, True] if options.compile else [False]
    cases = [(units, way) for way in ways for units in PAPER]
    measurements = [partial(cycle_in_products, *case, options.seed, turns, options.quick) for case in cases]
    report(options, machine(turns), measurements)


if __name__ == "__main__":
    main()
