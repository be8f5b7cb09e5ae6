"""Callbacks: when they act, what they log and write, and what the terminal shows."""

import io
import json
import os
import re
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import pytorch_lightning as pl
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import OnExceptionCheckpoint
from rich.console import Console
from tiny_runs import TOYS, tiny_objective, tiny_run, tiny_settings

import callbacks.display
import callbacks.meta_testing
from callbacks.checkpointing import ObjectiveExport, RunCheckpoint
from callbacks.display import FinalReport, PopulationDisplay, format_seconds, progress_of
from callbacks.meta_testing import MetaTest
from callbacks.policy_evaluation import PolicyEvaluation
from callbacks.schedule import agents_of, check_interval, env_steps_of, is_due
from callbacks.timeline import Stage
from callbacks.training_log import Diagnostics, EpisodeReturns, Throughput
from examples.own_objective import Blend
from metagenrl_pl.common.files import read_csv
from metagenrl_pl.config.schema import ConfigError, build
from metagenrl_pl.environments.environment import EnvironmentSpec
from metagenrl_pl.environments.group import sizes_of
from metagenrl_pl.evaluation import fresh_agents
from metagenrl_pl.evaluation.evaluator import Evaluator
from metagenrl_pl.evaluation.fresh_agents import MetaTestPlan
from metagenrl_pl.experience.memory import memory_bytes
from metagenrl_pl.learning.cycle import Resources
from metagenrl_pl.objectives import CriticObjective, LearnedObjective, ParametricObjective, Reinforce
from metagenrl_pl.objectives.contract import ObjectiveInputs
from metagenrl_pl.results.methods import METHODS
from metagenrl_pl.results.rows import MetaTestRow, read_rows
from metagenrl_pl.training.datamodule import MacroBatch
from metagenrl_pl.training.module import MetaGenRL

ROOT = Path(__file__).parents[2]
NAMES = [f"{spec.name}/agent_{agent}" for agent, spec in enumerate(TOYS)]
TIMED = [EnvironmentSpec("Counting-v0", {}, 8), EnvironmentSpec("Counting-v0", {}, 5), EnvironmentSpec("Counting-v0", {}, 8)]
EIGHT, FIVE = "Counting-v0[max_episode_steps=8]", "Counting-v0[max_episode_steps=5]"  # return 36 and 15
UNSEEN = [{"id": "Approach-v0"}]


def logged(run_dir: Path, metric: str) -> dict[int, float]:
    """A column of metrics.csv, by env steps."""
    rows = read_csv(run_dir / "metrics.csv")[1]
    return {int(row["env_steps"]): float(row[metric]) for row in rows if row.get(metric)}


def columns(run_dir: Path) -> list[str]:
    return read_csv(run_dir / "metrics.csv")[0]


# ------------------------------------------------------------------------------------------------------------------ schedule


@pytest.mark.parametrize(
    ("interval", "env_steps", "num_cycles", "expected"),
    [
        (10, 10, 10, True),
        (10, 10, 1, True),
        (10, 9, 9, False),
        (10, 11, 1, False),  # 10 was in the batch before
        (10, 11, 2, True),
        (10, 14, 7, True),  # steps 8 to 14
        (10, 7, 7, False),
        (10, 50, 50, True),
        (1, 3, 1, True),
        (None, 10, 10, False),
    ],
)
def test_an_interval_is_crossed_where_a_multiple_lies_in_the_batch(
    interval: int | None, env_steps: int, num_cycles: int, expected: bool
) -> None:
    batch = MacroBatch(lambda critic_step: None, num_cycles)
    assert is_due(interval, env_steps, batch) is expected


def test_intervals_are_positive_or_never() -> None:
    check_interval("every", 1)
    check_interval("every", None)
    for value in (0, -5):
        with pytest.raises(ValueError, match=f"^every must be at least 1, or null for never, got {value}$"):
            check_interval("every", value, ", or null for never")


def meta_test(**changes: Any) -> MetaTest:
    settings = {"environments": UNSEEN, "seeds": [0, 1], "env_steps": 20, "evaluate_every_env_steps": 10, "num_episodes": 1}
    return MetaTest(**{"run_dir": "nowhere", **settings, **changes})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RunCheckpoint("nowhere", 0), "every_env_steps must be at least 1"),
        (lambda: RunCheckpoint("nowhere", 10, keep=0), "keep must be at least 1"),
        (lambda: ObjectiveExport("nowhere", 0), "every_env_steps must be at least 1"),
        (lambda: EpisodeReturns(0), "every_env_steps must be at least 1"),
        (lambda: Diagnostics(0), "every_env_steps must be at least 1"),
        (lambda: Diagnostics(10, 0), "num_windows must be at least 1"),
        (lambda: Diagnostics(10, 5, 1), "num_batches must be at least 2"),
        (lambda: Throughput(-1), "every_env_steps must be at least 1"),
        (lambda: PolicyEvaluation("nowhere", 0), "every_env_steps must be at least 1"),
        (lambda: PolicyEvaluation("nowhere", 10, 0), "num_episodes must be at least 1, got 0$"),  # null is not valid there
        (lambda: PopulationDisplay(0), "refresh_per_second must be positive"),
        (lambda: meta_test(env_steps=0), "env_steps must be at least 1"),
        (lambda: meta_test(evaluate_every_env_steps=0), "evaluate_every_env_steps must be at least 1"),
        (lambda: meta_test(num_episodes=0), "num_episodes must be at least 1"),
        (lambda: meta_test(every_env_steps=0), "every_env_steps must be at least 1"),
        (lambda: meta_test(seeds=[]), "seeds must name at least one seed"),
        (lambda: meta_test(seeds=[0, -1]), r"seeds must be 0 or more, got \[0, -1\]"),
        (lambda: meta_test(seeds=[1, 0, 1]), r"seeds must differ, got \[1, 0, 1\]"),
        (lambda: meta_test(environments=["Pendulum-v1"] * 2), "environments must differ, got Pendulum-v1, Pendulum-v1"),
        (lambda: meta_test(environments=["CartPole-v1"]), "environment CartPole-v1: its actions are Discrete"),
        (lambda: meta_test(environments=["Nowhere-v0"]), "environment Nowhere-v0: "),
    ],
)
def test_what_cannot_serve_is_refused_before_a_run_begins(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


# -------------------------------------------------------------------------------------------------------------- training log


def test_returns_are_those_of_the_episodes_since_the_last_line(tmp_path: Path) -> None:
    """1 + ... + 10 every 10 env steps, 1 + ... + 5 every 5, 1 + ... + 7 every 7; the run ends before the last line is due."""
    tiny_run(env_steps=36, updates_per_batch=4, callbacks=[EpisodeReturns(8)], run_dir=tmp_path)
    assert logged(tmp_path, f"episode_return/{NAMES[0]}") == {16: 55, 24: 55, 32: 55}
    assert logged(tmp_path, f"episode_return/{NAMES[1]}") == {8: 15, 16: 15, 24: 15, 32: 15, 36: 15}
    assert logged(tmp_path, f"episode_return/{NAMES[2]}") == {8: 28, 16: 28, 24: 28, 32: 28, 36: 28}
    for metric in ("critic_loss", "policy_gradient_norm", "meta_loss", "meta_gradient_norm"):
        for name in NAMES:
            assert list(logged(tmp_path, f"{metric}/{name}")) == [16, 24, 32, 36]  # there are none before the warmup ends


def test_the_mean_of_an_environment_is_over_its_agents(tmp_path: Path) -> None:
    two = [EnvironmentSpec("Counting-v0", {"global_randomness": "reward"}, 4)] * 2
    tiny_run([*two, TOYS[1]], env_steps=8, updates_per_batch=8, callbacks=[EpisodeReturns(8)], run_dir=tmp_path)
    own = [logged(tmp_path, f"episode_return/{two[0].name}/agent_{agent}")[8] for agent in (0, 1)]
    assert own[0] != own[1] and logged(tmp_path, f"mean/{two[0].name}") == {8: pytest.approx(sum(own) / 2)}


def test_the_critics_own_objective_agrees_with_it(tmp_path: Path) -> None:
    specs = [EnvironmentSpec("Approach-v0"), EnvironmentSpec("Pendulum-v1")]
    settings = tiny_settings(warmup_env_steps=5)
    for method, objective in (("critic", CriticObjective()), ("learned", tiny_objective())):
        run_dir = tmp_path / method
        tiny_run(specs, callbacks=[Diagnostics(10, 5)], run_dir=run_dir, objective=objective, settings=settings)
    for name in ("Approach-v0/agent_0", "Pendulum-v1/agent_1"):
        assert logged(tmp_path / "critic", f"agreement/{name}") == {n: pytest.approx(1, abs=1e-5) for n in (10, 20, 30, 40)}
        learned = logged(tmp_path / "learned", f"agreement/{name}")
        assert all(-1 <= value < 0.999 for value in learned.values()) and len(set(learned.values())) == 4
        assert all(0 <= value <= 1 for value in logged(tmp_path / "learned", f"saturation/{name}").values())
        assert all(value >= 0 for value in logged(tmp_path / "learned", f"meta_gradient_snr/{name}").values())
    assert list(logged(tmp_path / "learned", "meta_gradient_snr/all")) == [10, 20, 30, 40]
    cosines = logged(tmp_path / "learned", "meta_gradient_cosine/across_environments")  # there is one agent in each of them
    assert list(cosines) == [10, 20, 30, 40] and any(cosines.values())
    assert not any(column.startswith("meta_gradient_cosine/A") for column in read_csv(tmp_path / "learned" / "metrics.csv")[0])
    assert not any(column.startswith("meta_gradient_snr") for column in read_csv(tmp_path / "critic" / "metrics.csv")[0])


def test_there_is_no_agreement_before_the_critic_learns(tmp_path: Path) -> None:
    settings = tiny_settings(warmup_env_steps=25)
    tiny_run(callbacks=[Diagnostics(10, 5)], run_dir=tmp_path, settings=settings)
    assert list(logged(tmp_path, f"agreement/{NAMES[0]}")) == [30, 40]


def test_throughput_counts_all_agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 env steps of 3 agents in 2 and in 4 seconds; 10 update cycles, once there are ten steps, and 20."""
    clock = iter([100.0, 102.0, 106.0])
    monkeypatch.setattr("callbacks.training_log.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    tiny_run(callbacks=[Throughput(20)], run_dir=tmp_path, updates_per_batch=20)
    assert logged(tmp_path, "throughput/agent_env_steps_per_second") == {20: 30, 40: 15}
    assert logged(tmp_path, "throughput/update_cycles_per_second") == {20: 5, 40: 5}


# --------------------------------------------------------------------------------------------------------------- evaluations


def test_policies_are_evaluated_at_intervals_and_at_the_end(tmp_path: Path) -> None:
    tiny_run(TIMED, 25, 5, callbacks=[PolicyEvaluation(str(tmp_path), 10, 2)], run_dir=tmp_path)
    for agent, (name, episode_return) in enumerate([(EIGHT, 36), (FIVE, 15), (EIGHT, 36)]):
        assert logged(tmp_path, f"evaluation_return/{name}/agent_{agent}") == dict.fromkeys((10, 20, 25), episode_return)
    assert not (tmp_path / "meta_test.csv").exists()


@pytest.mark.parametrize("num_episodes", [1, 3])
def test_policies_are_evaluated_for_as_many_episodes_as_asked_for(
    num_episodes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    make = Evaluator.__init__
    monkeypatch.setattr(Evaluator, "__init__", lambda self, *arguments: (asked.append(arguments[2]), make(self, *arguments))[1])  # type: ignore[func-returns-value]
    tiny_run(TIMED, 10, callbacks=[PolicyEvaluation(str(tmp_path), 10, num_episodes)])
    assert asked == [num_episodes]


@pytest.mark.parametrize(("objective", "stage"), [(tiny_objective(), 123), (CriticObjective(), None), (tiny_objective(), 0)])
def test_a_run_that_is_a_test_itself_writes_rows(objective: Any, stage: int | None, tmp_path: Path) -> None:
    """Agents are dealt to two environments: the third is the second seed of the first."""
    if stage:
        objective.card = {"env_steps": stage}
    evaluation = PolicyEvaluation(str(tmp_path), 10, 1, method="mine")
    tiny_run(TIMED, 20, callbacks=[evaluation], run_dir=tmp_path, objective=objective, frozen=True)
    rows = [tuple(row) for row in read_rows(tmp_path / "meta_test.csv")]
    agents = [(EIGHT, 0, 36.0), (FIVE, 0, 15.0), (EIGHT, 1, 36.0)]
    assert rows == [(name, "mine", seed, n, value, stage) for n in (10, 20) for name, seed, value in agents]


def test_the_objective_is_tested_at_intervals_and_compared_at_the_end(tmp_path: Path) -> None:
    baselines = {"reinforce": Reinforce(0.99), "critic": CriticObjective()}
    tiny_run(callbacks=[meta_test(run_dir=str(tmp_path), every_env_steps=15, baselines=baselines)], run_dir=tmp_path)
    rows = read_rows(tmp_path / "meta_test.csv")
    learned = [("learned", seed, n, stage) for stage in (20, 30, 40) for n in (10, 20) for seed in (0, 1)]
    others = [
        (method, seed, n, stage)
        for method, stage in (("untrained", 0), ("reinforce", None), ("critic", None))
        for n in (10, 20)
        for seed in (0, 1)
    ]
    found = [(row.method, row.seed, row.env_steps, row.meta_training_env_steps) for row in rows]
    assert found == [*learned, *others, ("random", 0, 0, None), ("random", 1, 0, None)]

    for method in ("learned", "critic"):
        shown = logged(tmp_path, f"meta_test/Approach-v0/{method}")
        returns = [row.episode_return for row in rows if row.method == method and row.env_steps == 20]
        assert shown[40] == pytest.approx(sum(returns[-2:]) / 2)
    assert list(logged(tmp_path, "meta_test/Approach-v0/learned")) == [20, 30, 40]


def test_returns_are_means_over_as_many_episodes_as_asked_for(tmp_path: Path) -> None:
    test = meta_test(run_dir=str(tmp_path), num_episodes=3, untrained=False, baselines={"critic": CriticObjective()})
    tiny_run(callbacks=[test], frozen=True)
    rows, approach = read_rows(tmp_path / "meta_test.csv"), [EnvironmentSpec("Approach-v0")]
    plan = MetaTestPlan(approach, [0, 1], tiny_settings(), 20, 10, 3)
    assert [row for row in rows if row.method == "critic"] == fresh_agents.meta_test("critic", CriticObjective(), plan)
    assert [row for row in rows if row.method == "random"] == fresh_agents.random_returns(approach, [0, 1], 3)


def test_returns_are_written_where_policies_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("callbacks.policy_evaluation.save_policies", full)
    with pytest.raises(OSError, match="No space left"):
        tiny_run(callbacks=[PolicyEvaluation(str(tmp_path), 10, 1, method="mine")], env_steps=20, frozen=True)
    assert {row.env_steps for row in read_rows(tmp_path / "meta_test.csv")} == {10, 20}


def test_a_replay_that_has_no_place_is_refused_before_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fresh agents' stands beside the training's; both follow replay.capacity."""
    asked: list[int] = []
    monkeypatch.setattr("callbacks.meta_testing.check_memory", lambda needed, device: asked.append(needed))
    trainer = tiny_run(callbacks=[meta_test(run_dir=str(tmp_path), seeds=[0])])
    slots = (asked[0] - agents_of(trainer).replay.num_bytes) / memory_bytes(sizes_of([EnvironmentSpec("Approach-v0")]), 1)
    assert slots == 2 * 20 + agents_of(trainer).settings.window_length + 2
    tiny_run(callbacks=[meta_test(run_dir=str(tmp_path), seeds=[0])], num_processes=2)
    assert asked[1] == 2 * asked[0]

    def refuse(needed: int, device: torch.device) -> None:
        raise ValueError("too much")

    monkeypatch.setattr("callbacks.meta_testing.check_memory", refuse)
    with pytest.raises(ConfigError, match="callbacks.meta_test.env_steps=20: too much"):
        tiny_run(callbacks=[meta_test(run_dir=str(tmp_path / "refused"))])
    assert not (tmp_path / "refused").exists()


def test_fresh_agents_keep_their_experience_as_the_run_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked(Exception):
        pass

    def asked(method: str, objective: Any, plan: Any, resources: Resources, *rest: Any) -> None:
        assert (resources.replay_capacity, torch.device(resources.replay_device or resources.device)) == (
            500,
            torch.device("cpu"),
        )
        raise Asked

    monkeypatch.setattr("callbacks.meta_testing.meta_test", asked)
    with pytest.raises(Asked):
        tiny_run(callbacks=[meta_test(run_dir=str(tmp_path))])


def test_an_objective_that_cannot_be_written_for_a_while_costs_that_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = LearnedObjective.save, []

    def full(self: LearnedObjective, *arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        save(self, *arguments)

    monkeypatch.setattr(LearnedObjective, "save", full)
    with pytest.warns(match="the objective at 20 env steps could not be written"):
        tiny_run(callbacks=[ObjectiveExport(str(tmp_path), 15)], env_steps=40)
    assert LearnedObjective.load(tmp_path / "objective.safetensors").card["env_steps"] == 40


class Halved(LearnedObjective):
    """An objective of a user's own, with an option of its own."""

    def __init__(self, share: float = 0.5, **options: Any) -> None:
        super().__init__(**options)
        self.architecture["share"] = share


def test_an_untrained_objective_is_of_the_class_that_is_learned(tmp_path: Path) -> None:
    tiny_run(callbacks=[meta_test(run_dir=str(tmp_path), random=False)], objective=Halved(hidden_units=4, context_units=2))
    assert {row.method for row in read_rows(tmp_path / "meta_test.csv")} == {"learned", "untrained"}


def test_comparisons_can_be_switched_off(tmp_path: Path) -> None:
    baselines = {"reinforce": None, "critic": None}
    tiny_run(callbacks=[meta_test(run_dir=str(tmp_path), untrained=False, random=False, baselines=baselines)])
    assert {row.method for row in read_rows(tmp_path / "meta_test.csv")} == {"learned"}


def test_without_environments_there_is_no_meta_test(tmp_path: Path) -> None:
    tiny_run(callbacks=[meta_test(run_dir=str(tmp_path), environments=[], every_env_steps=10)])
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_was_stopped_in_its_meta_test_goes_on_with_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"

    def run(run_dir: Path, ckpt_path: Path | None = None) -> None:
        test = meta_test(run_dir=str(run_dir), baselines={"critic": CriticObjective()})
        tiny_run(callbacks=[test, RunCheckpoint(str(run_dir), None)], ckpt_path=ckpt_path)

    tested: list[str] = []
    genuine = callbacks.meta_testing.meta_test

    def interrupted(method: str, *arguments: Any, **more: Any) -> Any:
        if method == "critic":
            raise InterruptedError
        tested.append(method)
        return genuine(method, *arguments, **more)

    run(whole)
    with monkeypatch.context() as patch:
        patch.setattr(callbacks.meta_testing, "meta_test", interrupted)
        with pytest.raises(InterruptedError):
            run(stopped)
    assert tested == ["learned", "untrained"]
    run(stopped, stopped / "checkpoints" / "env_steps_000000040.ckpt")
    assert (stopped / "meta_test.csv").read_bytes() == (whole / "meta_test.csv").read_bytes()


def test_what_the_other_process_has_finished_outlives_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [MetaTestRow("Approach-v0", "critic", 0, 8, 5.0, None)]

    class Finished:
        """A second process whose test of DDPG/TD3 is done."""

        num_env_steps = env_steps = 8

        def __init__(self, *_: Any) -> None: ...

        def finished(self) -> dict[str, list[MetaTestRow]]:
            return {"critic": rows}

        def newest(self) -> dict[str, Any]:
            return {}

        def check(self) -> None: ...

        def close(self) -> None: ...

    class Fails(pl.Callback):
        def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
            raise RuntimeError("a bug")

    monkeypatch.setattr(callbacks.meta_testing, "BackgroundTests", Finished)
    monkeypatch.setattr(callbacks.meta_testing, "can_run_in_background", lambda *_: True)
    test = meta_test(run_dir=str(tmp_path), baselines={"critic": CriticObjective()})
    with pytest.raises(RuntimeError, match="a bug"):
        tiny_run(callbacks=[Fails(), test])
    assert read_rows(tmp_path / "meta_test.csv") == rows


def test_a_test_that_was_given_up_may_be_switched_off(tmp_path: Path) -> None:
    """Otherwise every batch of the resume would be skipped."""
    test = meta_test(run_dir=str(tmp_path), seeds=None, random=False, untrained=False)
    test.load_state_dict({"is_given_up": True})
    assert env_steps_of(tiny_run(callbacks=[test])) == 40
    assert not test.state_dict()["is_given_up"]


def test_a_signal_may_come_twice_in_the_final_meta_test(tmp_path: Path) -> None:
    class SignalsTwice(pl.Callback):
        def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
            signal.raise_signal(signal.SIGTERM)

        def on_exception(self, *_: Any) -> None:
            signal.raise_signal(signal.SIGTERM)  # while the meta-test ends

    with pytest.raises(SystemExit) as ended:  # Lightning's answer to the first one
        tiny_run(callbacks=[SignalsTwice(), RunCheckpoint(str(tmp_path), None)])
    assert isinstance(ended.value.__context__, KeyboardInterrupt)


# ----------------------------------------------------------------------------------------------------------- objective export


def test_the_newest_objective_is_on_disk_and_stages_are_kept_if_asked_for(tmp_path: Path) -> None:
    trainer = tiny_run(env_steps=40, callbacks=[ObjectiveExport(str(tmp_path), 15, keep_stages=True)])
    assert [path.name for path in sorted((tmp_path / "objectives").glob("*.safetensors"))] == [
        f"env_steps_{n:09d}.safetensors" for n in (20, 30, 40)
    ]
    stages = [LearnedObjective.load(path) for path in sorted((tmp_path / "objectives").glob("*.safetensors"))]
    assert [stage.card["env_steps"] for stage in stages] == [20, 30, 40]
    assert not torch.equal(next(stages[0].parameters()), next(stages[1].parameters()))
    newest, module = LearnedObjective.load(tmp_path / "objective.safetensors"), cast(MetaGenRL, trainer.lightning_module)
    for name, p in module.objective.named_parameters():
        assert torch.equal(p, newest.get_parameter(name)), name
    assert newest.card["training_environments"] == sorted(spec.name for spec in TOYS)


def test_without_an_interval_the_objective_is_written_at_the_end(tmp_path: Path) -> None:
    tiny_run(callbacks=[ObjectiveExport(str(tmp_path))])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["objective.json", "objective.safetensors"]
    assert LearnedObjective.load(tmp_path / "objective.safetensors").card["env_steps"] == 40


@pytest.mark.parametrize("saves", [True, False])
def test_a_stopped_run_leaves_its_newest_objective(saves: bool, tmp_path: Path) -> None:
    class Stops(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            trainer.should_stop = env_steps_of(trainer) >= 30

    saving = [RunCheckpoint(str(tmp_path), 20)] if saves else []
    trainer = tiny_run(callbacks=[ObjectiveExport(str(tmp_path)), Stops(), *saving], env_steps=60)
    newest, module = LearnedObjective.load(tmp_path / "objective.safetensors"), cast(MetaGenRL, trainer.lightning_module)
    assert newest.card["env_steps"] == env_steps_of(trainer) == 30
    assert all(torch.equal(p, newest.get_parameter(name)) for name, p in module.objective.named_parameters())


def test_the_objective_of_a_checkpoint_is_written_before_an_interval_ends(tmp_path: Path) -> None:
    class Kill(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            if env_steps_of(trainer) == 30:
                raise InterruptedError

    with pytest.raises(InterruptedError):
        tiny_run(callbacks=[ObjectiveExport(str(tmp_path), 1000), Kill(), RunCheckpoint(str(tmp_path), 20)])
    assert LearnedObjective.load(tmp_path / "objective.safetensors").card["env_steps"] == 20


def test_a_hand_made_objective_is_not_written(tmp_path: Path) -> None:
    tiny_run(callbacks=[ObjectiveExport(str(tmp_path), 10, keep_stages=True)], objective=CriticObjective())
    assert list(tmp_path.iterdir()) == []


def test_a_frozen_objective_is_written_once_with_its_own_card(tmp_path: Path) -> None:
    objective = tiny_objective()
    objective.card = {"seed": 7, "env_steps": 123}
    tiny_run(callbacks=[ObjectiveExport(str(tmp_path), 10, keep_stages=True)], objective=objective, frozen=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["objective.json", "objective.safetensors"]
    written = LearnedObjective.load(tmp_path / "objective.safetensors")
    assert written.card == objective.card
    assert all(torch.equal(p, written.get_parameter(name)) for name, p in objective.named_parameters())


# ------------------------------------------------------------------------------------------------------------------- display


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal is sent."""
    sent = io.StringIO()
    monkeypatch.setattr(callbacks.display, "Console", lambda: Console(file=sent, force_terminal=True, width=200, height=60))
    return sent


@pytest.fixture
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a log file is sent."""
    sent = io.StringIO()
    monkeypatch.setattr(callbacks.display, "Console", lambda: Console(file=sent, force_terminal=False, width=200))
    return sent


def plain(sent: io.StringIO) -> str:
    """Without colours and cursor movements."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", sent.getvalue())


SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"


def test_a_terminal_shows_a_table_of_the_population_and_a_bar_with_an_eta(terminal: io.StringIO) -> None:
    tiny_run(callbacks=[PopulationDisplay(1000)])
    last = plain(terminal).rpartition("total")[2]  # the last that is drawn
    header = ("agent", "environment", "return, last 10", "critic loss", "meta loss")
    for text in (*header, "population", "meta-training: 40/40", "ETA 0:00", "100%"):
        assert text in last, text
    assert "norm" not in last
    for agent, (spec, returned) in enumerate(zip(TOYS, ("55.0", "15.0", "28.0"), strict=True)):
        (line,) = [line for line in last.splitlines() if f" {spec.name} " in line]
        cells = [cell.strip() for cell in line.strip("│").split("│")]
        assert cells[:3] == [str(agent), spec.name, returned]
        assert all(re.fullmatch(r"-?[\d.]+(e[+-]\d+)?", cell) for cell in cells[3:]) and len(cells) == 5
    assert terminal.getvalue().count(HIDE_CURSOR) == 1 and terminal.getvalue().rindex(SHOW_CURSOR) > terminal.getvalue().rindex(
        "ETA"
    )


def test_the_terminal_is_given_back_after_an_error(terminal: io.StringIO) -> None:
    class Fail(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        tiny_run(callbacks=[PopulationDisplay(), Fail()])
    assert HIDE_CURSOR in terminal.getvalue()
    assert terminal.getvalue().rindex(SHOW_CURSOR) > terminal.getvalue().rindex(HIDE_CURSOR)


def test_a_large_population_is_shown_in_part(terminal: io.StringIO) -> None:
    tiny_run([EnvironmentSpec("Counting-v0")] * 22, env_steps=12, callbacks=[PopulationDisplay(1000)])
    last = plain(terminal).rpartition("meta-training")[2]
    assert last.count("Counting-v0") == 20 and "and 2 more agents" in last


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0:00"), (59.9, "0:59"), (3599, "59:59"), (3600, "1:00:00"), (90061, "25:01:01")]
)
def test_times_are_read_like_a_clock(seconds: float, shown: str) -> None:
    assert format_seconds(seconds) == shown


def test_a_log_is_sent_lines_at_intervals(no_terminal: io.StringIO) -> None:
    late = tiny_settings(warmup_env_steps=190)
    tiny_run(env_steps=200, updates_per_batch=5, callbacks=[PopulationDisplay()], settings=late)
    lines = no_terminal.getvalue().splitlines()
    assert "\x1b" not in no_terminal.getvalue()
    assert [line.partition(" env steps")[0] for line in lines] == [f"meta-training: {n}/200" for n in range(10, 201, 10)]
    assert all(re.search(r", \d+:\d\d elapsed, ETA \d+:\d\d, Counting-v0\[", line) for line in lines)
    assert lines[-1].endswith(f"ETA 0:00, {TOYS[0].name} 55.0, {TOYS[1].name} 15.0, {TOYS[2].name} 28.0")


def test_a_log_goes_on_after_a_resume(no_terminal: io.StringIO, tmp_path: Path) -> None:
    tiny_run(env_steps=50, callbacks=[RunCheckpoint(str(tmp_path), None)])
    checkpoint = tmp_path / "checkpoints" / "env_steps_000000050.ckpt"
    tiny_run(env_steps=100, updates_per_batch=5, callbacks=[PopulationDisplay()], ckpt_path=checkpoint)
    lines = no_terminal.getvalue().splitlines()
    assert [line.partition(" env steps")[0] for line in lines] == [f"meta-training: {n}/100" for n in range(55, 101, 5)]


def test_a_baseline_is_not_called_meta_training(no_terminal: io.StringIO) -> None:
    tiny_run(callbacks=[PopulationDisplay()], objective=CriticObjective())
    assert no_terminal.getvalue().startswith("training: ")


def test_whole_names_of_environments_fit_into_80_columns(terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks.display, "Console", lambda: Console(file=terminal, force_terminal=True, width=80, height=60))
    name = "Counting-v0[ends_after=10,max_episode_steps=44]"
    tiny_run([EnvironmentSpec("Counting-v0", {"ends_after": 10}, 44)] * 3, callbacks=[PopulationDisplay(1000)])
    last = plain(terminal).rpartition("total")[2]
    column = [line.split("│")[2].strip() for line in last.splitlines() if line.count("│") == 6]
    assert "".join(column) == 3 * name and max(map(len, last.splitlines())) <= 80


def test_the_meta_test_shows_returns_by_method_as_they_come_in(terminal: io.StringIO, tmp_path: Path) -> None:
    test = meta_test(run_dir=str(tmp_path), baselines={"critic": CriticObjective()})
    tiny_run(callbacks=[PopulationDisplay(1000), test])
    *frames, final = plain(terminal).split("total")
    assert "meta-test so far" not in final  # the table of the final report replaces it
    last = [frame for frame in frames if "meta-test so far" in frame][-1]
    assert "population" not in last  # it trains no more
    (header,) = [line for line in last.splitlines() if "environment" in line]
    assert [cell.strip() for cell in header.strip("┃").split("┃")] == [
        "environment",
        "learned",
        "untrained",
        "DDPG/TD3",
        "random",
    ]
    cells = {line.split("│")[1].strip(): [c.strip() for c in line.split("│")[2:-1]] for line in last.splitlines() if "│" in line}
    assert cells["after env steps"] == ["20", "20", "20", "0"]
    final = {row.method: [] for row in read_rows(tmp_path / "meta_test.csv")}  # type: dict[str, list[float]]
    for row in read_rows(tmp_path / "meta_test.csv"):
        if row.env_steps in (0, 20):
            final[row.method].append(row.episode_return)
    shown = dict(zip(("learned", "untrained", "critic", "random"), map(float, cells["Approach-v0"]), strict=True))
    assert shown == {method: pytest.approx(sum(values) / 2, abs=0.06) for method, values in final.items()}


@pytest.mark.slow
def test_the_eta_counts_the_meta_test_from_the_start(no_terminal: io.StringIO, tmp_path: Path) -> None:
    tiny_run(callbacks=[PopulationDisplay(), meta_test(run_dir=str(tmp_path), env_steps=900)], env_steps=20)
    training, *tests = no_terminal.getvalue().splitlines()
    assert training.startswith("meta-training: 10/20") and "ETA 0:00" not in training
    assert tests[-1].startswith("meta-test, untrained objective: 900/900") and "ETA 0:00" in tests[-1]


@pytest.mark.parametrize("shown_on", ["terminal", "no_terminal"])
def test_a_meta_test_is_a_stage_of_the_run(shown_on: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    sent: io.StringIO = request.getfixturevalue(shown_on)
    tiny_run(callbacks=[PopulationDisplay(1000), meta_test(run_dir=str(tmp_path), baselines={"critic": CriticObjective()})])
    for method in ("learned", "untrained", "critic"):
        assert re.search(rf"meta-test, {re.escape(METHODS[method].label)}\W.*20/20", plain(sent)), method


def test_without_a_display_progress_goes_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = tiny_run()
    assert env_steps_of(trainer) == 40
    progress_of(trainer).add_stage(Stage("something", 10, 1.0))(10)
    progress_of(trainer).show_returns("learned", 10, {"A": 1.0})
    assert capsys.readouterr().out == ""


def test_the_final_report_prints_the_table_and_draws(tmp_path: Path, no_terminal: io.StringIO) -> None:
    test = meta_test(run_dir=str(tmp_path), baselines={"critic": CriticObjective()})
    tiny_run(callbacks=[EpisodeReturns(10), test, FinalReport(str(tmp_path))], run_dir=tmp_path)
    printed = no_terminal.getvalue()
    for text in ("Meta-test: return of fresh agents", "Approach-v0", "over 2 seeds", "after 20 env steps"):
        assert text in printed, text
    for method in ("learned", "untrained", "critic", "random"):
        assert METHODS[method].label in printed
    lines = printed.splitlines()[-4:]  # no objective was saved: ObjectiveExport does that
    assert lines[0] == f"Learning curves: {tmp_path}/learning_curves.png" and lines[1] == "Next:"
    assert lines[2:] == [f"  metagenrl {name} {tmp_path}" for name in ("report", "film")]
    assert (tmp_path / "learning_curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_next_commands_can_be_pasted(tmp_path: Path, no_terminal: io.StringIO) -> None:
    folder = tmp_path / "it's ${mine}"
    test = meta_test(run_dir=str(folder), baselines={})
    tiny_run(callbacks=[ObjectiveExport(str(folder), None), test, FinalReport(str(folder))], run_dir=folder)
    test_command, report = no_terminal.getvalue().splitlines()[-2:]
    path = shlex.split(test_command)[-2]
    (parsed,) = OverridesParser.create().parse_overrides([path])
    assert OmegaConf.create({"path": parsed.value()}).path == str(folder / "objective.safetensors")
    assert shlex.split(report) == ["metagenrl", "report", str(folder)]


def test_the_next_command_names_the_class_of_ones_own_objective(tmp_path: Path, no_terminal: io.StringIO) -> None:
    final = [ObjectiveExport(str(tmp_path), None), meta_test(run_dir=str(tmp_path), baselines={}), FinalReport(str(tmp_path))]
    tiny_run(callbacks=final, run_dir=tmp_path, objective=Blend())
    test_command = no_terminal.getvalue().splitlines()[-2]
    assert " objective._target_=examples.own_objective.Blend.load objective.path=" in test_command


def test_without_a_meta_test_the_next_command_makes_one(tmp_path: Path, no_terminal: io.StringIO) -> None:
    """A report would have nothing to tell."""
    tiny_run(callbacks=[ObjectiveExport(str(tmp_path), None), FinalReport(str(tmp_path))], run_dir=tmp_path)
    objective, title, command = no_terminal.getvalue().splitlines()[-3:]
    assert objective == f"Objective: {tmp_path}/objective.safetensors" and title == "Next:"
    assert shlex.split(command)[-1] == "env.train=[Hopper-v5]"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"hidden_units": 64, "random_env_steps": 1000, "window_length": 10, "num_windows": 16}, []),
        ({"saturation_penalty": 1e-3}, ["agent=paper", "agent.saturation_penalty=0.001"]),
        ({}, ["agent=paper"]),
    ],
)
def test_the_next_command_makes_agents_like_those_of_meta_training(changes: dict[str, float], expected: list[str]) -> None:
    paper = dict(OmegaConf.load(ROOT / "conf/agent/paper.yaml").items())
    assert callbacks.display._agent_overrides({**paper, **changes}) == expected


def test_a_copied_checkpoint_does_not_crowd_out_a_new_one(tmp_path: Path) -> None:
    """Its time may lie in the future."""
    old = tmp_path / "checkpoints" / "env_steps_000000001.ckpt"
    old.parent.mkdir()
    old.write_bytes(b"")
    os.utime(old, (2e9, 2e9))
    tiny_run(callbacks=[RunCheckpoint(str(tmp_path), None, keep=1)], run_dir=tmp_path)
    assert [path.name for path in old.parent.glob("*.ckpt")] == ["env_steps_000000040.ckpt"]


def test_a_save_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay is large: left behind, it would fill the disk further."""
    monkeypatch.setattr(pl.Trainer, "save_checkpoint", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        tiny_run(callbacks=[RunCheckpoint(str(tmp_path), None)], run_dir=tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_the_scores_of_an_objective_are_not_those_of_what_becomes_of_it(tmp_path: Path) -> None:
    objective = tiny_objective()
    objective.card = {
        "scores": {"Hopper-v5": {"return": 1.0}},
        "made_by": "somebody",
        "chosen_by": ["Hopper-v5"],
        "licence": "MIT",
    }
    tiny_run(callbacks=[ObjectiveExport(str(tmp_path), None)], run_dir=tmp_path, objective=objective)
    card = json.loads((tmp_path / "objective.json").read_text())
    assert not {"scores", "made_by", "chosen_by"} & card.keys() and card["licence"] == "MIT" and "earlier" not in card


def test_an_objective_that_is_trained_further_names_its_earlier_runs(tmp_path: Path) -> None:
    file = tmp_path / "objective.safetensors"
    for run in range(3):
        objective = ParametricObjective.load(file, frozen=False) if run else tiny_objective()
        saves = [ObjectiveExport(str(tmp_path), None), RunCheckpoint(str(tmp_path), None)]
        tiny_run(env_steps=20, callbacks=saves, run_dir=tmp_path, objective=objective)
    objective = ParametricObjective.load(file, frozen=False)  # as a resume begins; it is no further run
    checkpoint = tmp_path / "checkpoints" / "env_steps_000000020.ckpt"
    export = ObjectiveExport(str(tmp_path), None)
    tiny_run(env_steps=30, callbacks=[export], run_dir=tmp_path, objective=objective, ckpt_path=checkpoint)
    last = ParametricObjective.load(file)
    assert [earlier["env_steps"] for earlier in last.card["earlier"]] == [20, 20] and last.card["env_steps"] == 30
    assert "30 env steps of each of 3 agents, after 40 in earlier runs" in repr(last)


def test_an_objective_that_diverged_replaces_no_good_one(tmp_path: Path) -> None:
    class Diverges(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            if env_steps_of(trainer) == 30:
                with torch.no_grad():
                    next(iter(cast(ParametricObjective, agents_of(trainer).objective).parameters())).fill_(torch.nan)

    saves = OnExceptionCheckpoint(str(tmp_path), "failed")
    with pytest.raises(FloatingPointError):
        tiny_run(callbacks=[Diverges(), ObjectiveExport(str(tmp_path), 10), saves], run_dir=tmp_path)
    assert (tmp_path / "failed.ckpt").exists()
    assert ParametricObjective.load(tmp_path / "objective.safetensors").card["env_steps"] == 30


def test_environments_are_closed_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Any] = []
    close = Evaluator.close
    monkeypatch.setattr(Evaluator, "close", lambda self: (closed.append(self), close(self)))

    class Fails(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if env_steps_of(trainer) == 20:
                raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        tiny_run(callbacks=[PolicyEvaluation(str(tmp_path), 10, 1), Fails()], run_dir=tmp_path)
    assert len(closed) == 1


def test_fresh_agents_of_a_run_have_as_many_fellows_in_every_environment(tmp_path: Path) -> None:
    """A meta-test beside them tests others of the same numbers."""
    specs = [EnvironmentSpec("Approach-v0"), EnvironmentSpec("Counting-v0"), EnvironmentSpec("Approach-v0")]
    test = MetaTest(str(tmp_path), ["Approach-v0"], None, 20, 20, 1)
    message = r"environments have 2 \(Approach-v0\), 1 \(Counting-v0\) agents; valid is a population.size that is a multiple of 2"
    with pytest.raises(ConfigError, match=message):
        tiny_run(specs, callbacks=[test], run_dir=tmp_path, frozen=True)


def test_the_final_report_of_nothing_is_silent(tmp_path: Path, no_terminal: io.StringIO) -> None:
    tiny_run(callbacks=[FinalReport(str(tmp_path))])
    assert no_terminal.getvalue() == "" and list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------- baselines of a meta-test


class Unlike(Reinforce):
    """Whose loss is what it was given to compute it."""

    def __init__(self, loss: Callable[[ObjectiveInputs], torch.Tensor]) -> None:
        super().__init__()
        self._loss = loss

    def loss(self, parameters: Any, inputs: ObjectiveInputs) -> torch.Tensor:
        return self._loss(inputs)


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        (
            Unlike(lambda inputs: inputs.policy_action.mean()),
            r"its loss has the shape \(\) for 2 agents, .*; valid is \(2, 3, 4\), \[P, B, T\]$",
        ),
        (Unlike(lambda inputs: inputs.reward), r"its loss does not depend on inputs\.policy_action"),
        (
            Unlike(lambda inputs: inputs.policy_action @ inputs.reward[0, 0, :3]),
            r"its loss raises RuntimeError: [^\n]* \(test_callbacks\.py, line \d+\); valid is a loss of \[P, B, T\]$",
        ),
        (Unlike(lambda inputs: inputs.actions), r"its loss raises AttributeError: .*; valid is a loss of \[P, B, T\]$"),  # type: ignore[attr-defined]
    ],
)
def test_a_baseline_that_teaches_nothing_is_refused_before_a_run_begins(baseline: Unlike, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^baselines\.mine=\w+\.Unlike: {message}"):
        meta_test(baselines={"critic": CriticObjective(), "mine": baseline})
    meta_test(baselines={"mine": Unlike(lambda inputs: inputs.policy_action.sum(-1) * inputs.valid)})


@pytest.mark.parametrize("method", ["learned", "untrained", "random"])
def test_a_baseline_does_not_go_by_the_name_of_another_method(method: str) -> None:
    with pytest.raises(ValueError, match=rf"^baselines\.{method}: a baseline cannot be called .*; valid is a name of your own$"):
        meta_test(baselines={method: CriticObjective()})


def test_the_refusal_of_a_baseline_names_its_key() -> None:
    node = {
        "_target_": "callbacks.meta_testing.MetaTest",
        "run_dir": "nowhere",
        "environments": ["Approach-v0"],
        "seeds": [0],
        "env_steps": 1,
        "evaluate_every_env_steps": 1,
        "baselines": {"random": {"_target_": "metagenrl_pl.objectives.CriticObjective"}},
    }
    config = OmegaConf.create({"callbacks": {"meta_test": node}})
    with pytest.raises(ConfigError, match=r"^callbacks\.meta_test: baselines\.random: "):
        build(config.callbacks.meta_test, pl.Callback)
