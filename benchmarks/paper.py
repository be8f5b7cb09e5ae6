"""Table 1 and figures 3, 4 and 5 of the paper, by one command each, at the paper's scale or at one that two CPU cores can carry.

    python benchmarks/paper.py table1|figure3|figure4|figure5 --scale light|paper [--seeds N ...] [--jobs 2] [--out DIR] [OVERRIDE ...]

Trains what is missing: repeat the command until all is done. A run that has ended is not run again, and a run that was stopped goes on
from its newest checkpoint. Then it writes the table (`table1.md`, ours beside the paper's numbers, with intervals and numbers of agents)
or the figure (`figure3.png`, ...) below `--out`, from what has ended.

`light` differs from the paper: 64 units, 32 windows of 20, 8 agents, 24,000 env steps of meta-training in lives of 12,000, tests of 20,000
env steps, and three changes that docs/results.md explains ("The paper's inputs"): terminal states count as worth 0 before values are
normalised, saturated policies are penalised, and the inner step has a fixed length.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from omegaconf import OmegaConf

import rl2
import sb3_baselines
from metagenrl_pl.common.files import atomic_write
from metagenrl_pl.reporting.numbers import format_interval
from metagenrl_pl.results.methods import LEARNED
from metagenrl_pl.results.rows import MetaTestRow, read_rows
from metagenrl_pl.results.statistics import interquartile_mean
from side_by_side import PlannedRun, compose_yaml, run_all

COLUMNS = {"HalfCheetah-v5": "Cheetah", "Hopper-v5": "Hopper", "LunarLanderContinuous-v3": "Lunar"}
TESTS = f"env.test=[{','.join(COLUMNS)}]"


class Row(NamedTuple):
    """A row of Table 1.

    Args:
        regime: what is meta-trained on, the name of an `experiment=paper/...`; empty without meta-training.
        method: its name in `meta_test.csv`.
        label: in the table.
        paper: the paper's mean returns, in the order of `COLUMNS`.
    """

    regime: str
    method: str
    label: str
    paper: tuple[int, int, int]


TABLE_1 = [
    Row("cheetah_hopper", "learned", "MetaGenRL", (2185, 2439, 18)),
    Row("cheetah_hopper", "evolution", "EPG (ours: evolution)", (-571, 20, -540)),
    Row("cheetah_hopper", "rl2", "RL2", (5180, 289, -479)),
    Row("lunar_cheetah", "learned", "MetaGenRL", (2552, 2363, 258)),
    Row("lunar_cheetah", "evolution", "EPG (ours: evolution)", (-701, 8, -707)),
    Row("lunar_cheetah", "rl2", "RL2", (2218, 5, 283)),
    Row("lunar_hopper_walker_ant", "learned", "MetaGenRL", (3106, 2869, 201)),
    Row("cheetah_lunar_walker_ant", "learned", "MetaGenRL", (3331, 2452, -71)),
    Row("cheetah_hopper_walker_ant", "learned", "MetaGenRL", (2541, 2345, -148)),
    Row("", "ppo", "PPO", (1455, 1894, 187)),
    Row("", "critic", "DDPG / TD3", (8315, 2718, 288)),
    Row("", "reinforce", "off-policy REINFORCE (GAE)", (-88, 1804, 168)),
    Row("", "on_policy_reinforce", "on-policy REINFORCE (GAE)", (38, 565, 120)),
]

FIGURE_5 = {
    "full": "the paper's",
    "no_lstm": "without LSTM",
    "no_time": "without time",
    "no_value": "without values",
    "unbounded": "unbounded head",
}


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Args:
        overrides: of `experiment=paper/...`.
        meta_training: further ones, of the runs that meta-train.
        seeds: of meta-training, by regime; `()` for the others.
        env_steps: of meta-training.
        population: number of agents, a multiple of four, so that evolution can pair them in two environments.
        generation_env_steps: of evolution.
        rl2_env_steps: of RL2's meta-training in each environment.
    """

    overrides: Sequence[str]
    meta_training: Sequence[str]
    seeds: Mapping[str, Sequence[int]]
    env_steps: int
    population: int
    generation_env_steps: int
    rl2_env_steps: int


THREE = {"cheetah_hopper": (0, 1, 2), "lunar_cheetah": (0, 1, 2)}
SCALES = {
    "light": Scale(
        [
            *("agent=small", "agent.num_windows=32", "agent.window_length=20", "agent.saturation_penalty=1e-3", "meta=small"),
            *("population.size=8", "population.lifetime_env_steps=12000", "env_steps=24000", "compile=true"),
            *("callbacks.meta_test.env_steps=20000", "callbacks.meta_test.evaluate_every_env_steps=2000"),
            *("callbacks.checkpoint.every_env_steps=4000", "callbacks.objective_export.every_env_steps=4800"),
        ],
        ["objective.terminal=before", "inner=normalised_sgd"],
        THREE,
        24_000,
        8,
        3_000,
        100_000,
    ),
    "paper": Scale([], [], dict.fromkeys(THREE, range(6)), 600_000, 20, 100_000, 20_000_000),
}


def meta_training(scale: Scale, experiment: str, folder: Path, seed: int, extra: Sequence[str]) -> PlannedRun:
    """A run that meta-trains and tests, without the methods that do not depend on it."""
    overrides = [
        *(f"experiment={experiment}", *scale.overrides, *scale.meta_training, f"seed={seed}"),
        *("callbacks.meta_test.untrained=false", "callbacks.meta_test.random=false", "~callbacks.meta_test.baselines"),
        *extra,
    ]
    return PlannedRun(folder / f"seed_{seed}", overrides, compose_yaml(overrides))


def evolution_of(scale: Scale) -> list[str]:
    """What makes a run of meta-training one of evolution."""
    return ["meta=evolution", f"population.lifetime_env_steps={scale.generation_env_steps}"]


def hand_made(scale: Scale, out: Path, extra: Sequence[str]) -> PlannedRun:
    """A run that trains fresh agents by DDPG/TD3 and off-policy REINFORCE, and tests random actions."""
    overrides = [
        *(
            "experiment=paper/lunar_cheetah",
            "env=half_cheetah",
            *scale.overrides,
            TESTS,
            "meta=frozen",
            "objective=critic",
            *extra,
        ),
        *("env_steps=1", "population.size=1", "population.lifetime_env_steps=null", "callbacks.objective_export=null"),
    ]
    return PlannedRun(out / "hand_made" / "seed_0", overrides, compose_yaml(overrides))


def plan_table_1(scale: Scale, out: Path, seeds: Sequence[int] | None, extra: Sequence[str]) -> list[PlannedRun]:
    """All runs of `train.py` behind Table 1, and so behind figure 3."""
    runs = [hand_made(scale, out, extra)]
    for row in TABLE_1:
        if row.method in ("learned", "evolution"):
            changes = [TESTS, *(evolution_of(scale) if row.method == "evolution" else []), *extra]
            for seed in seeds or scale.seeds.get(row.regime, (0,)):
                folder = out / f"{row.method}_{row.regime}"
                runs.append(meta_training(scale, f"paper/{row.regime}", folder, seed, changes))
    return runs


def run_libraries(scale: Scale, out: Path, seeds: Sequence[int] | None, extra: Sequence[str], num_jobs: int) -> None:
    """PPO, on-policy REINFORCE and RL2, by Stable-Baselines3 and sb3-contrib, under the same conditions."""
    for regime in dict.fromkeys(row.regime for row in TABLE_1 if row.method == "rl2"):
        overrides = [f"experiment=paper/{regime}", *scale.overrides, TESTS, *extra]
        settings = OmegaConf.create(compose_yaml(overrides))
        file = out / f"rl2_{regime}" / "meta_test.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        tested = {row.seed // len(settings.callbacks.meta_test.seeds) for row in read_rows(file)}
        for seed in rl2.without_tested(list(seeds or scale.seeds[regime]), tested):
            rl2.run_seed(settings, seed, scale.rl2_env_steps, 2000, file)
    for method in ("ppo", "on_policy_reinforce"):
        file = out / method / "meta_test.csv"
        sb3_baselines.train_agents(method, list(settings.callbacks.meta_test.seeds), settings, file, num_jobs)


def results_of(folder: Path, method: str) -> dict[str, dict[int, list[list[MetaTestRow]]]]:
    """The learning curves of a row of the table, as rows, by environment and seed of meta-training."""
    found: dict[str, dict[int, list[list[MetaTestRow]]]] = defaultdict(lambda: defaultdict(list))
    name = LEARNED.name if method == "evolution" else method
    for file in sorted(folder.rglob("meta_test.csv")):
        seed = int(file.parent.name.rpartition("_")[2]) if file.parent.name.startswith("seed_") else 0
        curves: dict[tuple[str, int], list[MetaTestRow]] = defaultdict(list)
        for row in read_rows(file):
            if row.method == name:
                curves[row.environment, row.seed].append(row)
        for (environment, _), rows in curves.items():
            found[environment][seed].append(sorted(rows, key=lambda row: row.env_steps))
    return found


def folder_of(out: Path, row: Row) -> Path:
    """Where the runs of a row are."""
    if row.regime:
        return out / f"{row.method}_{row.regime}"
    return out / (row.method if row.method in ("ppo", "on_policy_reinforce") else "hand_made")


def write_table_1(out: Path) -> Path:
    """Ours beside the paper's: interquartile mean of the final returns with its 95 % interval, and the number of agents."""
    lines = [
        "| meta-trained on | method | " + " | ".join(f"{name}, ours | {name}, paper" for name in COLUMNS.values()) + " |",
        "|---|---|" + "---|---|" * len(COLUMNS),
    ]
    for row in TABLE_1:
        results, cells = results_of(folder_of(out, row), row.method), []
        for environment, paper in zip(COLUMNS, row.paper, strict=True):
            of_seeds = {
                seed: [curve[-1].episode_return for curve in curves] for seed, curves in results.get(environment, {}).items()
            }
            count = sum(map(len, of_seeds.values()))
            ours = f"{format_interval(interquartile_mean([of_seeds]), 0)}, {count} agent{'s' * (count > 1)}" if count else "-"
            cells += [ours, f"{paper:,}"]
        lines.append(f"| {row.regime or 'none'} | {row.label} | {' | '.join(cells)} |")
    return _write(out / "table1.md", "\n".join(lines) + "\n")


def write_curves(path: Path, panels: Mapping[str, Mapping[str, Sequence[Sequence[MetaTestRow]]]]) -> Path:
    """Mean learning curves with the range of the agents, a panel for each environment, a line for each label."""
    figure = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained")
    axes_of = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, lines) in zip(axes_of, panels.items(), strict=True):
        for label, curves in lines.items():
            if not curves:
                continue
            env_steps = [row.env_steps for row in curves[0]]
            returns = np.array([[row.episode_return for row in curve] for curve in curves if len(curve) == len(env_steps)])
            (line,) = axes.plot(env_steps, returns.mean(0), label=f"{label} ({len(returns)} agents)")
            axes.fill_between(env_steps, returns.min(0), returns.max(0), color=line.get_color(), alpha=0.15, linewidth=0)
        axes.set(title=title, xlabel="env steps of the fresh agent", ylabel="return")
        axes.spines[["top", "right"]].set_visible(False)
        if axes.has_data():
            axes.legend(fontsize=7, frameon=False)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)
    return path


def write_figure_3(out: Path) -> Path:
    """Learning curves in a seen and an unseen environment: of the objective that was meta-trained on Cheetah and Hopper, and the others."""
    panels: dict[str, dict[str, list[list[MetaTestRow]]]] = {}
    rows = [row for row in TABLE_1 if row.regime in ("cheetah_hopper", "")]
    for environment, title in (("Hopper-v5", "Hopper, seen in meta-training"), ("LunarLanderContinuous-v3", "Lunar, unseen")):
        panels[title] = {row.label: _all_agents(results_of(folder_of(out, row), row.method).get(environment, {})) for row in rows}
    return write_curves(out / "figure3.png", panels)


def write_figure_4(out: Path) -> Path:
    """Fresh agents on Hopper, by the objective at five stages of meta-training."""
    stages: dict[str, list[list[MetaTestRow]]] = defaultdict(list)
    for curves in results_of(out / "figure4", "learned").get("Hopper-v5", {}).values():
        for rows in curves:
            for stage in sorted({row.meta_training_env_steps or 0 for row in rows}):
                stages[f"after {stage:,} env steps"].append([row for row in rows if row.meta_training_env_steps == stage])
    return write_curves(out / "figure4.png", {"Hopper, unseen": stages})


def write_figure_5(out: Path) -> Path:
    """Fresh agents on Cheetah, by objectives that see or can express less."""
    lines = {
        label: _all_agents(results_of(out / f"figure5_{name}", "learned").get("HalfCheetah-v5", {}))
        for name, label in FIGURE_5.items()
    }
    return write_curves(out / "figure5.png", {"Cheetah, seen in meta-training": lines})


def plan(what: str, scale: Scale, out: Path, seeds: Sequence[int] | None, extra: Sequence[str]) -> list[PlannedRun]:
    """The runs of `train.py` that a table or figure needs.

    Raises:
        ValueError: if overrides compose no configuration.
    """
    if what == "figure4":
        every = f"every_env_steps={scale.env_steps // 5}"
        stages = [f"callbacks.meta_test.{every}", f"callbacks.objective_export.{every}", *extra]
        return [meta_training(scale, "figure4", out / "figure4", seed, stages) for seed in seeds or (0,)]
    if what == "figure5":
        return [
            meta_training(scale, f"figure5/{name}", out / f"figure5_{name}", seed, ["env.test=[HalfCheetah-v5]", *extra])
            for name in FIGURE_5
            for seed in seeds or (0,)
        ]
    return plan_table_1(scale, out, seeds, extra)


WRITERS = {"table1": write_table_1, "figure3": write_figure_3, "figure4": write_figure_4, "figure5": write_figure_5}


def _all_agents(of_seeds: Mapping[int, Iterable[list[MetaTestRow]]]) -> list[list[MetaTestRow]]:
    return [curve for curves in of_seeds.values() for curve in curves]


def _write(path: Path, text: str) -> Path:
    with atomic_write(path) as file:
        file.write(text.encode())
    return path


def main() -> None:
    """Train what is missing and write the table or the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=WRITERS)
    parser.add_argument("--scale", choices=SCALES, default="light")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="of meta-training; by default those of the scale")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, each on a core of its own")
    parser.add_argument("--out", type=Path, help="folder of the runs; by default runs/paper_<scale>")
    parser.add_argument("--only-write", action="store_true", help="train nothing")
    parser.add_argument("overrides", nargs="*", help="for every run, such as env_steps=1000")
    options = parser.parse_args()
    scale, out = SCALES[options.scale], options.out or Path("runs", f"paper_{options.scale}")
    out.mkdir(parents=True, exist_ok=True)
    try:
        if not options.only_write:
            run_all(plan(options.what, scale, out, options.seeds, options.overrides), out, options.jobs)
            if options.what in ("table1", "figure3"):
                run_libraries(scale, out, options.seeds, options.overrides, options.jobs)
    except ValueError as error:
        parser.error(str(error))
    print(WRITERS[options.what](out))


if __name__ == "__main__":
    main()
