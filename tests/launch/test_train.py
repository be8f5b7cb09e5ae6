"""train.py from outside: what a run leaves behind, what goes on from it, and how mistakes are answered."""

import errno
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_environments import Counting  # which registers them all

from metagenrl_pl.common.commands import override
from metagenrl_pl.common.exit_codes import INTERRUPTED, STOPPED
from metagenrl_pl.common.files import read_csv
from metagenrl_pl.config.schema import build
from metagenrl_pl.environments.environment import EnvironmentSpec
from metagenrl_pl.evaluation.fresh_agents import MetaTestPlan, meta_test
from metagenrl_pl.launch.resume import with_run_dir
from metagenrl_pl.objectives import CriticObjective, LearnedMixture, LearnedObjective
from metagenrl_pl.objectives.pretrained import pretrained_path
from metagenrl_pl.results.methods import METHODS
from metagenrl_pl.results.rows import read_rows
from metagenrl_pl.results.run_folders import read_run
from metagenrl_pl.training.checkpoint_io import AtomicCheckpointIO
from metagenrl_pl.training.csv_logger import STEP_COLUMN

ROOT = Path(__file__).parents[2]
DOUBLE = "InvertedDoublePendulum-v5"

Train = Callable[..., tuple[int, str, str]]


class Quitting(Counting):
    """An environment that takes what has ended for the program."""

    def step(self, action: Any) -> Any:
        return sys.exit(5) if self._num_steps == 20 else super().step(action)


gym.register("Quitting-v0", entry_point=Quitting)


class SignalsAtTheEnd(pl.Callback):
    """Ctrl-C when training is over and tests are under way."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        signal.raise_signal(signal.SIGINT)


class SignalsInTheFirstBatch(pl.Callback):
    """Ctrl-C as soon as training has begun."""

    def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        signal.raise_signal(signal.SIGINT)


class Stops(pl.Callback):
    """Stops a run as soon as it is there, whatever is restored."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop = True


def as_a_process(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def debug(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a debug run, and what it printed. Read only."""
    folder = tmp_path_factory.mktemp("debug")
    done = as_a_process(folder, "experiment=debug")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr and "deprecated" not in done.stderr
    (run_dir,) = (folder / "runs").iterdir()
    return run_dir, done.stdout


def env_steps_of(run_dir: Path) -> list[int]:
    """The first column of metrics.csv."""
    columns, rows = read_csv(run_dir / "metrics.csv")
    assert columns[0] == STEP_COLUMN
    return [int(row[STEP_COLUMN]) for row in rows]


# ------------------------------------------------------------------------------------------------- what a run leaves behind


def test_the_configuration_is_kept_resolved(debug: tuple[Path, str]) -> None:
    text = (debug[0] / "config.yaml").read_text()
    (made_with,) = json.loads((debug[0] / "provenance.json").read_text())
    assert made_with["device"] == "cpu x 1" and made_with["torch"] == torch.__version__
    assert "${" not in text
    config = OmegaConf.create(text)
    assert (config.env_steps, config.population.size, config.objective.seed) == (400, 3, 0)
    assert config.callbacks.checkpoint.run_dir == config.run_dir == f"runs/{debug[0].name}"


def test_metrics_are_over_env_steps(debug: tuple[Path, str]) -> None:
    run_dir, _ = debug
    assert set(env_steps_of(run_dir)) == {100, 200, 300, 400}
    columns, rows = read_csv(run_dir / "metrics.csv")
    agents = ["Pendulum-v1/agent_0", "InvertedPendulum-v5/agent_1", "Reacher-v5/agent_2"]
    for metric in ("critic_loss", "policy_gradient_norm", "meta_loss", "meta_gradient_norm", "agreement"):
        for agent in agents:
            values = [float(row[f"{metric}/{agent}"]) for row in rows if row[f"{metric}/{agent}"]]
            assert len(values) == 3 and len(set(values)) == 3, (metric, agent)  # none at 100, where updates begin
    assert {f"episode_return/{agent}" for agent in agents} <= set(columns)
    assert {"throughput/agent_env_steps_per_second", "throughput/update_cycles_per_second"} <= set(columns)
    assert {f"meta_test/{DOUBLE}/{method}" for method in ("learned", "untrained", "reinforce", "critic")} <= set(columns)


def test_tensorboard_shows_the_same(debug: tuple[Path, str]) -> None:
    run_dir, _ = debug
    assert len(list((run_dir / "tensorboard").glob("events.out.tfevents.*"))) == 1
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    name = "critic_loss/Reacher-v5/agent_2"
    shown = [(event.step, event.value) for event in events.Scalars(name)]
    kept = [(int(row[STEP_COLUMN]), pytest.approx(float(row[name]))) for row in read_csv(run_dir / "metrics.csv")[1] if row[name]]
    assert [step for step, _ in shown] == [200, 300, 400]
    assert shown == kept


def test_checkpoints_are_where_a_resume_looks(debug: tuple[Path, str]) -> None:
    names = sorted(path.name for path in (debug[0] / "checkpoints").iterdir())
    assert names == ["env_steps_000000200.ckpt", "env_steps_000000400.ckpt", "env_steps_000000400.replay"]


def test_the_objective_is_learned_and_tells_where(debug: tuple[Path, str]) -> None:
    objective = LearnedObjective.load(debug[0] / "objective.safetensors")
    fresh = LearnedObjective(use_critic_gradient=True, seed=0)
    for (name, learned), before in zip(objective.named_parameters(), fresh.parameters(), strict=True):
        assert learned.shape == before.shape and not torch.equal(learned, before), name
    card = objective.card
    assert card["training_environments"] == ["InvertedPendulum-v5", "Pendulum-v1", "Reacher-v5"]
    assert (card["num_agents"], card["env_steps"], card["seed"]) == (3, 400, 0)
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True).stdout.strip() or None  # none outside of a checkout
    assert card["commit"] in (commit, f"{commit}-dirty")


def test_the_meta_test_is_complete(debug: tuple[Path, str]) -> None:
    stages = {"learned": 400, "untrained": 0, "reinforce": None, "critic": None}
    expected = {(DOUBLE, method, seed, n, stages[method]) for method in stages for seed in (0, 1) for n in (100, 200)}
    expected |= {(DOUBLE, "random", seed, 0, None) for seed in (0, 1)}
    rows = read_rows(debug[0] / "meta_test.csv")
    assert {(*row[:4], row.meta_training_env_steps) for row in rows} == expected
    assert len(read_csv(debug[0] / "meta_test.csv")[1]) == len(expected)
    assert all(0 < row.episode_return < 10_000 for row in rows)


def test_learning_curves_are_drawn_and_the_table_is_printed(debug: tuple[Path, str]) -> None:
    run_dir, printed = debug
    assert (run_dir / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    assert f"Run folder: runs/{run_dir.name} (replay: up to " in printed
    assert f"Learning curves: runs/{run_dir.name}/learning_curves.png" in printed
    settings = "agent.hidden_units=8 agent.random_env_steps=100 agent.warmup_env_steps=100 agent.num_windows=4"
    assert f"objective.safetensors env.train=[Hopper-v5] {settings}\n  metagenrl report " in printed.replace("'", "")
    table = printed[printed.index("Meta-test: return of fresh agents") :]
    for name in (DOUBLE, *(METHODS[method].label for method in ("learned", "untrained", "reinforce", "critic", "random"))):
        assert name in table
    progress = [line for line in printed.splitlines() if line.startswith("meta-training: ")]
    assert len(progress) == 20 and re.fullmatch(r"meta-training: 400/400 env steps, .* ETA 0:\d\d, Pendulum-v1 -.*", progress[-1])


# ---------------------------------------------------------------------------------------- runs with a given objective


SHORT = [
    *("env_steps=120", "updates_per_batch=20", "logger=csv"),
    *("agent.hidden_units=8", "agent.num_windows=4", "agent.random_env_steps=40", "agent.warmup_env_steps=40"),
    *("callbacks.evaluation.every_env_steps=40", "callbacks.evaluation.num_episodes=1"),
]


def test_a_learned_objective_trains_fresh_agents(debug: tuple[Path, str], in_process: Train) -> None:
    path = debug[0] / "objective.safetensors"
    before = path.read_bytes()
    where = ("env.train=[InvertedPendulum-v5,Reacher-v5]", "population.size=4", "run_dir=here")
    code, printed, errors = in_process("experiment=meta_test", f"objective.path={path}", *where, *SHORT)
    assert code == 0, errors
    rows = read_rows(Path("here/meta_test.csv"))
    agents = [(environment, seed) for environment in ("InvertedPendulum-v5", "Reacher-v5") for seed in (0, 1)]
    assert {(*row[:4], row.meta_training_env_steps) for row in rows} == {
        *((environment, "learned", seed, n, 400) for environment, seed in agents for n in (40, 80, 120)),
        *((environment, "critic", seed, n, None) for environment, seed in agents for n in (40, 80, 120)),
        *((environment, "random", seed, 0, None) for environment, seed in agents),
    }
    for method in ("learned objective", "DDPG/TD3", "random actions"):  # the number means something beside others
        assert method in printed, method
    assert path.read_bytes() == before == Path("here/objective.safetensors").read_bytes()  # what was tested
    assert "learned objective" in printed and "training: 120/120" in printed and "meta-training: 120" not in printed
    assert not Path("here/tensorboard").exists()


def test_a_test_goes_on_when_its_objective_has_moved(debug: tuple[Path, str], in_process: Train) -> None:
    """Or was meta-trained longer meanwhile."""
    shutil.copy(debug[0] / "objective.safetensors", "mine.safetensors")
    where = ("env.train=[InvertedPendulum-v5]", "population.size=1", "callbacks.meta_test=null", "run_dir=here")
    code, _, errors = in_process("experiment=meta_test", "objective.path=mine.safetensors", *where, *SHORT, "env_steps=80")
    assert code == 0, errors
    Path("mine.safetensors").unlink()
    tested = Path("here/objective.safetensors").read_bytes()
    code, _, errors = in_process("ckpt_path=here", "env_steps=120")
    assert code == 0, errors
    assert Path("here/objective.safetensors").read_bytes() == tested
    rows = [
        (row.env_steps, row.meta_training_env_steps) for row in read_rows(Path("here/meta_test.csv")) if row.method == "learned"
    ]
    assert rows == [(40, 400), (80, 400), (120, 400)]


def test_an_objective_that_returns_judge_is_meta_trained_and_tested(in_process: Train) -> None:
    """All of it changes, and a run of its own loads it as what it is."""
    options = (
        "objective=learned_mixture",
        "judge=returns",
        "meta.annealing_env_steps=0",
        "callbacks.meta_test=null",
        "env_steps=160",
        "run_dir=made",
    )
    code, _, errors = in_process("experiment=debug", *options)
    assert code == 0, errors
    made = LearnedObjective.load("made/objective.safetensors")
    fresh = type(made)(**made.architecture)
    assert isinstance(made, LearnedMixture) and made.needs_critic_gradient and made.needs_value
    same = [name for name, p in made.named_parameters() if torch.equal(p, fresh.get_parameter(name))]
    assert same == []
    arguments = ("experiment=meta_test", "objective.path=made/objective.safetensors", "env=inverted_pendulum", "run_dir=tested")
    code, _, errors = in_process(*arguments, *SHORT)
    assert code == 0, errors
    assert {row.method for row in read_rows(Path("tested/meta_test.csv"))} == {"learned", "critic", "random"}


def test_a_pretrained_objective_trains_fresh_agents_and_can_be_reported(in_process: Train) -> None:
    arguments = ("experiment=meta_test", "objective=pretrained", "env=inverted_pendulum", "run_dir=here", *SHORT)
    code, _, errors = in_process(*arguments)
    assert code == 0, errors
    code, _, errors = in_process("ckpt_path=here", "env_steps=160")  # other methods are tested as long as its own agents
    assert code == 0, errors
    assert {row.method for row in read_rows(Path("here/meta_test.csv")) if row.env_steps == 160} == {"learned", "critic"}
    card = LearnedObjective.pretrained("light").card
    assert {(*row[:2], row.meta_training_env_steps) for row in read_rows(Path("here/meta_test.csv"))} == {
        ("InvertedPendulum-v5", "learned", card["env_steps"]),
        *(("InvertedPendulum-v5", method, None) for method in ("critic", "random")),
    }
    origin = read_run(Path("here")).origin
    assert origin is not None and origin.seed == card["seed"]
    assert set(origin.training_environments) == set(card["training_environments"])


def test_help_names_the_pretrained_objectives() -> None:
    done = as_a_process(ROOT, "--help")
    (line,) = [line for line in done.stdout.splitlines() if "objective=pretrained" in line]
    names = [path.stem for path in pretrained_path("light").parent.glob("*.safetensors")]
    assert names and all(name in line for name in names)


def test_a_baseline_runs_through_the_same_code(in_process: Train) -> None:
    with pytest.warns(UserWarning, match="^inner has no effect: meta=frozen has no gradient through an inner step"):
        code, printed, errors = in_process("experiment=baseline/ddpg", "population.size=2", "run_dir=here", "inner=adam", *SHORT)
    assert code == 0, errors
    rows = read_rows(Path("here/meta_test.csv"))
    assert [row[:4] for row in rows] == [(DOUBLE, "critic", seed, n) for n in (40, 80, 120) for seed in (0, 1)]
    assert "DDPG/TD3" in printed
    columns, _ = read_csv(Path("here/metrics.csv"))
    assert f"evaluation_return/{DOUBLE}/agent_1" in columns and f"meta_loss/{DOUBLE}/agent_1" not in columns


def test_fresh_agents_are_those_of_a_meta_test_with_their_numbers(in_process: Train) -> None:
    """Bit for bit, whichever way they are tested; other seeds of a run are other agents with other numbers."""
    for seed, numbers in ((0, (0, 1)), (1, (2, 3))):
        where = ("population.size=2", f"seed={seed}", f"run_dir=seed_{seed}")
        code, _, errors = in_process("experiment=baseline/ddpg", *where, *SHORT)
        assert code == 0, errors
        found = read_rows(Path(f"seed_{seed}/meta_test.csv"))
        settings = build(OmegaConf.load(f"seed_{seed}/config.yaml").agent)
        plan = MetaTestPlan(
            [EnvironmentSpec(DOUBLE)], numbers, settings, env_steps=120, evaluate_every_env_steps=40, num_episodes=1
        )
        assert found == meta_test("critic", CriticObjective(), plan)


def test_without_anything_to_learn_there_is_no_meta_training(in_process: Train) -> None:
    """Nor is an objective taken for what the run has made."""
    where = ("objective=pretrained", "env.train=[Reacher-v5]", "env.test=[Pendulum-v1]", "run_dir=here")
    with pytest.warns(UserWarning, match="so meta=... has no effect; objective.frozen=false goes on meta-training it"):
        code, printed, errors = in_process(
            "experiment=debug", "env_steps=120", "seed=5", "callbacks.meta_test.env_steps=110", *where
        )
    assert code == 0, errors
    assert OmegaConf.load("here/config.yaml").meta is None and "meta-training: " not in printed
    card, origin = LearnedObjective.pretrained("light").card, read_run(Path("here")).origin
    assert origin is not None and (origin.seed, list(origin.training_environments)) == (
        card["seed"],
        card["training_environments"],
    )
    learned = [row for row in read_rows(Path("here/meta_test.csv")) if row.method == "learned"]
    assert learned and {row.meta_training_env_steps for row in learned} == {card["env_steps"]}


def test_a_run_that_ends_before_its_first_update_says_so(in_process: Train) -> None:
    options = (
        "experiment=debug",
        "env_steps=100",
        "callbacks.checkpoint=null",
        "callbacks.meta_test.env_steps=100",
        "run_dir=here",
    )
    with pytest.warns(match=r"^env_steps=100 is not above agent\.warmup_env_steps=100, .* this run learns nothing") as told:
        code, _, errors = in_process(*options, "logger=csv", "env.test=[InvertedPendulum-v5]", "~agent.discount")
    assert code == 0, errors
    assert OmegaConf.load("here/config.yaml").agent.discount == 0.99  # the default, to which the baseline's setting refers
    assert any(str(one.message).startswith("callbacks.meta_test.env_steps=100 is not above agent.warmup_env") for one in told)
    learned = LearnedObjective.load("here/objective.safetensors")
    assert learned.state_dict().keys() and all(
        torch.equal(value, learned.fresh(seed=0).state_dict()[name]) for name, value in learned.state_dict().items()
    )


def test_a_resume_may_change_callbacks_that_the_default_run_does_not_have(in_process: Train) -> None:
    code, _, errors = in_process("experiment=baseline/ddpg", "population.size=1", "run_dir=here", *SHORT)
    assert code == 0, errors
    (newest,) = Path("here/checkpoints").glob("*120.ckpt")
    code, _, errors = in_process(f"ckpt_path={newest}", "env_steps=160", "callbacks.evaluation.every_env_steps=20", "logger=csv")
    assert code == 0, errors
    assert [row.env_steps for row in read_rows(Path("here/meta_test.csv"))] == [40, 80, 120, 140, 160]
    code, _, errors = in_process("ckpt_path=here", "env_steps=200", "callbacks.evaluation.num_episodes=2")
    assert code == 2 and errors.startswith(
        "error: callbacks.evaluation.num_episodes cannot be changed on a resume: here/meta_test.csv"
    )


def test_a_sweep_gives_every_job_a_folder(in_process: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is switched off stays off."""
    monkeypatch.setenv("COLUMNS", "300")  # no path is folded
    off = [f"callbacks.{name}=null" for name in ("meta_test", "checkpoint", "display", "final_report")]
    code, printed, errors = in_process("-m", "seed=1,2", "experiment=debug", "env_steps=120", "logger=csv", *off)
    assert code == 0, errors
    (sweep,) = Path("runs").iterdir()
    assert sorted(path.name for path in sweep.iterdir()) == ["0", "1", "multirun.yaml"]
    for job in ("0", "1"):
        assert sorted(path.name for path in (sweep / job).iterdir()) == [
            ".lock",
            "config.yaml",
            "metrics.csv",
            "objective.json",
            "objective.safetensors",
            "provenance.json",
        ]
        assert OmegaConf.load(sweep / job / "config.yaml").seed == int(job) + 1
        assert LearnedObjective.load(sweep / job / "objective.safetensors").card["seed"] == int(job) + 1
    assert (sweep / "0" / "objective.safetensors").read_bytes() != (sweep / "1" / "objective.safetensors").read_bytes()
    assert "120/120" not in printed
    table = printed[printed.index("Jobs of the sweep") :]
    assert all(f"job {job}" in table and str(sweep / job) in table for job in ("0", "1")) and table.count("finished") == 2


# -------------------------------------------------------------------------------------------------------------------- resume


def test_a_finished_run_is_made_longer_where_it_was_moved(debug: tuple[Path, str], in_process: Train) -> None:
    original, _ = debug
    before = {path: path.read_bytes() for path in original.rglob("*") if path.is_file()}
    there = Path("elsewhere/moved")
    shutil.copytree(original, there)
    code, _, errors = in_process(f"ckpt_path={there}/checkpoints/env_steps_000000400.ckpt", "env_steps=500", "env_workers=1")
    assert code == 0, errors

    old, new = (read_csv(run_dir / "metrics.csv") for run_dir in (original, there))
    assert new[0] == old[0]
    assert new[1][: len(old[1])] == old[1] and set(env_steps_of(there)) == {100, 200, 300, 400, 500}
    assert len({tuple(row.values()) for row in new[1]}) == len(new[1])
    old_rows, rows = read_rows(original / "meta_test.csv"), read_rows(there / "meta_test.csv")
    learned = [row for row in old_rows if row.method == "learned"]
    assert rows[: len(old_rows)] == old_rows
    assert [row[:4] for row in rows[len(old_rows) :]] == [row[:4] for row in learned]
    assert {row.meta_training_env_steps for row in rows[len(old_rows) :]} == {500}

    names = sorted(path.name for path in (there / "checkpoints").iterdir())
    assert names == ["env_steps_000000400.ckpt", "env_steps_000000500.ckpt", "env_steps_000000500.replay"]
    assert LearnedObjective.load(there / "objective.safetensors").card["env_steps"] == 500
    config = OmegaConf.load(there / "config.yaml")
    assert (config.run_dir, config.callbacks.checkpoint.run_dir, config.env_steps) == (str(there), str(there), 500)
    assert config.population.size == 3  # the run's own, not the default
    assert not Path("runs").exists()
    assert {path: path.read_bytes() for path in original.rglob("*") if path.is_file()} == before


def test_a_checkpoint_alone_is_enough_and_the_rest_is_made_again(debug: tuple[Path, str], in_process: Train) -> None:
    """From the middle of the run, so its replay is gone and updates begin again 100 env steps later."""
    shutil.copytree(debug[0], "run")
    arguments = ("callbacks.meta_test=null", "logger=csv")
    with pytest.warns(match="No replay beside env_steps_000000200.ckpt"):
        code, _, errors = in_process("ckpt_path=run/checkpoints/env_steps_000000200.ckpt", *arguments)
    assert code == 0, errors
    old, new = (read_csv(run_dir / "metrics.csv")[1] for run_dir in (debug[0], Path("run")))
    kept = [row for row in old if int(row[STEP_COLUMN]) <= 200]
    assert new[: len(kept)] == kept and set(env_steps_of(Path("run"))) == {100, 200, 300, 400}
    assert new[len(kept) :] != old[len(kept) :]
    assert LearnedObjective.load("run/objective.safetensors").card["env_steps"] == 400


def test_a_checkpoint_outside_of_a_run_folder_writes_nowhere(debug: tuple[Path, str], in_process: Train, tmp_path: Path) -> None:
    shutil.copy(debug[0] / "checkpoints" / "env_steps_000000400.ckpt", tmp_path / "alone.ckpt")
    code, printed, errors = in_process("ckpt_path=alone.ckpt")
    assert code == 2 and printed == "" and errors.count("\n") == 1
    assert errors.startswith("error: ckpt_path=alone.ckpt: is not in a run folder; valid is <run folder>/checkpoints/alone.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["alone.ckpt"]


def test_a_run_whose_folder_is_called_like_a_choice_keeps_the_choice() -> None:
    config = OmegaConf.create(
        {
            "run_dir": "light",
            "objective": {"name": "light"},
            "logger": {"save_dir": "light", "at": "light/x"},
            "env": {"train": ["light/Own-v0", {"id": "light/Own-v1", "kwargs": {"folder": "light/films"}}]},
        }
    )
    assert with_run_dir(config, "there") == {
        "run_dir": "there",
        "objective": {"name": "light"},
        "logger": {"save_dir": "there", "at": "there/x"},
        "env": {"train": ["light/Own-v0", {"id": "light/Own-v1", "kwargs": {"folder": "there/films"}}]},
    }


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("seed=4", "seed cannot be changed on a resume"),
        ("population.size=4", "population.size cannot be changed on a resume"),
        ("experiment=debug", "experiment cannot be changed on a resume"),
        ("env.train=Pendulum-v1", "env.train cannot be changed on a resume"),
        ("run_dir=other", "run_dir cannot be changed on a resume"),
        ("callbacks.chekpoint=null", "unknown key 'callbacks.chekpoint'; did you mean 'callbacks.checkpoint'?"),
        ("callbacks.checkpoint.kep=3", "unknown key 'callbacks.checkpoint.kep'; did you mean 'callbacks.checkpoint.keep'?"),
        (
            "callbacks.chekpoint.keep=3",
            "unknown key 'callbacks.chekpoint'; did you mean 'callbacks.checkpoint'? (a new entry needs",
        ),
        ("callbacks.meta_test.num_episodes=3", "callbacks.meta_test.num_episodes cannot be changed on a resume: "),
        (
            "callbacks.meta_test.evaluate_every_env_steps=50",
            "callbacks.meta_test.evaluate_every_env_steps cannot be changed on a",
        ),
        (
            "callbacks.meta_test.baselines.reinforce.gae_lambda=0.5",
            "callbacks.meta_test.baselines.reinforce cannot be changed on a",
        ),
    ],
)
def test_a_resume_changes_nothing_else(argument: str, named: str, debug: tuple[Path, str], in_process: Train) -> None:
    before = sorted(debug[0].rglob("*"))
    code, _, errors = in_process(f"ckpt_path={debug[0]}/checkpoints/env_steps_000000400.ckpt", "env_steps=500", argument)
    assert code == 2 and errors.startswith(f"error: {named}")
    assert ("env_steps, trainer.devices" in errors) == ("cannot be changed" in named and not argument.startswith("callbacks"))
    assert ("meta_test.csv has results with " in errors) == argument.startswith("callbacks.meta_test")
    assert errors.count("\n") == 1 and "Traceback" not in errors
    assert sorted(debug[0].rglob("*")) == before


def test_a_resume_is_not_shorter_than_its_checkpoint(debug: tuple[Path, str], in_process: Train) -> None:
    checkpoint = f"{debug[0]}/checkpoints/env_steps_000000400.ckpt"
    before = (debug[0] / "config.yaml").read_bytes()
    for given, named in (("300", "300"), ("3e2", "300.0")):
        code, _, errors = in_process(f"ckpt_path={checkpoint}", f"env_steps={given}")
        told = f"error: env_steps={named} is less than the 400 that ckpt_path={checkpoint} has; valid is that or more\n"
        assert code == 2 and errors == told
    assert (debug[0] / "config.yaml").read_bytes() == before


# ---------------------------------------------------------------------------------------------- damaged files and failures


def test_a_foreign_or_truncated_checkpoint_is_named(debug: tuple[Path, str], in_process: Train, tmp_path: Path) -> None:
    whole = (debug[0] / "checkpoints" / "env_steps_000000400.ckpt").read_bytes()
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    (tmp_path / "truncated.ckpt").write_bytes(whole[: len(whole) // 2])
    before = sorted(tmp_path.iterdir())
    for name, told in (("foreign", "not by a run of this project"), ("truncated", "truncated, corrupt or not a checkpoint")):
        code, printed, errors = in_process(f"ckpt_path={tmp_path}/{name}.ckpt")
        assert code == 2 and printed == "" and errors.count("\n") == 1
        assert errors.startswith(f"error: ckpt_path={tmp_path}/{name}.ckpt: the file ") and told in errors
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        (
            ("config", "callbacks", "evil"),
            {"_target_": "shutil.copy", "src": "config.yaml", "dst": "copied"},
            "package shutil, which is",
        ),
        (("config", "callbacks", "checkpoint", "run_dir"), "/elsewhere", "would write outside of the run folder"),
        (("config",), [], "saved without a configuration"),
        (("config",), None, "saved without a configuration"),
        (("config",), {"seed": 1}, "its configuration has no run_dir"),
        (("learner",), None, "what it holds does not fit this run (TypeError: "),
        (("learner", "population"), {}, "what it holds does not fit this run (KeyError: "),
        (("optimizers",), {}, "what it holds does not fit this run (KeyError: "),
        (
            ("learner", "num_updates"),
            "many",
            "what it holds does not fit this run (ValueError: num_updates is 'many'; valid is a whole",
        ),
    ],
)
def test_a_foreign_checkpoint_runs_nothing_and_is_named(
    key: tuple[str, ...], value: Any, told: str, debug: tuple[Path, str], in_process: Train, tmp_path: Path
) -> None:
    shutil.copytree(debug[0], tmp_path / "copy")
    path = tmp_path / "copy" / "checkpoints" / "env_steps_000000400.ckpt"
    content = AtomicCheckpointIO().load_checkpoint(path)
    node = content["metagenrl"]
    for name in key[:-1]:
        node = node[name]
    node[key[-1]] = value
    if value is None and key == ("config",):
        del node["config"]
    AtomicCheckpointIO().save_checkpoint(content, path)
    code, _, errors = in_process(f"ckpt_path={path}", "env_steps=410")
    assert code == 2 and not Path("copied").exists() and not list(tmp_path.rglob("copied"))
    assert errors.splitlines()[-1].startswith(f"error: ckpt_path={path}: ") and told in errors and "Traceback" not in errors


def with_object(run_dir: Path, folder: Path, group: str, name: str, node: dict[str, Any]) -> Path:
    """A copy of a run's checkpoint, whose configuration has one object more."""
    shutil.copytree(run_dir, folder / "copy")
    path = folder / "copy" / "checkpoints" / "env_steps_000000400.ckpt"
    content = AtomicCheckpointIO().load_checkpoint(path)
    content["metagenrl"]["config"][group][name] = node
    AtomicCheckpointIO().save_checkpoint(content, path)
    return path


def test_the_command_line_confirms_a_place_outside_of_the_run_folder(
    debug: tuple[Path, str], in_process: Train, tmp_path: Path
) -> None:
    """Or replaces the object that writes there."""
    other = {"_target_": "pytorch_lightning.loggers.CSVLogger", "save_dir": str(tmp_path / "elsewhere")}
    path = with_object(debug[0], tmp_path, "logger", "other", other)
    resume = (f"ckpt_path={path}", "env_steps=410", "callbacks.meta_test=null")
    code, _, errors = in_process(*resume)
    assert code == 2 and errors.endswith("valid is a path in it, or logger.other.save_dir=... on the command line\n")
    assert in_process(*resume, "logger=csv")[0] == 0 and not (tmp_path / "elsewhere").exists()
    code, _, errors = in_process(*resume[:1], "env_steps=420", resume[2], f"logger.other.save_dir={tmp_path}/elsewhere")
    assert code == 0 and list((tmp_path / "elsewhere").rglob("metrics.csv")), errors


def test_the_command_line_confirms_no_other_key_of_the_same_text(
    debug: tuple[Path, str], in_process: Train, tmp_path: Path
) -> None:
    """A key of the command line leaves out what it replaces. A name with a dot in it is not what it replaces."""
    planted = {"_target_": "shutil.copy", "src": "copy/config.yaml", "dst": "copied"}
    path = with_object(debug[0], tmp_path, "callbacks", "throughput.every_env_steps", planted)
    code, _, errors = in_process(f"ckpt_path={path}", "env_steps=410", "callbacks.throughput.every_env_steps=50")
    assert code == 2 and "of the package shutil, which is not trusted" in errors and not Path("copied").exists()


def test_a_run_goes_on_from_its_newest_intact_checkpoint(
    debug: tuple[Path, str], in_process: Train, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    shutil.copytree(debug[0], tmp_path / "copy")
    newest = tmp_path / "copy" / "checkpoints" / "env_steps_000000400.ckpt"
    newest.write_bytes(newest.read_bytes()[:-1])
    code, _, errors = in_process("ckpt_path=copy", "env_steps=210", "callbacks.meta_test=null")
    assert code == 0, errors
    told = next(str(warning.message) for warning in recwarn if "newest intact one" in str(warning.message))
    assert "env_steps_000000400.ckpt: the file is truncated" in told and told.endswith(
        "copy/checkpoints/env_steps_000000200.ckpt"
    )


def test_a_folder_that_holds_a_run_is_left_alone(debug: tuple[Path, str], in_process: Train) -> None:
    before = {path: path.read_bytes() for path in debug[0].rglob("*") if path.is_file()}
    code, printed, errors = in_process(f"run_dir={debug[0]}")
    assert code == 2 and printed == "" and errors.count("\n") == 1
    assert errors.startswith(f"error: run_dir={debug[0]} already has a run; valid is a new folder")
    assert {path: path.read_bytes() for path in debug[0].rglob("*") if path.is_file()} == before


def test_a_run_that_has_saved_nothing_is_told_so(in_process: Train) -> None:
    tiny = ["experiment=debug", "env_steps=20", "callbacks=default", "callbacks.checkpoint=null", "callbacks.meta_test=null"]
    assert in_process(*tiny, "run_dir=here")[0] == 0
    code, _, errors = in_process(*tiny, "run_dir=here")
    assert (
        code == 2 and "valid is a new folder" in errors and errors.endswith("delete it first, since it has saved no checkpoint\n")
    )


def test_the_folder_of_a_run_stands_for_its_newest_checkpoint(debug: tuple[Path, str], in_process: Train, tmp_path: Path) -> None:
    shutil.copytree(debug[0], tmp_path / "copy")
    code, _, errors = in_process("ckpt_path=copy", "env_steps=440", "callbacks.meta_test=null", "callbacks.final_report=null")
    assert code == 0, errors
    assert (tmp_path / "copy" / "checkpoints" / "env_steps_000000440.ckpt").is_file()
    assert len(json.loads((tmp_path / "copy" / "provenance.json").read_text())) == 2


@pytest.mark.parametrize("place", ["copy", "copy/checkpoints"])
def test_a_folder_stands_for_the_checkpoint_with_the_replay(
    place: str, debug: tuple[Path, str], in_process: Train, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """Though a copy has lost the times, and another callback has saved a file later."""
    shutil.copytree(debug[0], tmp_path / "copy")
    folder = tmp_path / "copy" / "checkpoints"
    shutil.copy(folder / "env_steps_000000200.ckpt", folder / "epoch=0-step=10.ckpt")
    os.utime(folder / "env_steps_000000400.ckpt", (0, 0))
    code, printed, errors = in_process(f"ckpt_path={place}", "env_steps=401", "callbacks.meta_test=null")
    assert code == 0 and "Run folder: copy " in printed, errors
    assert not [told for told in recwarn if "No replay" in str(told.message)]
    assert [path.name for path in folder.glob("*.replay")] == ["env_steps_000000401.replay"]


def test_a_damaged_provenance_is_named(debug: tuple[Path, str], in_process: Train, tmp_path: Path) -> None:
    shutil.copytree(debug[0], tmp_path / "copy")
    (tmp_path / "copy" / "provenance.json").write_text("[")
    code, _, errors = in_process("ckpt_path=copy", "env_steps=440")
    assert code == 2 and errors == "error: run_dir=copy: provenance.json is damaged; valid is a list of entries, or no file\n"


@pytest.mark.parametrize("name", ["metrics.csv", "meta_test.csv"])
def test_a_resume_names_a_foreign_file_of_results(name: str, debug: tuple[Path, str], in_process: Train, tmp_path: Path) -> None:
    shutil.copytree(debug[0], tmp_path / "copy")
    (tmp_path / "copy" / name).write_text("epoch,loss\n0,1\n")
    code, _, errors = in_process("ckpt_path=copy", "env_steps=440")
    assert code == 2 and errors.count("\n") == 1 and errors.startswith(f"error: copy/{name} "), errors
    assert (tmp_path / "copy" / name).read_text() == "epoch,loss\n0,1\n"


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        (
            "{observation: [0.0, 0.0], reward: nan}",
            "in step 1 of an episode the reward is nan",
        ),
        ("{observation: [0.0]}", "at a reset the observation has 1 numbers, 2 in its space"),
    ],
)
def test_an_environment_that_fails_is_named(kwargs: str, told: str, in_process: Train) -> None:
    environment = f"env.train=[{{id: 'toy_environments:Showing-v0', kwargs: {kwargs}}}]"
    code, _, errors = in_process("experiment=debug", environment, "population.size=1", "env_workers=0", "run_dir=here")
    assert code == 2 and "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("error: environment toy_environments:Showing-v0[")
    assert errors.splitlines()[-1].endswith(told)


class ForOneProcess(Counting):
    """An environment that cannot be made in a worker."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if os.getpid() != int(os.environ["ONE_PROCESS"]):
            os._exit(3)


gym.register("ForOneProcess-v0", ForOneProcess, max_episode_steps=20)


def test_a_worker_that_dies_at_the_start_is_named(in_process: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONE_PROCESS", str(os.getpid()))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    environment = "env.train=[test_train:ForOneProcess-v0]"
    code, _, errors = in_process("experiment=debug", environment, "population.size=1", "env_workers=1", "run_dir=here")
    assert code == 2 and "Traceback" not in errors and not Path("here").exists()
    told = "error: a worker process died, with the environments test_train:ForOneProcess-v0: exit code 3"
    assert errors.splitlines()[-1] == told, errors


def test_an_environment_that_exits_does_not_pass_for_a_stop(in_process: Train) -> None:
    arguments = ("env.train=[Quitting-v0]", "population.size=1", "callbacks.meta_test=null", "env_workers=0", "run_dir=here")
    code, printed, errors = in_process("experiment=debug", *arguments)
    assert code == 2 and "To go on" not in printed and "Traceback" not in errors
    assert re.fullmatch(
        r"error: environment Quitting-v0: in step 21 of an episode sys.exit\(5\) was called \(test_train.py, line \d+\); no check.*",
        errors.splitlines()[-1],
    )


def test_a_full_disk_is_named(in_process: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[Any] = []
    save = AtomicCheckpointIO.save_checkpoint

    def second_is_too_much(io: AtomicCheckpointIO, *arguments: Any, **options: Any) -> None:
        if saved:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")
        saved.append(save(io, *arguments, **options))

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", second_is_too_much)
    arguments = ("env_steps=60", "callbacks.checkpoint.every_env_steps=20", "callbacks.meta_test=null", "run_dir=here")
    code, _, errors = in_process("experiment=debug", *arguments)
    assert code == 2 and "Traceback" not in errors
    (checkpoint,) = Path("here/checkpoints").glob("*.ckpt")
    assert errors.splitlines()[-1].startswith("error: run_dir=here cannot be written: [Errno 28] No space left on device")
    assert errors.splitlines()[-1].endswith(f"; the newest checkpoint before it is {checkpoint}")


def test_a_metric_that_was_never_logged_is_named(in_process: Train) -> None:
    metric = "episode_return/Pendulum-v1/agent_0"
    best = ["+callbacks.best._target_=pytorch_lightning.callbacks.ModelCheckpoint", f"+callbacks.best.monitor={metric[:-1]}7"]
    with pytest.warns(match=f"callbacks.best.monitor={metric[:-1]}7 is not a choice; did you mean '{metric}'"):
        arguments = (
            "experiment=debug",
            "env_steps=220",
            "callbacks.meta_test=null",
            "+callbacks.best.every_n_train_steps=1",
            *best,
        )
        assert in_process(*arguments, "run_dir=here")[0] == 0
    with warnings.catch_warnings():  # at its end nothing is logged, so nothing is missing
        warnings.filterwarnings("error", message=".*is not a choice")
        assert in_process("ckpt_path=here")[0] == 0


def test_lightnings_checkpoint_keeps_the_best_by_any_metric(debug: tuple[Path, str], in_process: Train) -> None:
    metric = "episode_return/Pendulum-v1/agent_0"
    best = [
        *("+callbacks.best._target_=pytorch_lightning.callbacks.ModelCheckpoint", "+callbacks.best.dirpath=${run_dir}/best"),
        *(f"+callbacks.best.monitor={metric}", "+callbacks.best.mode=max", "+callbacks.best.every_n_train_steps=1"),
        "+callbacks.best.filename=best",
    ]
    code, _, errors = in_process("experiment=debug", "env_steps=200", "run_dir=run", "callbacks.meta_test=null", *best)
    assert code == 0, errors
    watched, plain = (read_csv(folder / "metrics.csv")[1] for folder in (Path("run"), debug[0]))
    plain = [row for row in plain if int(row[STEP_COLUMN]) <= 200]
    losses = [
        [{name: cell for name, cell in row.items() if cell and "loss" in name} for row in rows] for rows in (watched, plain)
    ]
    assert list(filter(None, losses[0])) == list(filter(None, losses[1])) != []
    saved = torch.load("run/best/best.ckpt", weights_only=False)
    (state,) = (state for key, state in saved["callbacks"].items() if "ModelCheckpoint" in key)
    returns = [float(row[metric]) for row in read_csv(Path("run/metrics.csv"))[1] if row[metric]]
    assert float(state["best_model_score"]) == pytest.approx(max(returns))


TIMER = ("+callbacks.timer._target_=pytorch_lightning.callbacks.Timer", "+callbacks.timer.duration=00:00:00:01")


def test_a_run_that_its_timer_has_stopped_goes_on_with_a_longer_one_or_none(in_process: Train) -> None:
    there = ("compile=false", "callbacks.meta_test=null", "run_dir=here")
    code, printed, errors = in_process("experiment=debug", *TIMER, "env_steps=100000", *there)
    assert code == STOPPED, errors
    (checkpoint,) = Path("here/checkpoints").glob("*.ckpt")
    assert f"To go on: python train.py ckpt_path={checkpoint.absolute()}" in printed or f"ckpt_path={checkpoint}" in printed
    code, printed, errors = in_process("ckpt_path=here")
    assert code == 2 and "Traceback" not in errors and "To go on" not in printed
    assert errors.splitlines()[-1] == (
        "error: callbacks.timer has stopped this run before its first batch, and would stop every resume, since its state is "
        "restored; valid is a longer callbacks.timer.duration, or callbacks.timer=null"
    )
    for argument in ("callbacks.timer.duration=00:01:00:00", "callbacks.timer=null"):
        (newest,) = Path("here/checkpoints").glob("*.replay")
        length = int(newest.stem.rpartition("_")[2]) + 10
        code, printed, errors = in_process("ckpt_path=here", f"env_steps={length}", argument)
        assert code == 0 and f"{length:,}/{length:,} env steps" in printed, errors


def test_whoever_stops_a_run_before_its_first_batch_is_named(in_process: Train) -> None:
    code, _, errors = in_process("experiment=debug", "+callbacks.mine._target_=test_train.Stops", "run_dir=here")
    assert code == 2 and errors.splitlines()[-1].startswith("error: callbacks.mine has stopped this run before its first batch, ")
    assert errors.endswith("; valid is callbacks.mine=null\n")


def test_a_sweep_goes_on_after_a_callback_has_stopped_a_job_and_ends_with_a_signal(in_process: Train) -> None:
    sweep = ("-m", "experiment=debug", "env_steps=100000", "compile=false", "callbacks.meta_test=null", "seed=1,2")
    code, _, errors = in_process(*sweep, *TIMER, "hydra.sweep.dir=timed")
    assert code == STOPPED, errors
    assert all(list(Path(f"timed/{job}/checkpoints").glob("*.ckpt")) for job in (0, 1))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin deaf to it
    stop = "+callbacks.stop._target_=test_train.SignalsInTheFirstBatch"
    code, _, errors = in_process(*sweep, stop, "hydra.sweep.dir=signalled")
    assert code == STOPPED and not Path("signalled/1").exists(), errors


def test_a_signal_in_the_final_meta_test_says_how_to_go_on(in_process: Train) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin deaf to it
    stop = ("+callbacks.stop._target_=test_train.SignalsAtTheEnd", "callbacks.meta_test=null", "run_dir=here")
    code, printed, _ = in_process("experiment=debug", "env_steps=40", *stop)
    assert code == STOPPED
    (checkpoint,) = Path("here/checkpoints").glob("*.ckpt")
    go_on = f"python train.py ckpt_path={checkpoint} 'trusted_packages=[test_train]'"
    assert printed.splitlines()[-1] == f"Stopped at once. To go on: {go_on}"
    for trusted in ("trusted_packages=test_train", "trusted_packages=[test_train]"):  # one value may stand for a list
        assert in_process("ckpt_path=here", trusted)[0] == STOPPED
    code, printed, _ = in_process("experiment=debug", "env_steps=40", *stop[:2], "callbacks.checkpoint=null", "run_dir=there")
    assert code == INTERRUPTED and printed.splitlines()[-1] == "Stopped; nothing was saved yet"


def test_a_meta_test_does_not_depend_on_the_length_of_the_run(in_process: Train) -> None:
    """A run of one step tests hand-made methods for longer."""
    hand_made = ("experiment=debug", "meta=frozen", "objective=critic", "population.size=1", "env.train=[Pendulum-v1]")
    tests = ("callbacks.meta_test.seeds=[0]", "env.test=[Pendulum-v1]", "callbacks.meta_test.env_steps=120")
    for env_steps in (1, 200):
        code, _, errors = in_process(*hand_made, *tests, f"env_steps={env_steps}", f"run_dir=run_{env_steps}")
        assert code == 0, errors
    short, long = (Path(f"run_{n}/meta_test.csv").read_text() for n in (1, 200))
    assert short == long and ",reinforce,0,120," in short


def test_a_diverging_run_names_quantity_and_agent(in_process: Train) -> None:
    code, _, errors = in_process("experiment=debug", "env_steps=120", "agent.critic_learning_rate=1e30", "run_dir=here")
    assert code == 2
    assert re.fullmatch(
        r"error: \w+ of agent 0 is nan after \d+ updates; no checkpoint was saved before it",
        errors.splitlines()[-1],
    )
    assert not list(Path("here").glob("checkpoints/*.ckpt"))  # nothing broken to go on from


def test_a_process_ends_as_it_should(tmp_path: Path) -> None:
    done = as_a_process(tmp_path, "population.size=0", "objective=critic", "meta=frozen", "inner=adam")
    assert done.returncode == 2 and done.stdout.endswith(": loading PyTorch and Lightning\n")
    assert done.stderr == (
        "warning: inner has no effect: meta=frozen has no gradient through an inner step\n"
        "error: population: size must be at least 1, got 0\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_path_may_be_in_the_home_folder_or_have_any_name(
    in_process: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "my home"))
    short = ("experiment=debug", "env_steps=20", "callbacks.meta_test=null", "callbacks.final_report=null")
    code, printed, errors = in_process(*short, *shlex.split(override("run_dir", "~/it's [a=run]")))
    assert code == 0 and (tmp_path / "my home/it's [a=run]/metrics.csv").exists(), errors
    code, _, errors = in_process(*short, *shlex.split(override("run_dir", "~/it's [a=run]")))
    command = errors.partition(", or ")[2].removesuffix(" to go on\n")
    (argument,) = shlex.split(command)
    code, _, errors = in_process(argument, "env_steps=30")
    assert code == 0 and env_steps_of(tmp_path / "my home/it's [a=run]")[-1] == 30, errors
