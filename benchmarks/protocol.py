"""How good learned objectives are: meta-train with several seeds, meta-test, and report (docs/protocol.md).

    python benchmarks/protocol.py                    the protocol: three meta-training seeds, training and unseen environments
    python benchmarks/protocol.py --baseline-seeds 1 2   further agents of REINFORCE and DDPG/TD3 beside it
    python benchmarks/protocol.py --variants falling mixture         other settings of meta-training (variants.yaml)
    python benchmarks/protocol.py --variants own.yaml env=protocol_validation   those of your own, on validation environments
    python benchmarks/protocol.py --objectives results/protocol/falling --out runs/long_test callbacks.meta_test.env_steps=120000
                                                     objectives that are there already, in tests of another kind

Every run is a `train.py` of its own; `--jobs` of them run side by side. Repeat the command until all is done: a run that has ended is not
run again, and a run that was stopped goes on from its newest checkpoint.
"""

import argparse
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from metagenrl_pl.common.commands import hydra_override
from metagenrl_pl.common.files import path_argument
from metagenrl_pl.config.schema import ConfigError, load_config
from metagenrl_pl.environments.environment import EnvironmentSpec
from metagenrl_pl.evaluation.fresh_agents import random_returns
from metagenrl_pl.reporting.report import main as report
from metagenrl_pl.reporting.report_tables import summary_table
from metagenrl_pl.results.comparisons import comparisons_of
from metagenrl_pl.results.methods import METHODS, RANDOM, UNTRAINED
from metagenrl_pl.results.rows import append_rows, read_rows
from metagenrl_pl.results.run_folders import Run, find_runs
from metagenrl_pl.results.variants import variants_of
from side_by_side import Distinct, PlannedRun, compose_run, is_begun, meta_test_in, positive, refuse_overrides, run_all

SWITCHES = {name: method.switch for name, method in METHODS.items() if method.switch is not None}
"""The override that leaves out the test of each method that does not depend on meta-training."""
META_TRAINING_KEYS = (
    *("callbacks.meta_test", "callbacks.objective_export", "env.train", "env_steps", "experiment", "inner", "meta", "objective"),
    *("population", "run_dir", "seed"),
)
"""Keys of overrides that a run of fresh agents leaves out or sets itself."""
CONDITIONS = ("environments", "seeds", "env_steps", "evaluate_every_env_steps", "num_episodes")
"""Options of a meta-test that must be equal if results are compared, beside the agents' settings."""
VARIANTS_FILE = Path(__file__).with_name("variants.yaml")
KEPT_FILES = ("meta_test.csv", "metrics.csv", "objective.safetensors", "objective.json", "config.yaml", "provenance.json")


def plan_runs(variants: Mapping[str, list[str]], seeds: Sequence[int], out: Path, extra: Sequence[str]) -> list[PlannedRun]:
    """A run for each variant and seed. Methods that do not depend on meta-training are tested once, by runs that have not begun.

    Raises:
        ValueError: if overrides compose no configuration or one without meta-tests, or if all runs that could test something have begun,
            and nothing in `out` tests it under the same conditions.
    """
    runs: list[PlannedRun] = []
    for name, overrides in variants.items():
        for seed in seeds:
            every = ["experiment=protocol", f"seed={seed}", *overrides, *extra]
            runs.append(PlannedRun(out / name / f"seed_{seed}", every, compose_run(every)))
    begun = [load_config(folder / "config.yaml") for folder in out.glob("*/seed_*/") if is_begun(folder)]
    tested = {test for config in begun if config.callbacks.meta_test is not None for test in _tests(config)}
    wanted: dict[tuple[str, str], list[PlannedRun]] = {}
    for plan in runs:
        for test in _tests(plan.settings):
            wanted.setdefault(test, []).append(plan)
    assigned: dict[Path, list[str]] = {plan.folder: [] for plan in runs if not plan.is_begun}
    missing = []
    for test, plans in wanted.items():
        if test in tested:
            continue
        if free := [plan.folder for plan in plans if plan.folder in assigned]:
            assigned[min(free, key=lambda folder: len(assigned[folder]))].append(test[0])
        else:
            missing.append(test[0])
    if missing:
        raise ValueError(f"no run in {out} tests {', '.join(missing)}; valid are more --seeds, or another --out")
    return [
        plan._replace(
            without=[SWITCHES[method] for method, _ in _tests(plan.settings) if method not in assigned.get(plan.folder, [])]
        )
        for plan in runs
    ]


def _tests(config: Any) -> list[tuple[str, str]]:
    """The methods that a run tests beside its learned objective, each with all settings that its results depend on, as YAML.

    Raises:
        ValueError: if it makes no meta-tests.
    """
    test = meta_test_in(config)
    conditions = [config.agent, *(test[key] for key in CONDITIONS)]
    own: dict[str, Any] = dict(test.get("baselines") or {})
    if test.get("untrained", True):
        own[UNTRAINED.name] = {key: value for key, value in config.objective.items() if key != "seed"}
    if test.get("random", True):
        own[RANDOM.name] = {}
    settings = {method: [*conditions, own[method]] for method in SWITCHES if own.get(method) is not None}
    return [(method, OmegaConf.to_yaml(value, sort_keys=True)) for method, value in settings.items()]


def plan_frozen_runs(folders: Sequence[Path], seeds: Sequence[int], out: Path, extra: Sequence[str]) -> list[PlannedRun]:
    """A run for each seed and each objective in or below the folders, with the agents of the meta-tests or further ones.

    Args:
        folders: run folders with an `objective.safetensors`, or folders that hold some.
        seeds: as of `plan_baselines`.
        out: folder of all runs.
        extra: overrides of `experiment=protocol`.

    Raises:
        ValueError: no such folder, no objective in any, two with the same place below `out`, or overrides that compose no configuration.
    """
    if wrong := [str(folder) for folder in folders if not folder.is_dir()]:
        raise ValueError(f"--objectives {wrong[0]}: no such folder; valid are folders, and then other options before overrides")
    files = {folder: sorted(folder.rglob("objective.safetensors")) for folder in folders}
    if empty := [str(folder) for folder, found in files.items() if not found]:
        raise ValueError(f"--objectives {empty[0]}: no objective.safetensors there or below")
    each = sorted({file.resolve(): file for found in files.values() for file in found}.values())
    tested = [(out / Path(*file.absolute().parts[-3:-1]), hydra_override("objective.path", str(file))) for file in each]
    places = [place for place, _ in tested]
    if twice := {str(place) for place in places if places.count(place) > 1}:
        raise ValueError(f"--objectives: several would be tested in {', '.join(sorted(twice))}; valid is another --out for each")
    return [
        _run_of_fresh_agents(place.with_name(f"{place.name}_agents_{seed}"), ["experiment=meta_test", objective], seed, extra)
        for seed in seeds
        for place, objective in tested
    ]


def plan_baselines(seeds: Sequence[int], out: Path, extra: Sequence[str]) -> list[PlannedRun]:
    """Runs of REINFORCE and DDPG/TD3 with further agents than the meta-tests have, in the same environments.

    Where meta-tests have three agents in each environment, numbers 0, 1 and 2, seed 0 has the same ones, seed 1 those from 3 on, and so on.

    Args:
        seeds: one run of each method for each.
        out: folder of all runs.
        extra: overrides of `experiment=protocol`.

    Raises:
        ValueError: if overrides compose no configuration.
    """
    return [
        _run_of_fresh_agents(out / "baselines" / f"{method.name}_seed_{seed}", [f"experiment={method.experiment}"], seed, extra)
        for method in METHODS.values()
        if method.experiment is not None
        for seed in seeds
    ]


def write_random_actions(out: Path, extra: Sequence[str]) -> PlannedRun:
    """Write the returns of random actions that a `meta_test.csv` below `out` lacks. Returns its folder, as that of a run."""
    test, file = meta_test_in(compose_run(["experiment=protocol", *extra])), out / "baselines" / "random" / "meta_test.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    done = {(row.environment, row.seed) for row in read_rows(file)}
    for spec in map(EnvironmentSpec.parse, test.environments):
        if seeds := [seed for seed in test.seeds if (spec.name, seed) not in done]:
            append_rows(file, random_returns([spec], seeds, test.num_episodes))
    return PlannedRun(file.parent, [])


def _run_of_fresh_agents(folder: Path, objective: Sequence[str], seed: int, extra: Sequence[str]) -> PlannedRun:
    """A run without meta-training. Its population is the fresh agents of `experiment=protocol`'s meta-tests under these overrides."""
    test = meta_test_in(compose_run(["experiment=protocol", *extra]))
    if test.seeds != list(range(len(test.seeds))):
        raise ValueError(f"callbacks.meta_test.seeds={test.seeds}: valid are 0, 1, 2 and so on for runs of fresh agents")
    own = [override for override in extra if not _sets_any(override, META_TRAINING_KEYS)]
    if not any(override.startswith("env=") for override in own):
        own.insert(0, "env=protocol")
    overrides = [
        *(*objective, "callbacks.meta_test=null", "compile=true", *own, "env.train=${env.test}", f"seed={seed}"),
        *(f"population.size={len(test.environments) * len(test.seeds)}", f"env_steps={test.env_steps}"),
        f"callbacks.evaluation.every_env_steps={test.evaluate_every_env_steps}",
        f"callbacks.evaluation.num_episodes={test.num_episodes}",
    ]
    return PlannedRun(folder, overrides, compose_run(overrides))


def _sets_any(override: str, keys: Iterable[str]) -> bool:
    """Whether an override sets one of the keys or something below."""
    key = override.lstrip("+~").partition("=")[0].replace("/", ".")
    return any(f"{key}.".startswith(f"{one}.") for one in keys)


def copy_results(runs: Sequence[PlannedRun], out: Path, results: Path) -> None:
    """Copy the files of results. Of an objective that was only tested, copy the card alone: the objective is kept elsewhere."""
    for plan in runs:
        target = results / plan.folder.relative_to(out)
        target.mkdir(parents=True, exist_ok=True)
        is_made_here = "experiment=meta_test" not in plan.overrides
        for name in KEPT_FILES:
            if (plan.folder / name).exists() and (is_made_here or name != "objective.safetensors"):
                shutil.copyfile(plan.folder / name, target / name)


def summary_tables(runs: Sequence[Run]) -> str:
    """The report's summary table of each comparison, as Markdown. Below it are notes on what was left out."""
    parts: list[str] = []
    for comparison in comparisons_of(variants_of(runs)):
        table = summary_table(comparison)
        rows = [table.header, ["---"] * len(table.header), *table.rows]
        parts += ["\n".join(f"| {' | '.join(row)} |" for row in rows), *comparison.notes]
    return "\n\n".join(parts)


def main() -> None:
    """Plan the runs, run them, write the report and print its summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--objectives",
        nargs="+",
        type=path_argument,
        metavar="DIR",
        help="test those of these run folders, instead of meta-training any",
    )
    parser.add_argument(
        "--variants",
        nargs="+",
        default=["protocol"],
        metavar="NAME|FILE.yaml",
        help="of variants.yaml, or all of another file; by default protocol",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        action=Distinct,
        metavar="N",
        help="of meta-training, by default 0 1 2; with --objectives of fresh agents, by default 0",
    )
    parser.add_argument(
        "--baseline-seeds",
        nargs="+",
        type=int,
        action=Distinct,
        metavar="N",
        help="from 1 on: further agents of REINFORCE and DDPG/TD3; with --objectives from 0 on",
    )
    parser.add_argument("--jobs", type=positive, default=1, help="runs side by side, each on a core of its own")
    parser.add_argument("--out", type=path_argument, help="folder of the runs; by default runs/protocol")
    parser.add_argument(
        "--keep", type=path_argument, metavar="DIR", help="copy CSV files, configurations and objectives there in the end"
    )
    parser.add_argument("overrides", nargs="*", help="for every run, such as env_steps=1000")
    options = parser.parse_args()
    try:
        refuse_overrides(options.overrides)
        runs, out = _plan(options)
        run_all(runs, out, options.jobs)
        kept = list(runs)
        if options.objectives:
            kept.append(write_random_actions(out, options.overrides))
        if options.keep is not None:
            copy_results(kept, out, options.keep)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    report([str(out), "--out", str(out / "report.html")])
    print(summary_tables(find_runs([out])[0]))


def _plan(options: argparse.Namespace) -> tuple[list[PlannedRun], Path]:
    """The runs that the command line asks for, and the folder of all of them.

    Raises:
        ValueError: if options contradict each other.
    """
    extra, baseline_seeds = list(options.overrides), options.baseline_seeds or []
    if options.objectives:
        if options.variants != ["protocol"] or options.out is None:
            raise ValueError("--objectives needs an --out of its own, and goes without --variants")
        tests = plan_frozen_runs(options.objectives, options.seeds or [0], options.out, extra)
        return [*tests, *plan_baselines(baseline_seeds, options.out, extra)], options.out
    variants = read_variants(options.variants)
    if baseline_seeds and min(baseline_seeds) < 1:
        raise ValueError("--baseline-seeds go from 1 on: meta-tests have the agents of seed 0")
    out = options.out or Path("runs", "protocol")
    runs = plan_runs(variants, options.seeds or [0, 1, 2], out, extra)
    return [*runs, *plan_baselines(baseline_seeds, out, extra)], out


def read_variants(names: Sequence[str]) -> dict[str, list[str]]:
    """Overrides by the name of the variant.

    Args:
        names: of variants in `variants.yaml`, or paths of YAML files whose variants all count.

    Raises:
        ValueError: if there is no such variant, or a file does not map names to lists of overrides.
    """
    known = _read_variants_file(VARIANTS_FILE)
    variants: dict[str, list[str]] = {}
    for name in names:
        if name.endswith((".yaml", ".yml")):
            variants |= _read_variants_file(Path(name))
        elif name in known:
            variants[name] = known[name]
        else:
            raise ValueError(f"--variants {name}: valid are {', '.join(known)} ({VARIANTS_FILE.name}), or a YAML file")
    return variants


def _read_variants_file(path: Path) -> dict[str, list[str]]:
    try:
        variants: Any = OmegaConf.to_container(load_config(path))
    except ConfigError as error:
        raise ValueError(f"--variants {path}: {error}") from error
    for name, overrides in variants.items():
        if not isinstance(overrides, list) or not all(isinstance(override, str) for override in overrides):
            raise ValueError(f"--variants {path}: {name} is no list of overrides; valid is {name}: [key=value, ...]")
    return {str(name): overrides for name, overrides in variants.items()}


if __name__ == "__main__":
    main()
