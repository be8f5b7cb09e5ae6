"""TD3 through this project against TD3 of Stable-Baselines3: gradient updates per second, sampling included, on the CPU.

    pip install -e ".[train,sb3]"
    python benchmarks/against_sb3.py [--no-compile] [--env HalfCheetah-v5] [--quick] [--seed 0] [--out FILE]

Both sides train two layers of 256 units on batches of 256 transitions, with twin critics and a policy update after every second critic
update; here that is windows of length 1 and the critic as the objective. Environments stand still. Each side runs with one thread and with
two, in a process for each, which take turns; a side's best number of threads counts. Then several agents of this project in one program,
against the floor: the arithmetic they need over the rate of a matrix product in the same process.
"""

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

from arithmetic import total, work_per_cycle
from measure import (
    MatrixProduct,
    Result,
    Turns,
    Worker,
    add_compile,
    arguments,
    elapsed,
    machine,
    parse_options,
    prepare,
    ratio,
    report,
    serve,
)
from metagenrl_pl.agents.population import AgentSettings
from metagenrl_pl.environments.environment import Environment, EnvironmentSpec
from metagenrl_pl.learning.cycle import Agents
from metagenrl_pl.objectives import CriticObjective
from workloads import assign_round_robin, make_agents, pair_of_updates

UNITS, BATCH, DELAY, NUM_STORED, STACKED = 256, 256, 2, 1000, 8
SETTINGS = AgentSettings(UNITS, layer_norm=False, window_length=1, num_windows=BATCH, policy_delay=DELAY)
SB3, EAGER, COMPILED = "stable-baselines3", "this project, eager", "this project, compiled"
BOTH = f"{STACKED} agents, "
SETTLE = 0.3  # seconds; a process whose threads have just worked lets them spin for a while


def sb3_updates(env: str, seed: int) -> Callable[[], object]:
    """A pair of updates of Stable-Baselines3, as its `learn` does one after each env step."""
    from stable_baselines3 import TD3
    from stable_baselines3.common.logger import Logger

    model = TD3(
        "MlpPolicy",
        Environment(EnvironmentSpec(env)).gymnasium,  # made without the warnings of MuJoCo
        policy_kwargs={"net_arch": [UNITS, UNITS]},
        batch_size=BATCH,
        policy_delay=DELAY,
        gradient_steps=1,
        learning_starts=NUM_STORED,
        buffer_size=100_000,
        seed=seed,
        device="cpu",
    )
    model.learn(NUM_STORED)  # random actions fill the replay
    model.set_logger(Logger(None, []))  # silent

    def pair() -> None:
        for _ in range(DELAY):
            model.train(gradient_steps=1, batch_size=BATCH)

    return pair


def our_updates(env: str, seed: int, num_agents: int, compile: bool) -> Agents:
    """Agents of this project, with as much experience."""
    specs, objective = assign_round_robin([env], num_agents), CriticObjective()
    return make_agents(specs, SETTINGS, seed, objective=objective, learns=False, compile=compile, num_stored=NUM_STORED)


def work(side: str, options: argparse.Namespace) -> None:
    """Be one side's process: asked for a number of pairs, or for a number of matrix products, it answers with the seconds of one."""
    num_agents, side = (STACKED, side.removeprefix(BOTH)) if side.startswith(BOTH) else (1, side)
    if side == SB3:
        pair = sb3_updates(options.env, options.seed)
    else:
        pair = partial(pair_of_updates, our_updates(options.env, options.seed, num_agents, side == COMPILED))
    jobs: dict[str, Callable[[], object]] = {"pair": pair, "product": MatrixProduct()}

    def answer(question: str) -> float:
        name, num_calls = question.split()
        jobs[name]()  # wakes caches and threads
        return elapsed(jobs[name], int(num_calls))

    serve(answer)


def seconds_of(worker: Worker, job: str, seconds: float, num_calls: dict[tuple[Worker, str], int]) -> float:
    """Seconds of one call; about as many calls as fill some seconds, found out in the first turn."""
    time.sleep(SETTLE)
    if (worker, job) not in num_calls:
        worker.ask(f"{job} 2")  # compiles
        num_calls[worker, job] = max(1, round(seconds / float(worker.ask(f"{job} 2"))))
    return float(worker.ask(f"{job} {num_calls[worker, job]}"))


def measure(options: argparse.Namespace, turns: Turns) -> dict[str, list[float]]:
    """Seconds of one update (a mean of a policy's and none) by side and threads, and of a matrix product beside each, by turn."""
    ours = [EAGER, COMPILED] if options.compile else [EAGER]
    sides = [(side, threads) for side in (SB3, *ours, *(BOTH + side for side in ours)) for threads in options.all_threads]
    workers = {}
    for side, threads in sides:
        worker = Worker(__file__, f"--side={side}", f"--threads={threads}", f"--seed={options.seed}", f"--env={options.env}")
        workers[f"{side}, {threads} thread{'s' * (threads > 1)}"] = worker
    num_calls: dict[tuple[Worker, str], int] = {}
    times: dict[str, list[float]] = {}
    try:
        for _ in range(turns.number):
            for name, worker in workers.items():
                times.setdefault(name, []).append(seconds_of(worker, "pair", turns.seconds, num_calls) / DELAY)
                product = seconds_of(worker, "product", turns.seconds / 4, num_calls)
                times.setdefault(f"{name}: matrix product", []).append(product)
    finally:
        for worker in workers.values():
            worker.close()
    return times


def best(times: dict[str, list[float]], side: str) -> str:
    """A side with its best number of threads."""
    names = [name for name in times if name.startswith(f"{side}, ") and not name.endswith("matrix product")]
    return min(names, key=lambda name: median(times[name]))


def compare(times: dict[str, list[float]], env: str) -> Result:
    """One agent on each side."""
    reference = times[best(times, SB3)]
    rows: list[list[Any]] = []
    for name, seconds in times.items():
        if name.startswith((SB3, EAGER, COMPILED)) and not name.endswith("matrix product"):
            is_best = name == best(times, name.rpartition(", ")[0])
            speed = ratio(reference, seconds)
            rows.append([name + (" (its best)" if is_best else ""), 1e3 * median(seconds), 1 / median(seconds), speed])
    columns = ["one agent", "ms per update", "updates per s", f"speed / {SB3} at its best"]
    return Result(f"TD3, two layers of {UNITS} units, batches of {BATCH} ({env})", columns, rows, times)


def compare_stacked(times: dict[str, list[float]], options: argparse.Namespace) -> Result:
    """Several agents in one program, against the floor, against one agent of this project and against Stable-Baselines3."""
    agents = our_updates(options.env, options.seed, STACKED, compile=False)
    flop = total(work_per_cycle(agents.replay.sizes, SETTINGS, agents.objective, learns=False).values()).flop
    rows: list[list[Any]] = []
    product_flop = MatrixProduct().flop
    for side in (EAGER, COMPILED):
        for name in [name for name in times if name.startswith(BOTH + side) and not name.endswith("matrix product")]:
            seconds = times[name]
            floor = [flop / product_flop * product for product in times[f"{name}: matrix product"]]
            one, sb3 = times[best(times, side)], times[best(times, SB3)]
            share = 100 * ratio(floor, seconds)
            rate = STACKED / median(seconds)
            rows.append(
                [
                    name,
                    1e3 * median(seconds),
                    1e3 * median(floor),
                    share,
                    rate,
                    ratio(seconds, one),
                    STACKED * ratio(sb3, seconds),
                ]
            )
    columns = ["", "ms per update of all", "floor, ms", "floor / time, %", "agent updates per s", "time / time of 1 agent"]
    title = f"{STACKED} agents in one program ({1e-9 * flop:.2f} GFLOP needed per update of all)"
    return Result(title, [*columns, f"agent updates / those of {SB3}"], rows)


def main() -> None:
    """Measure, print, write."""
    parser = arguments("TD3 through this project against Stable-Baselines3.", "against_sb3.json")
    parser.add_argument("--env", default="HalfCheetah-v5", help="whose spaces are used; default HalfCheetah-v5")
    add_compile(parser)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parse_options(parser)
    if importlib.util.find_spec("stable_baselines3") is None:
        sys.exit('error: stable-baselines3 is not installed; pip install -e ".[train,sb3]"')
    prepare(options.threads)
    if options.side:
        return work(options.side, options)
    options.all_threads = [1] if options.quick else [1, 2]
    turns = Turns(1, 0.05) if options.quick else Turns(15, 0.4)
    facts, times = machine(turns), measure(options, turns)
    report(options, facts, [lambda: compare(times, options.env), lambda: compare_stacked(times, options)])


if __name__ == "__main__":
    main()
