"""The one cycle: an env step of every agent, and an update from what was stored before it."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tiny_runs import TOYS, tiny_objective, tiny_settings

from metagenrl_pl.agents.lifetimes import Lifetimes
from metagenrl_pl.agents.population import Population
from metagenrl_pl.common.streams import derive_seed
from metagenrl_pl.environments.environment import EnvironmentSpec
from metagenrl_pl.environments.group import SerialGroup, sizes_of
from metagenrl_pl.experience.memory import memory_bytes
from metagenrl_pl.learning.cycle import Agents, Resources
from metagenrl_pl.learning.inner_step import SGD
from metagenrl_pl.learning.judges import CriticJudge
from metagenrl_pl.learning.learner import Draw
from metagenrl_pl.learning.settings import MetaLearning, MetaSettings

SEEDS = [11, 12, 13]
META = MetaLearning(SGD(1e-2), CriticJudge(), MetaSettings(annealing_env_steps=0))
RESOURCES = Resources(replay_capacity=500)
WARMUP = tiny_settings().warmup_env_steps


def agents_of(
    meta: MetaLearning | None = META, specs: Sequence[EnvironmentSpec] = TOYS, resources: Resources = RESOURCES, **options: Any
) -> Agents:
    return Agents(specs, SEEDS, tiny_settings(), tiny_objective(), meta, resources=resources, **options)


def run(agents: Agents, num_cycles: int) -> Agents:
    for _ in range(num_cycles):
        agents.cycle()
    return agents


def test_updates_begin_after_the_warm_up() -> None:
    """With that many env steps stored, so one cycle later than they are taken."""
    agents, critic_steps = agents_of(), []
    first = {kind: flat.clone() for kind, flat in agents.population.flat.items()}

    def step_critics() -> None:
        critic_steps.append(agents.env_steps)
        agents.learner.critic_optimizer.step()

    for n in range(1, WARMUP + 6):
        agents.cycle(step_critics)
        assert (agents.env_steps, agents.learner.num_updates) == (n, max(0, n - WARMUP))
        has_learned = [not torch.equal(flat, first[kind]) for kind, flat in agents.population.flat.items()]
        assert all(has_learned) if n > WARMUP else not any(has_learned)
    assert critic_steps == list(range(WARMUP, WARMUP + 5))  # env steps that were over by then


def test_observations_that_are_declared_as_bytes_are_stored_as_bytes() -> None:
    space = spaces.Box(0, 255, (2, 3), np.uint8)
    pictures = EnvironmentSpec("Showing-v0", {"observation_space": space, "observation": np.full((2, 3), 200, np.uint8)})
    agents = agents_of(specs=[pictures, *TOYS[:2]])
    assert agents.replay.num_bytes == memory_bytes(sizes_of(agents.specs), 500) - 3 * 6 * 500
    run(agents, WARMUP + 1)
    assert agents.collector.draw(2).states[0, :, 0, :6].unique().tolist() == [200]


def test_the_annealing_goes_by_the_env_steps_that_are_over(monkeypatch: pytest.MonkeyPatch) -> None:
    agents, seen = agents_of(), []
    monkeypatch.setattr(agents.learner, "update", lambda draw, env_steps, critic_step: seen.append(env_steps))
    run(agents, WARMUP + 3)
    assert seen == [WARMUP, WARMUP + 1, WARMUP + 2]


@pytest.mark.parametrize("meta", [META, None], ids=["meta", "frozen"])
def test_the_objective_learns_where_meta_learning_is_given(meta: MetaLearning | None) -> None:
    agents = run(agents_of(meta), WARMUP + 1)
    before = tiny_objective()
    assert all(torch.equal(p, before.get_parameter(name)) == (meta is None) for name, p in agents.objective.named_parameters())


def test_an_update_draws_what_was_stored_before_the_env_step(monkeypatch: pytest.MonkeyPatch) -> None:
    agents, counts = run(agents_of(), WARMUP), []

    def update(draw: Draw, *_: Any) -> None:
        counts.append(agents.replay.count.tolist())
        assert draw(5).reward.shape == (3, 5, tiny_settings().window_length)

    monkeypatch.setattr(agents.learner, "update", update)
    run(agents, 2)
    assert counts == [[WARMUP] * 3, [WARMUP + 1] * 3]
    assert agents.replay.count.tolist() == [WARMUP + 2] * 3


def test_after_its_warm_up_a_life_goes_on_with_fresh_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second agent's second life begins at 20 env steps, its networks take over at 30."""
    agents, counts = run(agents_of(lifetimes=Lifetimes(40, WARMUP, (0, 20, 0))), 30), []
    fresh = Population(sizes_of(TOYS), [SEEDS[0], derive_seed(SEEDS[1], "life", 1), SEEDS[2]], tiny_settings())

    def update(*_: Any) -> None:
        for name, p in agents.population.policy.items():
            assert torch.equal(p[1], fresh.policy[name][1])
            assert not torch.equal(p[0], fresh.policy[name][0])  # the others go on learning
        counts.append((agents.replay.count - agents.replay.oldest).tolist())

    monkeypatch.setattr(agents.learner, "update", update)
    agents.cycle()
    assert counts == [[30, WARMUP, 30]]


def test_a_process_has_its_own_agents_and_they_do_the_same() -> None:
    every = run(agents_of(None), WARMUP + 4)
    for rank, own in ((0, slice(0, 2)), (1, slice(2, 3))):
        part = run(agents_of(None, resources=replace(RESOURCES, rank=rank, world_size=2)), WARMUP + 4)
        assert list(part.placement.agents) == list(range(3))[own]
        assert part.replay.action_size == every.replay.action_size == 2  # the widest of all
        for name, p in part.population.policy.items():
            torch.testing.assert_close(p, every.population.policy[name][own], rtol=1e-4, atol=1e-5)
        for agent, expected in enumerate(list(range(3))[own]):
            stored, same = part.replay.agent_state(agent), every.replay.agent_state(expected)
            assert all(torch.equal(x, same[name]) for name, x in stored.items())


def test_open_episodes_come_back_and_those_that_cannot_are_named() -> None:
    unlike = EnvironmentSpec("Counting-v0", {"global_randomness": "observation", "num_actions": 2})
    specs = [TOYS[0], unlike, TOYS[2]]
    agents = run(agents_of(specs=specs), 4)
    state, resumed = agents.state_dict(), agents_of(specs=specs)
    for agent in range(3):
        resumed.replay.load_agent_state(agent, agents.replay.agent_state(agent))
    assert resumed.load_state_dict(state) == [1]
    assert resumed.env_steps == 4
    for one in (agents, resumed):
        one.cycle()
    for agent, is_same in enumerate([True, False, True]):
        stored, expected = resumed.replay.agent_state(agent), agents.replay.agent_state(agent)
        assert all(torch.equal(x, expected[name]) for name, x in stored.items()) == is_same


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"])
def test_a_gpu_computes_what_the_cpu_computes(compile: bool) -> None:
    """In an environment whose observations are small, so that their rounding weighs little."""
    learned, specs = [], [EnvironmentSpec("Approach-v0")] * 3
    for resources in (RESOURCES, replace(RESOURCES, device="cuda", compile=compile)):
        agents = run(agents_of(specs=specs, resources=resources), WARMUP + 8)
        learned.append({**agents.population.flat, **dict(agents.objective.named_parameters())})
    for name, p in learned[1].items():
        assert p.device.type == "cuda"
        # A tenth of one of Adam's steps, which magnify the last bits of a small gradient. Eight cycles have up to eight.
        torch.testing.assert_close(p.cpu(), learned[0][name], rtol=1e-3, atol=1e-4)


class Closing(SerialGroup):
    """Notes when it is closed."""

    def __init__(self, closed: list[int], specs: Sequence[EnvironmentSpec]) -> None:
        super().__init__(specs)
        self._closed = closed

    def close(self) -> None:
        self._closed.append(len(self))
        super().close()


def test_resources_make_the_environments_and_closing_closes_them() -> None:
    closed: list[int] = []
    agents = agents_of(resources=replace(RESOURCES, make_group=partial(Closing, closed)))
    assert not closed
    agents.close()
    assert closed == [3]


def test_refuses_a_replay_that_holds_no_window() -> None:
    with pytest.raises(ValueError, match="capacity"):
        agents_of(resources=Resources(replay_capacity=3))
