"""The Lightning face: macro batches change the overhead and nothing else, and a cycle acts first and then learns."""

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import TOYS, differences, everything, tiny_objective, tiny_run, tiny_settings

from callbacks.meta_testing import MetaTest
from callbacks.policy_evaluation import PolicyEvaluation
from callbacks.schedule import env_steps_of, module_of
from callbacks.training_log import Diagnostics, EpisodeReturns, Throughput
from metagenrl_pl.agents.windows import Windows
from metagenrl_pl.environments.environment import EnvironmentSpec
from metagenrl_pl.evaluation.fresh_agents import MetaTestPlan, meta_test
from metagenrl_pl.experience.collector import Collector
from metagenrl_pl.experience.replay import Replay

TIMED = [EnvironmentSpec("Counting-v0", {}, 8), EnvironmentSpec("Counting-v0", {"num_actions": 2}, 5)]


class Batches(pl.Callback):
    """Notes env steps, update cycles and Lightning's own count after each batch."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, int]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self.seen.append((env_steps_of(trainer), pl_module.learner.num_updates, trainer.global_step))


class Poison(pl.Callback):
    """Breaks a parameter of one agent's critic after some env steps."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if env_steps_of(trainer) == 30:
            pl_module.learner.population.critics["out.bias"].data[1] = torch.nan


# ------------------------------------------------------------------------------------------------------------- macro batches


def test_the_size_of_batches_changes_nothing() -> None:
    """One cycle, a number that does not divide the run, one that is most of it."""
    one, seven, fifty = (tiny_run(env_steps=120, updates_per_batch=n) for n in (1, 7, 50))
    reference = everything(one)
    assert differences(reference, everything(seven)) == differences(reference, everything(fifty)) == []
    assert [run.datamodule.num_batches for run in (one, seven, fifty)] == [120, 18, 3]  # type: ignore[attr-defined]
    fresh = everything(tiny_run(env_steps=1))
    learned = [path for path in fresh if path.startswith(("/learner/population", "/objective"))]
    assert set(learned) <= set(differences(reference, fresh))  # there was something to be the same


@pytest.mark.parametrize(("updates_per_batch", "ends"), [(7, [7, 14, 21, 24]), (50, [24]), (8, [8, 16, 24])])
def test_the_last_batch_is_as_long_as_what_is_left(updates_per_batch: int, ends: list[int]) -> None:
    batches = Batches()
    tiny_run(env_steps=24, updates_per_batch=updates_per_batch, callbacks=[batches])
    assert [env_steps for env_steps, _, _ in batches.seen] == ends


def test_global_step_counts_update_cycles_which_begin_after_the_warmup() -> None:
    batches = Batches()
    tiny_run(env_steps=16, updates_per_batch=1, callbacks=[batches], settings=tiny_settings(warmup_env_steps=10))
    assert batches.seen == [(n, max(0, n - 10), max(0, n - 10)) for n in range(1, 17)]


def test_nothing_is_learned_before_the_warmup_ends() -> None:
    def learned(env_steps: int) -> dict[str, Any]:
        trainer = tiny_run(env_steps=env_steps, settings=tiny_settings(warmup_env_steps=10))
        return {path: value for path, value in everything(trainer).items() if path.startswith(("/learner", "/objective"))}

    before, last, after = learned(1), learned(10), learned(11)
    assert differences(before, last) == []
    parameters = [path for path in before if path.startswith(("/learner/population", "/objective"))]
    assert {path for path in parameters if "/target_" not in path} <= set(differences(before, after))


# -------------------------------------------------------------------------------------------------- acting, then learning


def test_a_cycle_draws_from_all_steps_but_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps stored at each draw: environments take the cycle's own env step meanwhile, whatever the batch."""
    drawn: list[tuple[int, int]] = []
    draw = Collector.draw

    def spy(self: Collector, num_windows: int) -> Windows:
        drawn.append((self.env_steps, len(self.replay)))
        return draw(self, num_windows)

    monkeypatch.setattr(Collector, "draw", spy)
    tiny_run(env_steps=16, updates_per_batch=6, settings=tiny_settings(warmup_env_steps=10, policy_delay=2))
    with_policies, critics_alone = range(10, 16, 2), range(11, 16, 2)
    expected = sorted([(n, n) for n in with_policies] * 3 + [(n, n) for n in critics_alone])
    assert drawn == expected


def test_the_newest_step_can_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its reward in `Counting` is the number of steps of the episode."""
    newest = []
    sample = Replay.sample

    def spy(self: Replay, num_windows: int, streams: Any) -> Windows:
        windows = sample(self, 500, streams)
        newest.append((int(self.count[0]), windows.reward.max().item()))
        return sample(self, num_windows, streams)

    monkeypatch.setattr(Replay, "sample", spy)
    tiny_run([EnvironmentSpec("Counting-v0")], env_steps=14, updates_per_batch=14)
    assert newest and all(count == reward for count, reward in newest)


def test_an_agent_acts_with_what_it_has_just_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise, so that the stored action is the policy's; changed between any two cycles that update it."""
    seen = []
    begin_step = Collector.begin_step

    def spy(self: Collector) -> None:
        begin_step(self)
        policy_action = module_of(trainers[0]).learner.population.act(torch.from_numpy(self._observation))
        seen.append((self._action[0].numpy().copy(), policy_action[0].numpy()))

    class Remember(pl.Callback):
        def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
            trainers.append(trainer)

    trainers: list[pl.Trainer] = []
    monkeypatch.setattr(Collector, "begin_step", spy)
    quiet = tiny_settings(exploration_noise=0.0, random_env_steps=0, warmup_env_steps=4, policy_delay=1)
    tiny_run([EnvironmentSpec("Counting-v0")], env_steps=20, updates_per_batch=20, callbacks=[Remember()], settings=quiet)
    assert len(seen) == 20
    for acted, policy_action in seen:
        np.testing.assert_array_equal(acted, policy_action)
    (windows,) = [module_of(trainers[0]).agents.collector.draw(200)]
    assert set(windows.action[windows.valid.bool()].flatten().tolist()) <= {float(action[0]) for action, _ in seen}
    after_updates = [float(action[0]) for action, _ in seen[5:]]  # the fifth cycle has four steps to learn from
    assert len(set(after_updates)) == len(after_updates)


# ---------------------------------------------------------------------------------------------------------------- divergence


def test_a_broken_critic_ends_the_run_and_is_named() -> None:
    with pytest.raises(FloatingPointError, match=r"^critic_loss of agent 1 is nan after 21 updates$"):
        tiny_run(env_steps=60, updates_per_batch=1, callbacks=[Poison()])


def test_the_agent_that_broke_first_is_named_at_the_end_of_the_batch() -> None:
    """By then all are broken, since they share the objective."""
    batches = Batches()
    with pytest.raises(FloatingPointError, match="^critic_loss of agent 1 is nan after 30 updates$"):
        tiny_run(env_steps=60, updates_per_batch=10, callbacks=[Poison(), batches])
    assert batches.seen[-1][0] == 30


# ------------------------------------------------------------------------------------------------------- nothing from outside


def global_randomness() -> str:
    numpy_state = np.random.get_state()
    return repr((torch.get_rng_state().tolist(), [np.asarray(part).tolist() for part in numpy_state], random.getstate()))


def test_tensorboard_forgets_what_a_resume_makes_again(tmp_path: Path) -> None:
    logger = TensorBoardLogger(str(tmp_path), name="", version="tensorboard")
    for step in (10, 20, 30):
        logger.log_metrics({"a": 1.0}, step=step)
    module: Any = module_of(tiny_run(env_steps=20))  # as if it had been resumed there
    module.trainer = SimpleNamespace(loggers=[logger], is_global_zero=True)
    module.on_train_start()
    logger.log_metrics({"a": 2.0}, step=40)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("a")] == [(10, 1.0), (20, 1.0), (40, 2.0)]


def test_metrics_that_wait_for_the_next_update_survive_a_resume() -> None:
    """Policies are updated in every second cycle. Logged after the other, a resumed run would lack their metrics."""
    trained: Any = module_of(tiny_run())
    resumed: Any = module_of(tiny_run(env_steps=10, updates_per_batch=10))
    resumed.learner.load_state_dict(trained.learner.state_dict())
    before, after = (module.learner.checked_metrics() for module in (trained, resumed))
    assert before.keys() == after.keys() and "meta_loss" in before
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_callbacks_do_not_change_what_is_learned(tmp_path: Any) -> None:
    environments = [{"id": "Counting-v0", "max_episode_steps": 5}]
    callbacks = [
        EpisodeReturns(10),
        Diagnostics(10, 5),
        Throughput(10),
        PolicyEvaluation(str(tmp_path), 20, 2),
        MetaTest(str(tmp_path), environments, [0], 15, 10, 1, every_env_steps=20),
    ]
    with_callbacks = everything(tiny_run(TIMED, 60, callbacks=callbacks, run_dir=tmp_path))
    assert (tmp_path / "meta_test.csv").exists()
    changed = differences(everything(tiny_run(TIMED, 60)), with_callbacks)
    assert all("/new_returns" in path for path in changed)  # which somebody has asked for


def test_the_process_is_not_a_source_of_randomness() -> None:
    """Neither training nor meta-testing draws from the generators that everybody shares, or depends on them."""
    runs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        before = global_randomness()
        rows = meta_test("learned", tiny_objective(), MetaTestPlan(TIMED, [0, 1], tiny_settings(), 20, 10, 1))
        assert global_randomness() == before
        runs.append((everything(tiny_run(TOYS, 30)), rows))
        assert global_randomness() == before
    assert differences(runs[0][0], runs[1][0]) == [] and runs[0][1] == runs[1][1]
