"""Where the time of one update cycle goes, and the floor below which it cannot come on this machine.

    python benchmarks/cycle.py [--size paper|default|small-ops] [--compile] [--profile] [--quick] [--agents N] [--units N] [--windows N]
                               [--window-length N] [--envs ID ...] [--threads 1] [--seed 0] [--out FILE]

It is `train.py` that runs, with a clock on its parts and in turns with a large matrix product. The floor is the arithmetic that the
mathematics needs (`benchmarks/arithmetic.py`) over the rate of that product. Sizes: the paper's networks and windows for one agent; the
default experiment with its callbacks and loggers; small networks with the paper's windows. The display draws as in a terminal.
"""

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, open_dict

from arithmetic import Work, count_flop, total, work_of_agent, work_per_cycle
from clock import CHECKPOINTS, CRITIC, ENVIRONMENTS, LIGHTNING, LOGGING, PARTS, REST, SAMPLING
from measure import ROOT, Result, Turns, arguments, machine, prepare, ratio, report
from metagenrl_pl.agents.population import AgentSettings
from metagenrl_pl.common.commands import hydra_override
from metagenrl_pl.config.run_config import RunConfig
from metagenrl_pl.config.schema import build, validate
from metagenrl_pl.launch.run import train
from metagenrl_pl.objectives import Objective
from workloads import assign_round_robin, make_agents, run_cycles

sys.path.insert(0, str(ROOT))  # callbacks/ is no part of the package

SIZES = {
    "paper": ["agent=paper", "objective=learned", "population.size=1", "env.train=[HalfCheetah-v5]"],
    "default": [],
    "small-ops": [
        *("agent.num_windows=100", "agent.window_length=20", "objective=learned", "population.size=1", "env.train=[Pendulum-v1]"),
    ],
}
"""What differs from `python train.py`; only the default experiment has its callbacks and loggers."""

KEYS = {
    "agents": "population.size",
    "units": "agent.hidden_units",
    "windows": "agent.num_windows",
    "window_length": "agent.window_length",
    "threads": "num_threads",
    "seed": "seed",
}
"""Keys of the configuration by option."""

SUMMED = (LIGHTNING, LOGGING, SAMPLING, ENVIRONMENTS)
FIRST_STEPS = 200  # env steps of each agent before updates begin


def configuration(options: argparse.Namespace, run_dir: Path, cycles_per_turn: int, num_turns: int) -> DictConfig:
    """That of a run after the annealing, with a clock as the last callback."""
    per_batch = min(50, cycles_per_turn)
    warmup_cycles = 2 * per_batch
    overrides = [
        *SIZES[options.size],
        *(f"{key}={getattr(options, option)}" for option, key in KEYS.items() if getattr(options, option) is not None),
        *([f"env.train=[{','.join(options.envs)}]"] if options.envs else []),
        f"compile={options.compile}",
        hydra_override("run_dir", str(run_dir)),
        f"env_steps={FIRST_STEPS + warmup_cycles + num_turns * cycles_per_turn + 2 * per_batch}",
        f"updates_per_batch={per_batch}",
        f"agent.random_env_steps={FIRST_STEPS}",
        f"agent.warmup_env_steps={FIRST_STEPS}",
        "meta.annealing_env_steps=0",
        "trainer.accelerator=cpu",
    ]
    clock = {
        "_target_": "clock.CycleClock",
        "out": f"{run_dir}/turns.json",
        "cycles_per_turn": cycles_per_turn,
        "warmup_cycles": warmup_cycles,
    }
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", overrides)
    with open_dict(config):
        if options.size == "default":
            config.callbacks.meta_test = config.callbacks.final_report = None  # they follow training
        else:
            config.callbacks, config.logger = {}, {}
        config.callbacks.clock = clock
    return validate(config, RunConfig)


def run(config: DictConfig) -> list[dict[str, float]]:
    """Seconds per cycle of each part, by turn, with the machine's FLOP per second meanwhile."""
    os.environ["FORCE_COLOR"] = "1"  # rich then draws as in a terminal, into what follows
    with contextlib.redirect_stdout(io.StringIO()):
        train(config)
    del os.environ["FORCE_COLOR"]
    return json.loads((Path(config.run_dir) / "turns.json").read_text())


class Cycle:
    """The measured cycle of a run.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        per_turn, num_turns = {"paper": (4, 9), "small-ops": (50, 9), "default": (1000, 5)}[options.size]
        if options.quick:
            per_turn, num_turns = {"default": (50, 1)}.get(options.size, (2, 1))
        with tempfile.TemporaryDirectory() as folder:
            config = configuration(options, Path(folder), per_turn, num_turns)
            # A checkpoint in each turn, counted as often as the run would save one.
            self.saves = {}
            for name, node in config.callbacks.items():
                if node and node._target_.startswith("callbacks.checkpointing"):
                    self.saves[name], node.every_env_steps = node.every_env_steps, per_turn
            self.turns = run(config)
        for turn in self.turns if self.saves else []:
            often = per_turn / min(self.saves.values())
            turn["whole cycle"] += (often - 1) * turn[CHECKPOINTS]
            turn[CHECKPOINTS] *= often
        settings, envs = build(config.agent, AgentSettings), list(config.env.train)
        self.objective = build(config.objective, Objective)
        specs = assign_round_robin(envs, config.population.size)
        self.agents = make_agents(specs, settings, config.seed, objective=self.objective)
        workload = f"{len(self.agents.specs)} agents of {settings.hidden_units} units"
        windows = f"{settings.num_windows} windows of {settings.window_length}"
        self.title = f"{workload}, {windows}, {', '.join(envs)}, {'compiled' if config.compile else 'eager'}"

    def parts(self) -> Result:
        """The table of parts."""
        work = work_per_cycle(self.agents.replay.sizes, self.agents.settings, self.agents.objective)
        names = [*PARTS, REST, LOGGING, LIGHTNING, CHECKPOINTS]
        seconds = {part: [turn.get(part, 0.0) for turn in self.turns] for part in (*names, "whole cycle")}
        rates = [turn["flop per second"] for turn in self.turns]
        rows = []
        for part in seconds:
            flop = (total(work.values()) if part == "whole cycle" else work.get(part, Work())).flop
            share = 100 * ratio(seconds[part], seconds["whole cycle"])
            row: list[Any] = [part, 1e3 * median(seconds[part]), share, None, None, None, None]
            if flop:
                floor = [flop / rate for rate in rates]
                speed = 1e-9 * flop / median(seconds[part])
                row[3:] = [1e-9 * flop, speed, 1e3 * median(floor), 100 * ratio(floor, seconds[part])]
            rows.append(row)
        columns = ["", "ms per cycle", "% of the cycle", "needed GFLOP", "GFLOP/s", "floor, ms", "floor / time, %"]
        rate = f"machine at {1e-9 * median(rates):.0f} GFLOP/s"
        return Result(f"Parts of a cycle ({self.title}; {rate})", columns, rows, {**seconds, "flop per second": rates})

    def overhead(self) -> Result:
        """What is not learning: Lightning, logging, sampling and environments, together."""
        whole = [turn["whole cycle"] for turn in self.turns]
        parts = {part: [turn.get(part, 0.0) for turn in self.turns] for part in (*SUMMED, CHECKPOINTS)}
        together = [sum(values) for values in zip(*(parts[part] for part in SUMMED), strict=True)]
        sums = {
            **{part: parts[part] for part in SUMMED},
            "together": together,
            "with checkpoints": [a + b for a, b in zip(together, parts[CHECKPOINTS], strict=True)],
        }
        rows = [[name, 1e3 * median(seconds), 100 * ratio(seconds, whole)] for name, seconds in sums.items()]
        return Result(f"What is not learning ({self.title})", ["", "ms per cycle", "% of the cycle"], rows)

    def arithmetic(self) -> Result:
        """One agent's arithmetic, needed and really done."""
        settings, objective, agents = self.agents.settings, self.objective, self.agents
        works = work_of_agent(agents.replay.sizes[0], settings, objective)
        counts = count_flop(make_agents(agents.specs[:1], settings, 0, objective=objective))
        share = {part: 1.0 if part == CRITIC else 1 / settings.policy_delay for part in works}
        rows: list[list[Any]] = [[part, 1e-9 * works[part].flop, 1e-9 * counts[part]] for part in works]
        rows.append(["env step", *(sum(share[row[0]] * row[column] for row in rows) for column in (1, 2))])
        return Result(
            f"Arithmetic of an update ({agents.specs[0].name})", ["of one agent", "needed GFLOP", "counted GFLOP"], rows
        )

    def profile(self) -> Result:
        """The operators that take longest in eager updates."""
        run_cycles(self.agents, 4)
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities) as profiler:
            run_cycles(self.agents, num_cycles := 4)
        events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
        whole = sum(event.self_cpu_time_total for event in events)
        rows: list[list[Any]] = [
            [
                event.key,
                1e-3 * event.self_cpu_time_total / num_cycles,
                100 * event.self_cpu_time_total / whole,
                event.count // num_cycles,
            ]
            for event in events[:20]
        ]
        return Result(f"Operators of the eager cycle ({self.title})", ["", "ms per cycle", "% of all", "calls"], rows)


def measurements(options: argparse.Namespace) -> Iterator[Any]:
    """What the options ask for."""
    cycle = Cycle(options)
    yield cycle.parts
    if options.size == "default":
        yield cycle.overhead
    yield cycle.arithmetic
    if options.profile:
        yield cycle.profile


def main() -> None:
    """Measure, print, write."""
    parser = arguments("Where the time of one update cycle goes, and its floor.", "cycle.json")
    parser.add_argument("--size", choices=list(SIZES), default="paper", help="what the other options start from; default paper")
    parser.add_argument("--compile", action="store_true", help="through torch.compile, minutes more")
    parser.add_argument("--profile", action="store_true", help="also the operators that take longest")
    parser.add_argument("--agents", type=int, help="size of the population")
    parser.add_argument("--units", type=int, help="hidden units of the agents' networks")
    parser.add_argument("--windows", type=int, help="windows per update")
    parser.add_argument("--window-length", type=int, help="steps in a window")
    parser.add_argument("--envs", nargs="+", help="environments, dealt round robin")
    options = parser.parse_args()
    compiled = "_compiled" if options.compile else ""
    options.default_out = options.default_out.with_name(f"cycle_{options.size.replace('-', '_')}{compiled}.json")
    prepare(options.threads)
    report(options, machine(Turns(1, 0.01) if options.quick else Turns(5, 0.5)), measurements(options))


if __name__ == "__main__":
    main()
