"""How good learned objectives are: meta-train with several seeds, meta-test, and report (docs/protocol.md).

    python benchmarks/protocol.py                    the protocol: three meta-training seeds, training and unseen environments
    python benchmarks/protocol.py --baseline-seeds 1 2   further agents of REINFORCE and DDPG/TD3 beside it
    python benchmarks/protocol.py --levers           hyper-parameters compared on validation environments (levers.yaml)
    python benchmarks/protocol.py --objectives results/protocol/falling --out runs/long_test callbacks.meta_test.env_steps=120000
                                                     objectives that are there already, in tests of another kind

Every run is a `train.py` of its own; `--jobs` of them run side by side. What ended is not run again, and what was stopped goes on from its
newest checkpoint, so the command may be repeated until all is done.
"""

import argparse
import shutil
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from metagenrl_pl.config.schema import load_config
from metagenrl_pl.environments.environment import EnvironmentSpec
from metagenrl_pl.evaluation.fresh_agents import random_returns
from metagenrl_pl.reporting.report import main as report
from metagenrl_pl.results.methods import LEARNED, METHODS, RANDOM, UNTRAINED
from metagenrl_pl.results.rows import append_rows
from metagenrl_pl.results.run_folders import Run, find_runs
from metagenrl_pl.results.scores import Score, aggregate, learning_curves, scores_of, select_normalised
from side_by_side import Planned, composed, is_begun, run_all

WITHOUT = {name: method.switch for name, method in METHODS.items() if method.switch is not None}
"""The override that leaves out the test of each method that does not depend on meta-training."""
OF_META_TRAINING = (
    *("callbacks.meta_test", "callbacks.objective_export", "env.train", "env_steps", "experiment", "inner", "meta", "objective"),
    *("population", "run_dir", "seed"),
)
"""What an override of meta-training may be about that a run of fresh agents leaves out, or sets itself."""
CONDITIONS = ("environments", "seeds", "env_steps", "evaluate_every_env_steps", "num_episodes")
"""What two meta-tests have in common if their results are comparable, beside the agents."""
KEPT = ("meta_test.csv", "metrics.csv", "objective.safetensors", "objective.json", "config.yaml", "provenance.json")


def planned(variants: Mapping[str, list[str]], seeds: Sequence[int], out: Path, extra: Sequence[str]) -> list[Planned]:
    """A run for each variant and seed. What does not depend on meta-training is tested once, dealt to the runs that have not begun.

    Raises:
        ValueError: if overrides compose no configuration or one without meta-tests, or if all runs that could test something have begun,
            and nothing in `out` tests it under the same conditions.
    """
    runs: list[Planned] = []
    for name, overrides in variants.items():
        for seed in seeds:
            every = ["experiment=protocol", f"seed={seed}", *overrides, *extra]
            runs.append(Planned(out / name / f"seed_{seed}", every, composed(every)))
    begun = [load_config(folder / "config.yaml") for folder in out.glob("*/seed_*/") if is_begun(folder)]
    tested = {test for config in begun if config.callbacks.meta_test is not None for test in _tests(config)}
    wanted: dict[tuple[str, Hashable], list[Planned]] = {}
    for plan in runs:
        for test in _tests(OmegaConf.create(plan.settings)):
            wanted.setdefault(test, []).append(plan)
    dealt: dict[Path, list[str]] = {plan.folder: [] for plan in runs if not plan.is_begun}
    missing = []
    for test, plans in wanted.items():
        if test in tested:
            continue
        if free := [plan.folder for plan in plans if plan.folder in dealt]:
            dealt[min(free, key=lambda folder: len(dealt[folder]))].append(test[0])
        else:
            missing.append(test[0])
    if missing:
        raise ValueError(f"no run in {out} tests {', '.join(missing)}; valid are more --seeds, or another --out")
    return [
        plan._replace(without=[option for method, option in WITHOUT.items() if method not in dealt.get(plan.folder, [])])
        for plan in runs
    ]


def _tests(config: Any) -> list[tuple[str, Hashable]]:
    """What a run tests beside its learned objective: the method, and all else that the result depends on.

    Raises:
        ValueError: if it makes no meta-tests.
    """
    test = meta_test_of(config)
    conditions = [config.agent, *(test[key] for key in CONDITIONS)]
    own: dict[str, Any] = dict(test["baselines"] or {})
    if test["untrained"]:
        own[UNTRAINED.name] = {key: value for key, value in config.objective.items() if key != "seed"}
    if test["random"]:
        own[RANDOM.name] = {}
    return [(method, _frozen([*conditions, own[method]])) for method in WITHOUT if own.get(method) is not None]


def _frozen(value: Any) -> Hashable:
    """A configuration's value such that equal ones are equal; 1 is 1.0."""
    if isinstance(value, Mapping):
        return tuple(sorted((key, _frozen(item)) for key, item in value.items()))
    return tuple(map(_frozen, value)) if isinstance(value, Sequence) and not isinstance(value, str) else value


def meta_test_of(config: Any) -> dict[str, Any]:
    """What a configuration says of meta-tests, resolved.

    Raises:
        ValueError: if there are none.
    """
    if (test := config.callbacks.meta_test) is None:
        raise ValueError("callbacks.meta_test is null; valid are tests, which are what this is about")
    keys = (*CONDITIONS, "untrained", "random", "baselines")
    return {key: OmegaConf.to_container(test[key], resolve=True) if OmegaConf.is_config(test[key]) else test[key] for key in keys}


def frozen_runs(
    folders: Sequence[Path], seeds: Sequence[int], out: Path, extra: Sequence[str], as_one: bool = False
) -> list[Planned]:
    """A run for each seed and each objective in or below the folders, whose agents are those that meta-tests would have, or further ones.

    Args:
        folders: run folders with an `objective.safetensors`, or folders that hold some.
        seeds: as of `baselines`.
        as_one: an ensemble of those objectives that are in or below a folder takes their place.
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
    tested: list[tuple[Path, list[str]]]
    if as_one:
        tested = [
            (
                out / folder.resolve().name / "ensemble",
                ["objective=ensemble", f"objective.members=[{','.join(map(_quoted, found))}]"],
            )
            for folder, found in files.items()
        ]
    else:
        each = sorted({file.resolve(): file for found in files.values() for file in found}.values())
        tested = [(out / Path(*file.absolute().parts[-3:-1]), [f"objective.path={_quoted(file)}"]) for file in each]
    places = [place for place, _ in tested]
    if twice := {str(place) for place in places if places.count(place) > 1}:
        raise ValueError(f"--objectives: several would be tested in {', '.join(sorted(twice))}; valid is another --out for each")
    return [
        _run_of_fresh_agents(place.with_name(f"{place.name}_agents_{seed}"), ["experiment=meta_test", *objective], seed, extra)
        for seed in seeds
        for place, objective in tested
    ]


def baselines(seeds: Sequence[int], out: Path, extra: Sequence[str]) -> list[Planned]:
    """Runs of REINFORCE and DDPG/TD3 whose agents are further ones of those that the meta-tests have, in the same environments.

    Of three agents in each environment, meta-tests have 0, 1 and 2, as has seed 0 here; seed 1 has those from 3 on, and so forth.

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


def random_actions(out: Path, extra: Sequence[str]) -> Planned:
    """Write returns of random actions into a `meta_test.csv` below `out`, unless they are there; their folder, as of a run."""
    config = OmegaConf.create(composed(["experiment=protocol", *extra]))
    test, file = meta_test_of(config), out / "baselines" / "random" / "meta_test.csv"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        specs = [EnvironmentSpec.parse(entry) for entry in test["environments"]]
        append_rows(file, random_returns(specs, test["seeds"], test["num_episodes"]))
    return Planned(file.parent, [])


def _run_of_fresh_agents(folder: Path, objective: Sequence[str], seed: int, extra: Sequence[str]) -> Planned:
    """A run without meta-training whose population is the fresh agents of `experiment=protocol`'s meta-tests under these overrides."""
    test = meta_test_of(OmegaConf.create(composed(["experiment=protocol", *extra])))
    if test["seeds"] != list(range(len(test["seeds"]))):
        raise ValueError(f"callbacks.meta_test.seeds={test['seeds']}: valid are 0, 1, 2 and so on for runs of fresh agents")
    own = [override for override in extra if not _is_about(override, OF_META_TRAINING)]
    if not any(override.startswith("env=") for override in own):
        own.insert(0, "env=protocol")
    overrides = [
        *(*objective, "compile=true", *own, "env.train=${env.test}", f"seed={seed}"),
        *(f"population.size={len(test['environments']) * len(test['seeds'])}", f"env_steps={test['env_steps']}"),
        f"callbacks.evaluation.every_env_steps={test['evaluate_every_env_steps']}",
        f"callbacks.evaluation.num_episodes={test['num_episodes']}",
    ]
    return Planned(folder, overrides, composed(overrides))


def _quoted(path: Path) -> str:
    """As Hydra reads it, whatever is in its name."""
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def _is_about(override: str, keys: Iterable[str]) -> bool:
    """Whether an override sets one of the keys or something below."""
    key = override.lstrip("+~").partition("=")[0].replace("/", ".")
    return any(f"{key}.".startswith(f"{one}.") for one in keys)


def keep(runs: Sequence[Planned], out: Path, results: Path) -> None:
    """Copy what a result is made of; of an objective that was only tested its card alone, since it has a place already."""
    for plan in runs:
        target = results / plan.folder.relative_to(out)
        target.mkdir(parents=True, exist_ok=True)
        is_made_here = "experiment=meta_test" not in plan.overrides
        for name in KEPT:
            if (plan.folder / name).exists() and (is_made_here or name != "objective.safetensors"):
                shutil.copyfile(plan.folder / name, target / name)


def comparison(variants: Mapping[str, Sequence[Run]], others: Sequence[Run]) -> str:
    """Normalised final scores (random actions 0, DDPG/TD3 1) of the learned objectives of each variant, as a Markdown table.

    Of environments that were meta-trained on and of others: interquartile mean with its 95 % interval, at the end and of the area under
    the curve.

    Args:
        variants: their runs.
        others: runs that have the baselines.
    """
    lines = ["| variant | runs | training | training, area | other | other, area |", "|---|---|---|---|---|---|"]
    measures: list[Callable[[Score], float]] = [lambda score: score.normalised_final, lambda score: score.normalised_area]
    for name, runs in variants.items():
        scores = select_normalised(scores_of(learning_curves(runs, others)[0])[0])
        trained_on = {environment for run in runs if run.origin for environment in run.origin.training_environments}
        cells = []
        for is_training in (True, False):
            own = [score for score in scores if (score.environment in trained_on) == is_training]
            values = [aggregate(own, LEARNED.name, measure) for measure in measures]
            cells += ["-" if value is None else f"{value.mean:.2f} ({value.low:.2f} to {value.high:.2f})" for value in values]
        lines.append(f"| {name} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is planned, then write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--levers", action="store_true", help="compare the variants of levers.yaml on validation environments")
    parser.add_argument(
        "--objectives", nargs="+", type=Path, metavar="DIR", help="test those of these run folders, instead of meta-training any"
    )
    parser.add_argument("--ensemble", action="store_true", help="with --objectives: those of each folder as one, an ensemble")
    parser.add_argument(
        "--variants", nargs="+", metavar="NAME", help="of levers.yaml; with --levers all by default, else protocol"
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        metavar="N",
        help="of meta-training, by default 0 1 2, of --levers 0 1; with --objectives of fresh agents, by default 0",
    )
    parser.add_argument(
        "--baseline-seeds",
        nargs="+",
        type=int,
        metavar="N",
        help="from 1 on: further agents of REINFORCE and DDPG/TD3; with --objectives from 0 on",
    )
    parser.add_argument("--jobs", type=_positive, default=1, help="runs side by side, each on a core of its own")
    parser.add_argument("--out", type=Path, help="folder of the runs; by default runs/protocol or runs/levers")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="copy CSV files, configurations and objectives there in the end")
    parser.add_argument("overrides", nargs="*", help="for every run, such as env_steps=1000")
    options = parser.parse_args()
    try:
        runs, out = _planned_by(options)
        run_all(runs, out, options.jobs)
    except ValueError as error:
        parser.error(str(error))
    kept = list(runs)
    if options.objectives:
        kept.append(random_actions(out, options.overrides))
    if options.keep is not None:
        keep(kept, out, options.keep)
    report([str(out), "--out", str(out / "report.html")])
    every = find_runs([out])[0]
    of_variants: dict[str, list[Run]] = {}
    for run in every:
        if run.origin is not None and run.folder in {plan.folder.resolve() for plan in runs}:
            of_variants.setdefault(run.folder.parent.name, []).append(run)
    print(comparison(of_variants, every))


def _planned_by(options: argparse.Namespace) -> tuple[list[Planned], Path]:
    """What the command line asks for, and the folder of all runs.

    Raises:
        ValueError: if that cannot be.
    """
    file: Any = OmegaConf.to_container(OmegaConf.load(Path(__file__).with_name("levers.yaml")))
    known: dict[str, list[str]] = file["variants"] if options.levers else {**file["variants"], **file["of_the_protocol"]}
    if unknown := set(options.variants or []) - known.keys():
        raise ValueError(f"--variants {' '.join(sorted(unknown))}: valid are {', '.join(known)} (levers.yaml)")
    extra, baseline_seeds = list(options.overrides), options.baseline_seeds or []
    if len(set(options.seeds or [])) < len(options.seeds or []) or len(set(baseline_seeds)) < len(baseline_seeds):
        raise ValueError("--seeds and --baseline-seeds: valid are seeds that differ")
    if options.objectives:
        if options.levers or options.variants or options.out is None:
            raise ValueError("--objectives needs an --out of its own, and goes without --levers and --variants")
        tests = frozen_runs(options.objectives, options.seeds or [0], options.out, extra, options.ensemble)
        return [*tests, *baselines(baseline_seeds, options.out, extra)], options.out
    if options.ensemble:
        raise ValueError("--ensemble needs --objectives, the folders whose objectives are to be one")
    names = options.variants or (list(known) if options.levers else ["protocol"])
    variants = {name: known[name] for name in names}
    if baseline_seeds and (options.levers or min(baseline_seeds) < 1):
        raise ValueError("--baseline-seeds go from 1 on, and not with --levers")
    if options.levers:
        extra = ["env=protocol_validation", *file["every"], *extra]
    out = options.out or Path("runs", "levers" if options.levers else "protocol")
    runs = planned(variants, options.seeds or ([0, 1] if options.levers else [0, 1, 2]), out, extra)
    return [*runs, *baselines(baseline_seeds, out, extra)], out


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


if __name__ == "__main__":
    main()
