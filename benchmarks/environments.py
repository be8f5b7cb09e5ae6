"""How fast environments step in the training process and in worker processes.

    python benchmarks/environments.py [--num 8] [--workers 1 2] [--quick] [--out FILE]

Every environment takes the same random actions; episodes that end begin anew.
"""

from functools import partial
from statistics import median

import numpy as np

from measure import Result, Turns, arguments, machine, parse_options, prepare, ratio, report
from metagenrl_pl.environments.environment import EnvironmentSpec
from metagenrl_pl.environments.group import EnvironmentGroup
from metagenrl_pl.environments.workers import make_group

SPECS = [
    EnvironmentSpec("Pendulum-v1"),
    EnvironmentSpec("LunarLander-v3", {"continuous": True}),
    EnvironmentSpec("HalfCheetah-v5"),
    EnvironmentSpec("Hopper-v5"),
    EnvironmentSpec("Ant-v5"),
]


def step(group: EnvironmentGroup, rng: np.random.Generator) -> None:
    """Every environment takes a step; those that ended begin anew."""
    group.begin_step(rng.uniform(-1, 1, (len(group), group.action_size)).astype(np.float32))
    for index in np.flatnonzero(group.end_step().ended).tolist():
        group.reset(index, int(rng.integers(2**31)))


def rates(spec: EnvironmentSpec, num: int, worker_counts: list[int], turns: Turns) -> Result:
    """Steps per second of `num` environments of one kind, by number of workers; 0 is this process."""
    groups = {f"{workers} workers": make_group([spec] * num, workers) for workers in [0, *worker_counts]}
    for group in groups.values():
        for index in range(num):
            group.reset(index, seed=index)
    times = turns.take({name: partial(step, group, np.random.default_rng(0)) for name, group in groups.items()})
    for group in groups.values():
        group.close()
    rows = [[name, num / median(seconds), ratio(times["0 workers"], seconds)] for name, seconds in times.items()]
    return Result(f"{num} x {spec.name}", ["", "env steps per s", "speed / this process"], rows, times)


def main() -> None:
    """Measure, print, write."""
    parser = arguments(__doc__.splitlines()[0], "environments.json")
    parser.add_argument("--num", type=int, default=8, help="environments of each kind; default 8")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2], help="worker processes; default 1 2")
    options = parse_options(parser)
    prepare(options.threads)
    turns = Turns(1, 0.01) if options.quick else Turns(5, 1.0)
    num, specs = (2, SPECS[:2]) if options.quick else (options.num, SPECS)
    report(options, machine(turns), [partial(rates, spec, num, options.workers, turns) for spec in specs])


if __name__ == "__main__":
    main()
