"""The protocol in small: its runs, what they keep, and that what has ended is not run again."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from metagenrl_pl.config import build
from metagenrl_pl.meta_test import numbered
from metagenrl_pl.results import read_rows
from metagenrl_pl.run_folders import find_runs, regimes_of
from protocol import Planned, Runner, baselines, keep

ROOT = Path(__file__).parents[1]
PATHS = {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
SMALL = [
    *("env_steps=60", "updates_per_batch=10", "compile=false", "population.size=3", "population.lifetime_env_steps=null"),
    *("agent.hidden_units=8", "agent.num_windows=3", "agent.window_length=3", "agent.random_env_steps=20"),
    *("agent.warmup_env_steps=20", "env.test=[Pendulum-v1,InvertedPendulum-v5,Hopper-v5]", "callbacks.meta_test.seeds=[0,1]"),
    *(
        "callbacks.meta_test.env_steps=40",
        "callbacks.meta_test.evaluate_every_env_steps=20",
        "callbacks.meta_test.num_episodes=1",
    ),
    *("logger=csv", "env_workers=0"),
]


def protocol(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **PATHS}
    command = [sys.executable, str(ROOT / "benchmarks" / "protocol.py"), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_protocol(tmp_path: Path) -> None:
    arguments = [*SMALL, "--variants", "protocol", "--seeds", "0", "1", "--jobs", "2", "--keep", "kept"]
    done = protocol(tmp_path, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = (read_rows(tmp_path / "kept" / "protocol" / f"seed_{seed}" / "meta_test.csv") for seed in (0, 1))
    assert {row.method for row in first} == {"learned", "untrained", "critic"}  # what is tested once is dealt to the runs
    assert {row.method for row in second} == {"learned", "reinforce", "random"}
    assert {row.environment for row in second} == {"Pendulum-v1", "InvertedPendulum-v5", "Hopper-v5"}
    runs, _ = find_runs([tmp_path / "kept"])
    (regime,) = regimes_of(runs)
    assert [run.origin.seed for run in regime.runs if run.origin] == [0, 1]
    page = (tmp_path / "runs" / "protocol" / "report.html").read_text()
    assert "unseen" in page and "probability of improvement" in page.lower()
    table = done.stdout[done.stdout.index("| variant") :]
    assert re.search(r"^\| protocol \| 2 \|( -?[\d.]+ \(-?[\d.]+ to -?[\d.]+\) \|){2}", table, re.MULTILINE), table

    again = protocol(tmp_path, *SMALL, "--seeds", "1")  # DDPG/TD3 is that of the run that has it
    assert again.returncode == 0 and "exit code" not in again.stdout and "| protocol | 1 |" in again.stdout
    other = protocol(tmp_path, *SMALL, "agent.num_windows=4")
    assert (
        other.returncode == 2 and "seed_0 holds a run of other settings (num_windows: 3); valid is another --out" in other.stderr
    )
    variant = protocol(
        tmp_path, *SMALL, "--variants", "clip", "--seeds", "0"
    )  # on the same environments, beside the same baselines
    assert variant.returncode == 0 and "| clip | 1 |" in variant.stdout, variant.stdout + variant.stderr
    clip = tmp_path / "runs" / "protocol" / "clip" / "seed_0"
    assert OmegaConf.load(clip / "config.yaml").meta.gradient == "clip"
    assert {row.method for row in read_rows(clip / "meta_test.csv")} == {"learned"}
    shutil.rmtree(clip)

    folder = tmp_path / "runs" / "protocol" / "protocol"
    assert "num_windows: 3" in (folder / "seed_0.settings.yaml").read_text()
    shutil.rmtree(folder / "seed_0")
    untested = protocol(tmp_path, *SMALL, "--seeds", "1")
    assert untested.returncode == 2 and "tests untrained, critic; valid are more --seeds" in untested.stderr


def test_further_agents_of_the_baselines_are_others_than_those_of_the_meta_tests(tmp_path: Path) -> None:
    runs = baselines([1, 2], tmp_path, SMALL)
    assert [run.folder.name for run in runs] == ["critic_seed_1", "critic_seed_2", "reinforce_seed_1", "reinforce_seed_2"]
    config = OmegaConf.create(runs[3].settings)
    assert (config.seed, config.env_steps, config.agent.num_windows, config.compile) == (2, 40, 3, False)
    assert config.callbacks.evaluation.every_env_steps == 20 and config.callbacks.evaluation.num_episodes == 1
    specs = build(config.env).dealt(config.population.size)
    assert {spec.name for spec in specs} == {"Pendulum-v1", "InvertedPendulum-v5", "Hopper-v5"}
    assert sorted(numbered(specs, 2)) == [4, 4, 4, 5, 5, 5]  # two of each in each run; meta-tests have 0 and 1
    runner = Runner()
    assert runner.run(runs[2]) == 0
    rows = read_rows(runs[2].folder / "meta_test.csv")
    assert {(row.method, row.seed, row.env_steps) for row in rows} == {("reinforce", n, s) for n in (2, 3) for s in (20, 40)}


def test_what_cannot_be_composed_is_told_before_anything_runs(tmp_path: Path) -> None:
    done = protocol(tmp_path, *SMALL, "agent.num_window=4")
    assert done.returncode == 2 and "agent.num_window" in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_is_named(tmp_path: Path) -> None:
    done = protocol(tmp_path, *SMALL, "agent.num_windows=0", "--seeds", "0")
    assert done.returncode == 1 and "1 of 1 runs did not end; see " in done.stderr and "Traceback" not in done.stderr
    assert "num_windows must be at least 1" in (tmp_path / "runs" / "protocol" / "protocol" / "seed_0.log").read_text()


def test_the_kept_results_of_two_variants_are_two_regimes(tmp_path: Path) -> None:
    """Though they differ in a key that their objectives' cards do not know."""
    folders = [tmp_path / name / "seed_0" for name in ("protocol", "clip")]
    for folder, gradient in zip(folders, ("normalize", "clip"), strict=True):
        folder.mkdir(parents=True)
        (folder / "meta_test.csv").write_text((ROOT / "results" / "quickstart" / "seed_0" / "meta_test.csv").read_text())
        OmegaConf.save({"seed": 0, "env": {"train": ["A"]}, "meta": {"gradient": gradient}}, folder / "config.yaml")
    runs = [Planned(folder, []) for folder in folders]
    keep(runs, tmp_path, tmp_path / "kept")
    titles = [regime.title for regime in regimes_of(find_runs([tmp_path / "kept"])[0])]
    assert len(titles) == 2 and any("meta.gradient=clip" in title for title in titles)


@pytest.mark.parametrize("arguments", [["--variants", "nothing"], ["--levers", "--variants", "nothing"]])
def test_variants_are_those_of_the_levers(arguments: list[str], tmp_path: Path) -> None:
    done = protocol(tmp_path, *arguments)
    assert done.returncode == 2 and "--variants nothing: " in done.stderr


def test_told_to_stop_it_lets_the_run_save_and_goes_on_later(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "protocol.py"), *SMALL, "env_steps=6000", "--seeds", "0", "1"]
    process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, **PATHS}, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "runs" / "protocol" / "protocol" / "seed_0.log"
    while not (log.exists() and "/6,000 env steps" in log.read_text()):
        assert process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "2 of 2 runs did not end" in errors
    assert list((log.parent / "seed_0" / "checkpoints").glob("*.ckpt")) and not (log.parent / "seed_1").exists()
