"""Updates mix no devices. PyTorch's fake tensors show this without a GPU: they have a device but no numbers, and refuse others."""

from collections.abc import Callable
from importlib import import_module

import numpy as np
import pytest
import torch
from objectives_inputs import small, small_mixture
from random_population import SEEDS, SIZES, small_population, small_settings
from torch._subclasses.fake_tensor import FakeTensorMode

from metagenrl_pl.common.streams import AgentStreams
from metagenrl_pl.experience.replay import Replay
from metagenrl_pl.learning.diagnostics import action_gradient_agreement, saturation, signal_to_noise
from metagenrl_pl.learning.inner_step import SGD, Adam, InnerStep, NormalisedSGD
from metagenrl_pl.learning.judges import CriticJudge, Judge, ReturnsJudge
from metagenrl_pl.learning.learner import Draw, Learner
from metagenrl_pl.learning.settings import MetaLearning, MetaSettings
from metagenrl_pl.objectives import CriticObjective, Objective, Reinforce

DEVICE = torch.device("meta")  # every build of PyTorch has it


def draw_from_a_replay() -> Draw:
    """Windows of agents with one step, the first of which observes bytes."""
    replay, streams = Replay(SIZES, 20, 2, DEVICE, are_bytes=[True, False, False]), AgentStreams(SEEDS, "windows")
    for agent, (observation_size, _) in enumerate(SIZES):
        replay.begin_episode(agent, np.zeros(observation_size, np.float32))
    replay.append(np.zeros((3, 3)), np.zeros(3), np.zeros(3), np.zeros((3, 5)))
    return lambda num_windows: replay.sample(num_windows, streams)


@pytest.fixture
def mode(monkeypatch: pytest.MonkeyPatch) -> FakeTensorMode:
    """Within it every tensor is fake. Adam's fused step accepts such tensors, but checks their device first."""
    monkeypatch.setattr(import_module("torch.optim.optimizer"), "_get_fused_kernels_supported_devices", lambda: [DEVICE.type])
    return FakeTensorMode(allow_non_fake_inputs=True)  # what `torch.from_numpy` makes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "inner", "judge"),
    [
        (small, SGD(), ReturnsJudge()),
        (lambda: small(use_critic_gradient=True), NormalisedSGD(), CriticJudge()),
        (small, SGD(num_steps=2), ReturnsJudge()),
        (small_mixture, Adam(), CriticJudge()),
        (CriticObjective, SGD(), CriticJudge()),
        (Reinforce, SGD(), CriticJudge()),
    ],
    ids=["learned", "with_critic", "two_steps", "mixture", "critic", "reinforce"],
)
def test_updates_and_diagnostics_mix_no_devices(
    mode: FakeTensorMode, make: Callable[[], Objective], inner: InnerStep, judge: Judge
) -> None:
    settings = small_settings(window_length=2, saturation_penalty=0.1)
    with mode:
        with DEVICE:
            population, objective = small_population(settings=settings), make()
        meta = MetaLearning(inner, judge, MetaSettings(annealing_env_steps=10))
        learner, draw = Learner(population, objective, settings, SEEDS, meta), draw_from_a_replay()
        learner.update(draw, env_steps=5)
        learner.renew(1, 77)
        networks, policy, critics, windows = population.networks, population.policy, population.critics, draw(2)
        found = [
            population.act(torch.zeros(3, 5)),
            action_gradient_agreement(networks, objective, learner.alpha, policy, critics, windows),
            saturation(networks, policy, windows),
        ]
        if learner.meta is not None:
            gradients, _ = learner.gradients_of_objective(draw(3 * (inner.num_steps + 1)))
            found += [signal_to_noise([gradient, gradient]) for gradient in gradients.values()]
    assert {x.device for x in (*found, *learner.metrics.newest.values(), *objective.parameters())} == {DEVICE}


def test_agents_descend_objectives_of_their_own_that_are_made_elsewhere(mode: FakeTensorMode) -> None:
    """As a meta-test of untrained objectives, one for each seed, of which only the first has been moved."""
    settings = small_settings(window_length=2)
    with mode:
        with DEVICE:
            population, first = small_population(settings=settings), small()
        learner = Learner(population, first, settings, SEEDS)
        learner.give_objectives([first, *(small(seed=seed) for seed in SEEDS[1:])])
        learner.update(draw_from_a_replay(), env_steps=5)
    assert {p.device for p in learner.alpha.values()} == {DEVICE}


@pytest.mark.parametrize("meta", [None, MetaLearning(SGD(), CriticJudge(), MetaSettings())])
def test_a_frozen_objective_stays_where_its_owner_has_it(monkeypatch: pytest.MonkeyPatch, meta: MetaLearning | None) -> None:
    settings, objective = small_settings(window_length=2), small()
    learner = Learner(small_population(settings=settings), objective, settings, SEEDS, meta)
    monkeypatch.setattr(learner.population, "to", lambda device: None)  # real tensors cannot become fake ones in place
    learner.to(torch.device("cpu"))
    assert learner.objective is objective
    learner.to(DEVICE)
    assert {p.device for p in learner.objective.parameters()} == {DEVICE}
    assert {p.device for p in objective.parameters()} == {torch.device("cpu") if meta is None else DEVICE}
