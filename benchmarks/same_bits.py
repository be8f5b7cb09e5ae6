"""Whether two checkouts compute the same bits: python benchmarks/same_bits.py OLD NEW [--out DIR]

Each of the runs below is made by both checkouts, on the CPU with eager updates. Compared are the weights of the objective, every column of
`metrics.csv` but those that measure time, and `meta_test.csv`. Exit code 1 if anything differs. Runs that are there already in DIR are
not made again, so the old side is made once.
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

from safetensors.numpy import load_file

from metagenrl_pl.common.commands import hydra_override
from metagenrl_pl.common.files import path_argument

DEBUG = ["experiment=debug"]
SHORT_TEST = ["env_steps=200", "evaluate_every_env_steps=100", "num_episodes=1"]
RUNS: dict[str, list[list[str]]] = {
    # name: command lines, one after the other
    "default": [
        [
            "train.py",
            "seed=0",
            "env_steps=3000",
            "callbacks.meta_test.env_steps=1500",
            "callbacks.meta_test.evaluate_every_env_steps=500",
        ]
    ],
    "debug": [["train.py", *DEBUG]],
    "two_processes": [["train.py", *DEBUG, "trainer.devices=2", "trainer.strategy=ddp"]],
    "resumed": [
        ["train.py", *DEBUG, "env_steps=250"],
        ["train.py", "{ckpt_path}", "env_steps=400"],
    ],
    "lives": [
        [
            "train.py",
            *DEBUG,
            "population.lifetime_env_steps=150",
            "objective=learned",
            "meta=paper",
            "meta.annealing_env_steps=150",
        ]
    ],
    "adam": [["train.py", *DEBUG, "inner=adam", "inner.num_steps=2"]],
    "mixture": [["train.py", *DEBUG, "objective=learned_mixture", "{returns}", "objective.critic_gradient_of=both"]],
    "frozen": [
        [
            "train.py",
            "experiment=meta_test",
            "objective=pretrained",
            "objective.name=mixture",
            "env_steps=1300",
            "callbacks.evaluation.every_env_steps=500",
            "callbacks.evaluation.num_episodes=2",
        ]
    ],
    "baseline": [
        [
            "train.py",
            "experiment=baseline/off_policy_reinforce",
            "env_steps=1300",
            "callbacks.evaluation.every_env_steps=500",
            "callbacks.evaluation.num_episodes=2",
        ]
    ],
}
JUDGED_BY_RETURNS = ("judge=returns", "meta.advantage_share=0.5")  # the second before 0.2.0


def run(checkout: Path, name: str, folder: Path) -> None:
    """Make one run, unless it is there."""
    run_dir, ended = folder / name, folder / f"{name}.ended"
    if ended.exists():
        return
    shutil.rmtree(run_dir, ignore_errors=True)  # of a run that was stopped
    returns = JUDGED_BY_RETURNS[not (checkout / "conf/judge").is_dir()]
    environment = {**os.environ, "PYTHONPATH": f"{checkout / 'src'}:{checkout}", "CUDA_VISIBLE_DEVICES": ""}
    for line in RUNS[name]:
        words = [word.format(ckpt_path=hydra_override("ckpt_path", str(run_dir)), returns=returns) for word in line]
        if "{ckpt_path}" not in line:
            words.append(hydra_override("run_dir", str(run_dir)))
        done = subprocess.run(
            [sys.executable, *words, "compile=false"], cwd=checkout, env=environment, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"{checkout}: {' '.join(words)} ended with {done.returncode}: {done.stderr[-2000:]}")
    ended.touch()


def contents(run_dir: Path) -> dict[str, object]:
    """What is compared of a run, by name."""
    found: dict[str, object] = {}
    for path in sorted(run_dir.glob("*.safetensors")):
        found |= {f"{path.name}:{name}": value.tobytes() for name, value in load_file(path).items()}
    for path in sorted(run_dir.glob("*.csv")):
        with path.open() as file:
            rows = list(csv.DictReader(file))
        found |= {
            f"{path.name}:{column}": [row[column] for row in rows]
            for column in (rows[0] if rows else {})
            if not column.startswith("throughput/")
        }
    return found


def main() -> None:
    """Run, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("old", type=path_argument)
    parser.add_argument("new", type=path_argument)
    parser.add_argument("--out", type=path_argument, default=Path("same_bits"), help="where runs go")
    parser.add_argument("--only", nargs="+", choices=list(RUNS), default=list(RUNS))
    options = parser.parse_args()
    is_same = True
    for name in options.only:
        sides = []
        for side in ("old", "new"):
            run(getattr(options, side).resolve(), name, options.out.resolve() / side)
            sides.append(contents(options.out / side / name))
        different = [key for key in {**sides[0], **sides[1]} if sides[0].get(key) != sides[1].get(key)]
        is_same = is_same and not different and bool(sides[0])
        print(
            f"{name}: {len(sides[0])} tensors and columns, "
            + (f"different: {', '.join(different[:5])}" if different else "the same bits"),
            flush=True,
        )
    sys.exit(not is_same)


if __name__ == "__main__":
    main()
