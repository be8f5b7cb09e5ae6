"""How good learned objectives are: meta-train with several seeds, meta-test, and report (docs/protocol.md).

    python benchmarks/protocol.py                    the protocol: three meta-training seeds, training and unseen environments
    python benchmarks/protocol.py --baseline-seeds 1 2   further agents of REINFORCE and DDPG/TD3 beside it
    python benchmarks/protocol.py --levers           hyper-parameters compared on validation environments (levers.yaml)

Every run is a `train.py` of its own; `--jobs` of them run side by side. What ended is not run again, and what was stopped goes on from its
newest checkpoint, so the command may be repeated until all is done.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf

from metagenrl_pl.config import load_config
from metagenrl_pl.messages import one_line
from metagenrl_pl.report import main as report
from metagenrl_pl.run_folders import Run, find_runs
from metagenrl_pl.scores import Score, aggregate, learning_curves, normalised, scores_of

ROOT = Path(__file__).parents[1]
WITHOUT = {
    "untrained": "callbacks.meta_test.untrained=false",
    "reinforce": "callbacks.meta_test.baselines.reinforce=null",
    "critic": "callbacks.meta_test.baselines.critic=null",
    "random": "callbacks.meta_test.random=false",
}
"""What leaves out the test of each method that does not depend on meta-training."""
KEPT = ("meta_test.csv", "metrics.csv", "objective.safetensors", "objective.json", "config.yaml")


class Planned(NamedTuple):
    """A run of `train.py`.

    Args:
        folder: of the run.
        overrides: of the default run.
        settings: the configuration that they compose.
        without: further overrides, which say what is not tested beside the learned objective.
    """

    folder: Path
    overrides: list[str]
    settings: str = ""
    without: list[str] = []

    @property
    def note(self) -> Path:
        """Where its settings are written down."""
        return self.folder.with_suffix(".settings.yaml")

    @property
    def is_begun(self) -> bool:
        """Whether there is something to go on from, or nothing more to do."""
        return _is_begun(self.folder)


def planned(variants: Mapping[str, list[str]], seeds: Sequence[int], out: Path, extra: Sequence[str]) -> list[Planned]:
    """A run for each variant and seed. What does not depend on meta-training is tested once, dealt to the runs that have not begun.

    Raises:
        ValueError: if overrides compose no configuration, or if all runs have begun, and something that none of them tests is tested
            nowhere else in `out`.
    """
    runs: list[Planned] = []
    for name, overrides in variants.items():
        for seed in seeds:
            every = ["experiment=protocol", f"seed={seed}", *overrides, *extra]
            runs.append(Planned(out / name / f"seed_{seed}", every, composed(every)))
    tested = {method for folder in out.glob("*/seed_*/") if _is_begun(folder) for method in _tested_in(folder)}
    missing = [method for method in WITHOUT if method not in tested]
    free = [plan for plan in runs if not plan.is_begun]
    if missing and not free:
        raise ValueError(f"no run in {out} tests {', '.join(missing)}; valid are more --seeds, or another --out")
    dealt = {plan.folder: missing[i :: len(free)] for i, plan in enumerate(free)}
    return [
        plan._replace(without=[option for method, option in WITHOUT.items() if method not in dealt.get(plan.folder, [])])
        for plan in runs
    ]


def baselines(seeds: Sequence[int], out: Path, extra: Sequence[str]) -> list[Planned]:
    """Runs of REINFORCE and DDPG/TD3 whose agents are further ones of those that the meta-tests have, in the same environments.

    Meta-tests have agents 0, 1 and 2 in each environment, seed 1 here those from 3 on, and so forth.

    Args:
        seeds: one run of each method for each.
        out: folder of all runs.
        extra: overrides of the meta-tests' runs; what shapes agents holds here as well.

    Raises:
        ValueError: if overrides compose no configuration.
    """
    test = OmegaConf.create(composed(["experiment=protocol", *extra])).callbacks.meta_test
    shaping = ("agent", "replay", "compile", "env.test", "env_workers", "updates_per_batch", "logger")
    own = [override for override in extra if override.startswith(shaping)]
    runs = []
    for method, experiment in (("critic", "ddpg"), ("reinforce", "off_policy_reinforce")):
        for seed in seeds:
            overrides = [
                *(f"experiment=baseline/{experiment}", "env=protocol", "env.train=${env.test}", "compile=true", f"seed={seed}"),
                *(f"population.size={len(test.environments) * len(test.seeds)}", f"env_steps={test.env_steps}"),
                f"callbacks.evaluation.every_env_steps={test.evaluate_every_env_steps}",
                f"callbacks.evaluation.num_episodes={test.num_episodes}",
                *own,
            ]
            runs.append(Planned(out / "baselines" / f"{method}_seed_{seed}", overrides, composed(overrides)))
    return runs


def _is_begun(folder: Path) -> bool:
    return (folder / "ended").exists() or any((folder / "checkpoints").glob("*.ckpt"))


def _tested_in(folder: Path) -> set[str]:
    """Of `WITHOUT`, what a run tests."""
    test: Any = OmegaConf.to_container(load_config(folder / "config.yaml").callbacks.meta_test)
    wanted = {**(test["baselines"] or {}), "untrained": test["untrained"], "random": test["random"]}
    return {method for method in WITHOUT if wanted.get(method)}


def composed(overrides: Sequence[str]) -> str:
    """The configuration of a run with these overrides, as YAML.

    Raises:
        ValueError: if they compose none.
    """
    try:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return OmegaConf.to_yaml(compose("config", list(overrides)))
    except HydraException as error:
        raise ValueError(one_line(error)) from error


def check_folders(runs: Sequence[Planned]) -> None:
    """Refuse to go on with runs of other settings.

    Raises:
        ValueError: if a folder holds a run that was made with other ones.
    """
    for plan in runs:
        if plan.is_begun:
            before, now = (text.splitlines() for text in (plan.note.read_text() if plan.note.exists() else "", plan.settings))
            differing = [line for line in before if line not in now] + [line for line in now if line not in before]
            if differing:
                raise ValueError(
                    f"{plan.folder} holds a run of other settings ({differing[0].strip()}); valid is another --out, or to remove it"
                )


class Runner:
    """Runs what is planned, each in a process of its own; told to stop, the running ones save and end, and no other begins."""

    def __init__(self) -> None:
        self._is_stopped = Event()
        self._running: set[subprocess.Popen[bytes]] = set()

    def stop(self, signum: int, frame: FrameType | None) -> None:
        """A signal handler."""
        self._is_stopped.set()
        for process in list(self._running):
            process.terminate()

    def run(self, plan: Planned) -> int:
        """Begin a run, go on with it, or leave it if it has ended; its exit code."""
        folder, ended = plan.folder, plan.folder / "ended"
        if ended.exists():
            return 0
        if self._is_stopped.is_set():
            return 1
        checkpoints = sorted((folder / "checkpoints").glob("*.ckpt"))
        if checkpoints:
            arguments = [f"ckpt_path={checkpoints[-1]}"]
        else:
            shutil.rmtree(folder, ignore_errors=True)  # stopped before its first checkpoint
            arguments = [f"run_dir={folder}", *plan.overrides, *plan.without]
            folder.parent.mkdir(parents=True, exist_ok=True)
            plan.note.write_text(plan.settings)
        paths = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
        print(f"{folder}: {' '.join(arguments)}", flush=True)
        with folder.with_suffix(".log").open("a") as log:
            command = [sys.executable, str(ROOT / "train.py"), *arguments]
            process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, stdout=log, stderr=subprocess.STDOUT)
            self._running.add(process)
            code = process.wait()
            self._running.discard(process)
        if code == 0:
            ended.touch()
        print(f"{folder}: exit code {code}", flush=True)
        return code


def keep(runs: Sequence[Planned], out: Path, results: Path) -> None:
    """Copy what a result is made of."""
    for plan in runs:
        target = results / plan.folder.relative_to(out)
        target.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            if (plan.folder / name).exists():
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
        scores = normalised(scores_of(learning_curves(runs, others)[0])[0])
        trained_on = {environment for run in runs if run.origin for environment in run.origin.training_environments}
        cells = []
        for is_training in (True, False):
            own = [score for score in scores if (score.environment in trained_on) == is_training]
            values = [aggregate(own, "learned", measure) for measure in measures]
            cells += ["-" if value is None else f"{value.mean:.2f} ({value.low:.2f} to {value.high:.2f})" for value in values]
        lines.append(f"| {name} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is planned, then write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--levers", action="store_true", help="compare the variants of levers.yaml on validation environments")
    parser.add_argument(
        "--variants", nargs="+", metavar="NAME", help="of levers.yaml; with --levers all by default, else protocol"
    )
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="of meta-training; by default 0 1 2, of --levers 0 1")
    parser.add_argument(
        "--baseline-seeds",
        nargs="+",
        type=int,
        default=[],
        metavar="N",
        help="from 1 on: further agents of REINFORCE and DDPG/TD3",
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, each on a core of its own")
    parser.add_argument("--out", type=Path, help="folder of the runs; by default runs/protocol or runs/levers")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="copy CSV files, configurations and objectives there in the end")
    parser.add_argument("overrides", nargs="*", help="for every run, such as env_steps=1000")
    options = parser.parse_args()

    file: Any = OmegaConf.to_container(OmegaConf.load(Path(__file__).with_name("levers.yaml")))
    if unknown := set(options.variants or []) - file["variants"].keys():
        parser.error(f"--variants {' '.join(sorted(unknown))}: not in levers.yaml; valid are {', '.join(file['variants'])}")
    names = options.variants or (list(file["variants"]) if options.levers else ["protocol"])
    variants: dict[str, list[str]] = {name: file["variants"][name] for name in names}
    seeds, extra = options.seeds or ([0, 1] if options.levers else [0, 1, 2]), list(options.overrides)
    if options.baseline_seeds and (options.levers or min(options.baseline_seeds) < 1):
        parser.error("--baseline-seeds go from 1 on, and not with --levers")
    if options.levers:
        extra = ["env=protocol_validation", *file["every"], *extra]
    out = options.out or Path("runs", "levers" if options.levers else "protocol")
    try:
        runs = [*planned(variants, seeds, out, extra), *baselines(options.baseline_seeds, out, extra)]
        check_folders(runs)
    except ValueError as error:
        parser.error(str(error))
    runner = Runner()
    signal.signal(signal.SIGTERM, runner.stop)
    with ThreadPoolExecutor(options.jobs) as pool:
        codes = list(pool.map(runner.run, runs))
    if failed := [str(plan.folder.with_suffix(".log")) for plan, code in zip(runs, codes, strict=True) if code]:
        sys.exit(f"error: {len(failed)} of {len(runs)} runs did not end; see {', '.join(failed)}")
    if options.keep is not None:
        keep(runs, out, options.keep)
    report([str(out), "--out", str(out / "report.html")])
    every = find_runs([out])[0]
    folders = {name: {plan.folder.resolve() for plan in runs if plan.folder.parent.name == name} for name in variants}
    print(comparison({name: [run for run in every if run.folder in folders[name]] for name in variants}, every))


if __name__ == "__main__":
    main()
