"""Table 1 and figures 3, 4 and 5 of the paper, by one command each, at the paper's scale or at one that two CPU cores can carry.

    python benchmarks/paper.py table1|figure3|figure4|figure5 --scale light|paper [--seeds N ...] [--jobs 2] [--out DIR] [OVERRIDE ...]

Trains what is missing: repeat the command until all is done. A run that has ended is not run again, and a run that was stopped goes on
from its newest checkpoint. Then it writes the table (`table1.md`, ours beside the paper's numbers, with intervals and numbers of agents)
or the figure (`figure3.png`, ...) below `--out`, from what has ended.

`light` differs from the paper: 64 units, 32 windows of 20, 8 agents, 18,000 env steps of meta-training in lives of 9,000, and tests of
12,000 env steps. Meta-gradients are normalised, not clipped, and annealing takes 3,000 env steps. Three more changes are explained in
docs/paper-inputs.md: terminal states count as worth 0 before values are normalised, saturated policies are penalised, and the inner step
has a fixed length.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import rl2
import sb3_baselines
from metagenrl_pl.common.files import path_argument
from metagenrl_pl.common.locks import lock_folder
from metagenrl_pl.common.messages import one_line
from metagenrl_pl.config.schema import load_config
from paper_output import COLUMNS, FIGURE_3, FIGURE_5, TABLE_1, Row, write_figure_3, write_figure_4, write_figure_5, write_table_1
from side_by_side import (
    Distinct,
    PlannedRun,
    compose_run,
    is_begun,
    meta_test_in,
    positive,
    refuse_overrides,
    run_all,
)

TESTS = f"env.test=[{','.join(COLUMNS)}]"
WHAT = ("table1", "figure3", "figure4", "figure5")
ROWS = {"table1": TABLE_1, "figure3": FIGURE_3}


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Args:
        overrides: of `experiment=paper/...`.
        meta_training: further ones, of the runs that meta-train.
        seeds: of meta-training, by regime; seed 0 alone for the others.
        baseline_seeds: number of agents in each environment, of the methods without meta-training.
        generation_env_steps: of evolution. Every generation ends with an update of the objective.
        rl2_env_steps: of RL2's meta-training in each environment.
    """

    overrides: Sequence[str]
    meta_training: Sequence[str]
    seeds: Mapping[str, Sequence[int]]
    baseline_seeds: int
    generation_env_steps: int
    rl2_env_steps: int


THREE = {"cheetah_hopper": (0, 1, 2), "lunar_cheetah": (0, 1, 2)}
SCALES = {
    "light": Scale(
        [
            *("agent=small", "agent.num_windows=32", "agent.window_length=20", "agent.saturation_penalty=1e-3", "meta=small"),
            *("population.size=8", "population.lifetime_env_steps=9000", "env_steps=18000", "compile=true"),
            *("callbacks.meta_test.env_steps=12000", "callbacks.meta_test.evaluate_every_env_steps=2000"),
            *("callbacks.checkpoint.every_env_steps=3000", "callbacks.objective_export.every_env_steps=3600"),
        ],
        ["objective.terminal=before", "inner=normalised_sgd"],
        THREE,
        6,
        2_000,
        100_000,
    ),
    "paper": Scale([], [], dict.fromkeys(THREE, range(6)), 6, 20_000, 20_000_000),
}


def meta_training(scale: Scale, experiment: str, folder: Path, seed: int, extra: Sequence[str]) -> PlannedRun:
    """A run that meta-trains and tests, without the methods that do not depend on it."""
    overrides = [
        *(f"experiment={experiment}", *scale.overrides, *scale.meta_training, f"seed={seed}"),
        *("callbacks.meta_test.untrained=false", "callbacks.meta_test.random=false", "~callbacks.meta_test.baselines"),
        *extra,
    ]
    return PlannedRun(folder / f"seed_{seed}", overrides, compose_run(overrides))


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
            f"callbacks.meta_test.seeds=[{','.join(map(str, range(scale.baseline_seeds)))}]",
            *extra,
        ),
        *("env_steps=1", "population.size=1", "population.lifetime_env_steps=null", "callbacks.objective_export=null"),
    ]
    return PlannedRun(out / "hand_made" / "seed_0", overrides, compose_run(overrides))


def plan_rows(
    rows: Sequence[Row], scale: Scale, out: Path, seeds: Sequence[int] | None, extra: Sequence[str]
) -> list[PlannedRun]:
    """The runs of `train.py` behind rows of Table 1, all of which have hand-made methods."""
    runs = [hand_made(scale, out, extra)]
    for row in rows:
        if row.method in ("learned", "evolution"):
            own = evolution_of(scale) if row.method == "evolution" else []
            own += ["callbacks.meta_test.untrained=true"] if row is TABLE_1[0] else []
            folder, chosen = out / f"{row.method}_{row.regime}", seeds or scale.seeds.get(row.regime, (0,))
            planned = [meta_training(scale, f"paper/{row.regime}", folder, seed, [TESTS, *own, *extra]) for seed in chosen]
            runs += _untrained_once(planned, folder) if row is TABLE_1[0] else planned
    return runs


def _untrained_once(runs: Sequence[PlannedRun], folder: Path) -> list[PlannedRun]:
    """Untrained weights do not depend on meta-training, so one run tests them: the first one that has not begun, if none has."""
    begun = [load_config(path / "config.yaml") for path in folder.glob("seed_*/") if is_begun(path)]
    is_tested = any(config.callbacks.meta_test.untrained for config in begun)
    tests = [] if is_tested else [run.folder for run in runs if not run.is_begun][:1]
    return [run if run.folder in tests else run._replace(without=["callbacks.meta_test.untrained=false"]) for run in runs]


def run_libraries(
    rows: Sequence[Row], scale: Scale, out: Path, seeds: Sequence[int] | None, extra: Sequence[str], num_jobs: int
) -> None:
    """PPO, on-policy REINFORCE and RL2, by Stable-Baselines3 and sb3-contrib, under the same conditions."""
    settings = hand_made(scale, out, extra).settings
    for method in ("ppo", "on_policy_reinforce"):
        file = out / method / "meta_test.csv"
        sb3_baselines.train_agents(method, list(settings.callbacks.meta_test.seeds), settings, file, num_jobs)
    for regime in dict.fromkeys(row.regime for row in rows if row.method == "rl2"):
        settings = compose_run([f"experiment=paper/{regime}", *scale.overrides, TESTS, *extra])
        for seed in seeds or scale.seeds[regime]:
            rl2.run_seed(settings, seed, scale.rl2_env_steps, 2000, out / f"rl2_{regime}")


def plan(what: str, scale: Scale, out: Path, seeds: Sequence[int] | None, extra: Sequence[str]) -> list[PlannedRun]:
    """The runs of `train.py` that a table or figure needs.

    Raises:
        ValueError: if overrides compose no configuration.
    """
    if what == "figure4":
        composed = meta_training(scale, "figure4", out, 0, extra).settings
        every = f"every_env_steps={composed.env_steps // 5}"
        stages = [f"callbacks.meta_test.{every}", f"callbacks.objective_export.{every}", *extra]
        return [meta_training(scale, "figure4", out / "figure4", seed, stages) for seed in seeds or (0,)]
    if what == "figure5":
        return [
            meta_training(scale, experiment, out / folder, seed, [TESTS, *extra] if experiment.startswith("paper/") else extra)
            for experiment, folder, _ in FIGURE_5
            for seed in seeds or (0,)
        ]
    return plan_rows(ROWS[what], scale, out, seeds, extra)


def write(what: str, scale: Scale, out: Path, extra: Sequence[str]) -> Path:
    """Write the table or the figure from the runs that have ended; its path."""
    if what == "table1":
        evolution = meta_training(scale, "paper/cheetah_hopper", out, 0, [*evolution_of(scale), *extra])
        config = evolution.settings
        if (length := config.population.lifetime_env_steps) is None:
            raise ValueError("population.lifetime_env_steps=null: evolution needs the length of a generation's lives")
        return write_table_1(out, config.env_steps // length)
    return {"figure3": write_figure_3, "figure4": write_figure_4, "figure5": write_figure_5}[what](out)


def main() -> None:
    """Train what is missing and write the table or the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("--scale", choices=SCALES, default="light")
    parser.add_argument(
        "--seeds", nargs="+", type=int, action=Distinct, metavar="N", help="of meta-training; by default those of the scale"
    )
    parser.add_argument("--jobs", type=positive, default=1, help="runs side by side, each on a core of its own")
    parser.add_argument("--out", type=path_argument, help="folder of the runs; by default runs/paper_<scale>")
    parser.add_argument("--only-write", action="store_true", help="train nothing")
    parser.add_argument("overrides", nargs="*", help="for every run, such as env_steps=1000")
    options = parser.parse_intermixed_args()  # overrides may follow flags
    scale, out = SCALES[options.scale], options.out or Path("runs", f"paper_{options.scale}")
    uses_libraries = options.what in ROWS and not options.only_write
    if uses_libraries and find_spec("sb3_contrib") is None:
        sys.exit('error: sb3-contrib is not installed; pip install -e ".[train,baselines]"')
    try:
        refuse_overrides(options.overrides)
        if options.only_write and not any(out.rglob("meta_test.csv")):
            raise ValueError(f"--out {out}: no run has ended there; valid is a folder with runs, or to leave out --only-write")
        out.mkdir(parents=True, exist_ok=True)
        if not options.only_write:
            runs = plan(options.what, scale, out, options.seeds, options.overrides)
            for run in runs:
                meta_test_in(run.settings)
            run_all(runs, out, options.jobs)
        if uses_libraries:
            with lock_folder(out):
                run_libraries(ROWS[options.what], scale, out, options.seeds, options.overrides, options.jobs)
        print(write(options.what, scale, out, options.overrides))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {one_line(error)}")


if __name__ == "__main__":
    main()
