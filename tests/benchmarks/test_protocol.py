"""The protocol in small: its runs, what they keep, and that what has ended is not run again."""

import math
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

from metagenrl_pl.config.schema import build
from metagenrl_pl.evaluation.fresh_agents import agent_numbers
from metagenrl_pl.results.origin import Origin
from metagenrl_pl.results.rows import MetaTestRow, read_rows
from metagenrl_pl.results.run_folders import Run, find_runs
from metagenrl_pl.results.variants import variants_of
from protocol import (
    SWITCHES,
    copy_results,
    main,
    plan_baselines,
    plan_frozen_runs,
    plan_runs,
    read_variants,
    summary_tables,
    write_random_actions,
)
from side_by_side import PlannedRun, Runner, check_folders, compose_run

ROOT = Path(__file__).parents[2]
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


@pytest.mark.slow
def test_protocol(tmp_path: Path) -> None:
    arguments = [*SMALL, "--variants", "protocol", "--seeds", "0", "1", "--jobs", "2", "--keep", "kept"]
    done = protocol(tmp_path, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = (read_rows(tmp_path / "kept" / "protocol" / f"seed_{seed}" / "meta_test.csv") for seed in (0, 1))
    assert {row.method for row in first} == {"learned", "untrained", "critic"}  # what is tested once is spread over the runs
    assert {row.method for row in second} == {"learned", "reinforce", "random"}
    assert {row.environment for row in second} == {"Pendulum-v1", "InvertedPendulum-v5", "Hopper-v5"}
    runs, _ = find_runs([tmp_path / "kept"])
    (variant,) = variants_of(runs)
    assert [run.origin.seed for run in variant.runs if run.origin] == [0, 1]
    page = (tmp_path / "runs" / "protocol" / "report.html").read_text()
    assert "unseen" in page and "probability of improvement" in page.lower()
    table = done.stdout[done.stdout.index("| method | ") :]
    assert re.search(r"^\| learned objective \|.* \| \d+ \(2\) \|$", table, re.MULTILINE), table

    again = protocol(tmp_path, *SMALL, "--seeds", "1")  # DDPG/TD3 is that of the run that has it
    assert again.returncode == 0 and "exit code" not in again.stdout and "| learned objective | " in again.stdout
    other = protocol(tmp_path, *SMALL, "agent.num_windows=4")
    assert (
        other.returncode == 2
        and "seed_0 holds a run of other settings (agent.num_windows: 3, not 4); valid is another" in other.stderr
    )
    variant = protocol(
        tmp_path, *SMALL, "--variants", "clip", "--seeds", "0"
    )  # on the same environments, beside the same baselines
    assert variant.returncode == 0 and "| clip | " in variant.stdout, variant.stdout + variant.stderr
    clip = tmp_path / "runs" / "protocol" / "clip" / "seed_0"
    assert OmegaConf.load(clip / "config.yaml").meta.gradient == "clip"
    assert {row.method for row in read_rows(clip / "meta_test.csv")} == {"learned"}
    shutil.rmtree(clip)

    longer = ["--out", "runs/longer", "--baseline-seeds", "0", "--keep", "longer", *SMALL, "callbacks.meta_test.env_steps=60"]
    tested = protocol(tmp_path, "--objectives", "kept/protocol/seed_0", *longer)  # the same objective and agents, for longer
    assert tested.returncode == 0 and "| learned objective | " in tested.stdout, tested.stdout + tested.stderr
    (variant,) = variants_of(find_runs([tmp_path / "longer"])[0])
    (run,) = variant.runs
    assert {file.name for file in run.folder.iterdir()} == {
        "config.yaml",
        "meta_test.csv",
        "metrics.csv",
        "objective.json",
        "provenance.json",
    }
    assert run.origin and run.origin.seed == 0 and {row.env_steps for row in run.rows} == {20, 40, 60}
    assert {row.method for run in variant.others for row in run.rows} == {"critic", "reinforce", "random"}
    before, now = ({row[:4]: row.episode_return for row in rows if row.method == "learned"} for rows in (first, run.rows))
    assert len(before) == 12 and {key: now[key] for key in before} == pytest.approx(before, rel=1e-4)

    folder = tmp_path / "runs" / "protocol" / "protocol"
    assert "num_windows: 3" in (folder / "seed_0.settings.yaml").read_text()
    shutil.rmtree(folder / "seed_0")
    untested = protocol(tmp_path, *SMALL, "--seeds", "1")
    assert untested.returncode == 2 and "tests untrained, critic; valid are more --seeds" in untested.stderr


@pytest.mark.slow
def test_further_agents_of_the_baselines_are_others_than_those_of_the_meta_tests(tmp_path: Path) -> None:
    runs = plan_baselines([1, 2], tmp_path, [*SMALL, "num_threads=2"])
    assert [run.folder.name for run in runs] == ["reinforce_seed_1", "reinforce_seed_2", "critic_seed_1", "critic_seed_2"]
    config = runs[1].settings
    assert (config.seed, config.env_steps, config.agent.num_windows, config.compile) == (2, 40, 3, False)
    assert config.num_threads == 2
    assert config.callbacks.evaluation.every_env_steps == 20 and config.callbacks.evaluation.num_episodes == 1
    specs = build(config.env).assign_round_robin(config.population.size)
    assert {spec.name for spec in specs} == {"Pendulum-v1", "InvertedPendulum-v5", "Hopper-v5"}
    assert sorted(agent_numbers(specs, 2)) == [4, 4, 4, 5, 5, 5]  # two of each in each run; meta-tests have 0 and 1
    runner = Runner()
    assert runner.run(runs[0]) == 0
    rows = read_rows(runs[0].folder / "meta_test.csv")
    assert {(row.method, row.seed, row.env_steps) for row in rows} == {("reinforce", n, s) for n in (2, 3) for s in (20, 40)}


def test_what_was_tested_under_other_conditions_is_tested_again(tmp_path: Path) -> None:
    """An untrained objective also depends on what kind of objective it is."""

    def without(variants: dict[str, list[str]], *extra: str) -> list[set[str]]:
        plans = plan_runs(variants, [0], tmp_path, [*SMALL, *extra])
        return [{method for method, option in SWITCHES.items() if option in plan.without} for plan in plans]

    every = set(SWITCHES)
    both = {"protocol": [], "paper": ["objective=learned"]}
    assert without(both) == [{"reinforce", "random"}, {"critic"}]  # each tests its own untrained objective
    (plan,) = plan_runs({"protocol": []}, [0], tmp_path, SMALL)
    begun = tmp_path / "before" / "seed_0"
    begun.mkdir(parents=True)
    (begun / "ended").touch()
    OmegaConf.save(plan.settings, begun / "config.yaml")
    frozen = tmp_path / "before" / "seed_0_agents_1"  # tests nothing beside its own agents
    frozen.mkdir()
    (frozen / "ended").touch()
    OmegaConf.save({"callbacks": {"meta_test": None}}, frozen / "config.yaml")
    assert without(both) == [every, every - {"untrained"}]
    assert without({"protocol": ["meta.gradient=clip"]}) == [every]
    assert without({"protocol": []}, "agent.num_windows=4") == [set()]
    assert without({"protocol": []}, "callbacks.meta_test.env_steps=60") == [set()]
    assert without({"protocol": []}, "callbacks.meta_test.seeds=[0]") == [set()]
    assert without({"protocol": []}, "callbacks.meta_test.baselines.reinforce.discount=0.5") == [every - {"reinforce"}]


def test_one_value_may_stand_for_a_list(tmp_path: Path) -> None:
    """As in `train.py`, whose configuration of a run that ended has the list."""
    one = [*SMALL, "env.test=Hopper-v5", "callbacks.meta_test.seeds=0"]
    (plan,) = plan_runs({"protocol": []}, [0], tmp_path, one)
    assert plan.without == []
    plan.folder.mkdir(parents=True)
    (plan.folder / "ended").touch()
    config = {**plan.settings, "run_dir": str(plan.folder)}
    OmegaConf.save(OmegaConf.create(config), plan.folder / "config.yaml")
    OmegaConf.save(plan.settings, plan.note)
    several = [*SMALL, "env.test=[Hopper-v5]", "callbacks.meta_test.seeds=[0]"]
    for extra in (one, several):
        check_folders(plan_runs({"protocol": []}, [0], tmp_path, extra))
    assert [run.settings.population.size for run in plan_baselines([1], tmp_path, one)] == [1, 1]


@pytest.mark.parametrize("method", ["untrained", "random"])
def test_a_method_that_is_tested_by_default_is_tested_where_its_key_is_removed(method: str, tmp_path: Path) -> None:
    plans = plan_runs({"protocol": []}, [0, 1], tmp_path, [*SMALL, f"~callbacks.meta_test.{method}"])
    switch = f"callbacks.meta_test.{method}=false"
    assert sorted(switch in plan.without for plan in plans) == [False, True]  # by one of both runs


def test_a_run_without_baselines_leaves_out_none(tmp_path: Path) -> None:
    first, second = plan_runs({"protocol": []}, [0, 1], tmp_path, [*SMALL, "callbacks.meta_test.baselines=null"])
    assert {len(run.without) for run in (first, second)} == {1}
    for run in (first, second):
        compose_run([*run.overrides, *run.without])


def test_random_actions_are_tested_in_the_environments_that_lack_them(tmp_path: Path) -> None:
    pendulum, both = (
        ["callbacks.meta_test.num_episodes=1", f"env.test={test}"] for test in ("Pendulum-v1", "[Pendulum-v1,Reacher-v5]")
    )
    file = write_random_actions(tmp_path, [*pendulum, "callbacks.meta_test.seeds=[0,1]"]).folder / "meta_test.csv"
    before = read_rows(file)
    assert [(row.environment, row.seed) for row in before] == [("Pendulum-v1", 0), ("Pendulum-v1", 1)]
    write_random_actions(tmp_path, [*both, "callbacks.meta_test.seeds=[0,1,2]"])
    rows = read_rows(file)
    assert rows[:2] == before and len(rows) == 6 and len(file.read_text().splitlines()) == 7
    (tmp_path / "whole").mkdir()
    write_random_actions(tmp_path / "whole", [*both, "callbacks.meta_test.seeds=[0,1,2]"])
    assert sorted(read_rows(tmp_path / "whole" / "baselines" / "random" / "meta_test.csv")) == sorted(rows)


def test_a_run_goes_on_from_the_checkpoint_that_has_its_replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = PlannedRun(tmp_path / "run", ["env_steps=60"])
    checkpoints = plan.folder / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "epoch=0-step=10.ckpt").touch()  # of another callback
    assert not plan.is_begun
    for name in ("env_steps_000000100", "env_steps_000000020"):  # the run went back, and was stopped again
        (checkpoints / f"{name}.ckpt").touch()
    (checkpoints / "env_steps_000000020.replay").mkdir()
    commands: list[list[str]] = []

    def started(command: list[str], **options: object) -> None:
        commands.append(command)

    monkeypatch.setattr(subprocess, "Popen", started)
    Runner()._start(plan)
    assert plan.is_begun and commands[0][-1] == f"ckpt_path={checkpoints / 'env_steps_000000020.ckpt'}"


def test_objectives_that_cannot_be_tested_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"--objectives {tmp_path}: no objective.safetensors there or below"):
        plan_frozen_runs([tmp_path], [0], tmp_path, SMALL)
    for folder in ("a", "b"):
        (tmp_path / folder / "protocol" / "seed_0").mkdir(parents=True)
        (tmp_path / folder / "protocol" / "seed_0" / "objective.safetensors").touch()
    plans = plan_frozen_runs([tmp_path / "a"], [0, 2], tmp_path, SMALL)
    assert [plan.folder for plan in plans] == [tmp_path / "protocol" / f"seed_0_agents_{seed}" for seed in (0, 2)]
    assert [plan.settings.seed for plan in plans] == [0, 2]
    with pytest.raises(ValueError, match=f"several would be tested in {tmp_path / 'protocol' / 'seed_0'}"):
        plan_frozen_runs([tmp_path], [0], tmp_path, SMALL)
    with pytest.raises(ValueError, match=r"callbacks.meta_test.seeds=\[1, 2\]: valid are 0, 1, 2"):
        plan_frozen_runs([tmp_path / "a"], [0], tmp_path, [*SMALL, "callbacks.meta_test.seeds=[1,2]"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variants", "nothing"], "--variants nothing: valid are protocol, "),
        (["--variants", "gone.yaml"], "--variants gone.yaml: cannot read the config gone.yaml"),
        (["agent.num_window=4"], "unknown key 'agent.num_window'; did you mean 'agent.num_windows'?"),
        (["seed=3"], "seed=3 is set by this command; valid is --seeds"),
        (["run_dir=x"], "run_dir=x is set by this command; valid is --out"),
        (["--out", "/proc/x"], "[Errno 2] No such file or directory: '/proc/x'"),
        (["--jobs", "0"], "argument --jobs: must be at least 1, got 0"),
        (["--seeds", "1", "1"], "argument --seeds: valid are numbers that differ"),
        (["callbacks.meta_test=null"], "callbacks.meta_test is null"),
        (["~callbacks.meta_test"], "callbacks.meta_test is null"),
        (["callbacks.meta_test.seeds=null"], "callbacks.meta_test.seeds is null; valid is a list"),
        (["callbacks.meta_test.seeds=x"], "callbacks.meta_test.seeds: "),
        (["--objectives", "."], "--objectives needs an --out of its own"),
        (["--objectives", ".", "a=1", "--out", "x"], "--objectives a=1: no such folder"),
        (
            ["--objectives", ".", "--variants", "falling", "--out", "x"],
            "--objectives needs an --out of its own, and goes without",
        ),
        (["--baseline-seeds", "0"], "--baseline-seeds go from 1 on"),
    ],
)
def test_arguments_that_mean_nothing_are_refused_in_a_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["protocol.py", *arguments])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2 and f"error: {message}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_same_values_under_other_keys_are_other_settings(tmp_path: Path) -> None:
    folders = [tmp_path / "size_0.1", tmp_path / "size_0.2"]  # and what belongs to a folder with a dot is its own
    runs = [PlannedRun(folder, [], {"train": [name], "test": ["B"]}) for folder, name in zip(folders, "AC", strict=True)]
    for plan in runs:
        plan.folder.mkdir()
        (plan.folder / "ended").touch()
        OmegaConf.save(plan.settings, plan.note)
    check_folders(runs)
    assert len({path for plan in runs for path in (plan.note, plan.log)}) == 4
    with pytest.raises(ValueError, match=r"size_0.1 holds a run of other settings \(test: \['B'\], not \['A'\]\)"):
        check_folders([runs[0]._replace(settings={"train": ["B"], "test": ["A"]})])


def test_variants_of_a_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("fast: [meta.learning_rate=1e-2]\nplain: []\n")
    variants = read_variants(["clip", str(file)])
    assert variants == {"clip": ["meta.gradient=clip"], "fast": ["meta.learning_rate=1e-2"], "plain": []}
    file.write_text("fast: meta.learning_rate=1e-2\n")
    with pytest.raises(ValueError, match=r"own\.yaml: fast is no list of overrides; valid is fast: \[key=value, \.\.\.\]"):
        read_variants([str(file)])


@pytest.mark.slow
def test_a_run_that_fails_is_named(tmp_path: Path) -> None:
    done = protocol(tmp_path, *SMALL, "agent.num_windows=0", "--seeds", "0")
    assert done.returncode == 1 and "1 of 1 runs did not end; see " in done.stderr and "Traceback" not in done.stderr
    assert "num_windows must be at least 1" in (tmp_path / "runs" / "protocol" / "protocol" / "seed_0.log").read_text()


def test_the_kept_results_of_two_variants_stay_two_variants(tmp_path: Path) -> None:
    """Though they differ in a key that their objectives' cards do not know."""
    folders = [tmp_path / name / "seed_0" for name in ("protocol", "clip")]
    for folder, gradient in zip(folders, ("normalize", "clip"), strict=True):
        folder.mkdir(parents=True)
        (folder / "meta_test.csv").write_text((ROOT / "results" / "quickstart" / "seed_0" / "meta_test.csv").read_text())
        OmegaConf.save({"seed": 0, "env": {"train": ["A"]}, "meta": {"gradient": gradient}}, folder / "config.yaml")
    runs = [PlannedRun(folder, []) for folder in folders]
    copy_results(runs, tmp_path, tmp_path / "kept")
    titles = [variant.title for variant in variants_of(find_runs([tmp_path / "kept"])[0])]
    assert len(titles) == 2 and any("meta.gradient=clip" in title for title in titles)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_run_save_and_begins_no_other(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "protocol.py"), *SMALL, "env_steps=6000", "--seeds", "0", "1"]
    process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, **PATHS}, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "runs" / "protocol" / "protocol" / "seed_0.log"
    while not (log.exists() and "/6,000 env steps" in log.read_text()):
        assert process.poll() is None
        time.sleep(0.2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "2 of 2 runs did not end" in errors
    assert list((log.parent / "seed_0" / "checkpoints").glob("*.ckpt")) and not (log.parent / "seed_1").exists()


def test_the_table_leaves_out_agents_with_other_settings() -> None:
    """The protocol's baselines learn from 16 windows of 10 steps, these objectives' agents from 32 of 20."""
    own, others = (find_runs([ROOT / "results" / folder])[0] for folder in ("paper_inputs", "protocol/baselines"))
    alone, *_ = summary_tables(own).partition("\n\n")
    table, _, notes = summary_tables([*own, *others]).partition("\n\n")
    assert table == alone and "critic_seed_1 is not compared" in notes


def test_the_table_shows_single_agents_and_those_that_diverged() -> None:
    rows = [MetaTestRow(name, *of) for name in "AB" for of in (("random", 0, 0, 0.0), ("critic", 0, 100, 10.0))]
    returns = [("A", 0, 5.0), ("B", 0, 5.0), ("B", 1, math.nan)]
    rows += [MetaTestRow(name, "learned", agent, 100, value, 500) for name, agent, value in returns]
    run = Run(Path("seed_0"), "seed_0", rows, Origin(0, ("A",), {}), True, 10)
    (line,) = [line for line in summary_tables([run]).splitlines() if line.startswith("| learned objective |")]
    assert line.startswith("| learned objective | diverged | diverged | 0.50 | 0.50 |")
