"""Populations: an agent computes the same among others as alone."""

from functools import partial
from typing import Any

import pytest
import torch
from random_population import SEEDS, SIZES, random_windows, small_population, small_settings
from torch import Tensor

from metagenrl_pl.agents.population import AgentSettings, Population, PopulationSettings
from metagenrl_pl.agents.stacked_networks import Parameters, norm_per_agent
from metagenrl_pl.agents.windows import Windows
from metagenrl_pl.learning.critic_update import critic_gradients
from metagenrl_pl.learning.inner_step import SGD, Adam, InnerStep
from metagenrl_pl.learning.judges import CriticJudge
from metagenrl_pl.learning.learner import Learner
from metagenrl_pl.learning.meta_update import MetaTask, meta_gradients
from metagenrl_pl.learning.settings import MetaLearning, MetaSettings
from metagenrl_pl.objectives import CriticObjective, LearnedObjective, Objective, Reinforce

WIDTH = (5, 3)  # of the widest observation and action in SIZES


def real_entries(kind: str, name: str, shape: torch.Size, size: tuple[int, int]) -> Tensor:
    """Marks an agent's own entries of a padded parameter: 1 but for rows of padded inputs and columns of padded actions."""
    real = torch.zeros(shape, dtype=torch.bool)
    o, a = size
    if name == "hidden.0.weight":
        real[..., :o, :] = True
        if "critic" in kind:
            real[..., WIDTH[0] : WIDTH[0] + a, :] = True
    elif name.startswith("out") and "policy" in kind:
        real[..., :a] = True
    else:
        real[:] = True
    return real


def assert_same_agent(kind: str, padded: Parameters, alone: Parameters, agent: int, tolerance: float) -> None:
    for name, own in alone.items():
        among_others = padded[name][agent]
        real = real_entries(kind, name, among_others.shape, SIZES[agent])
        assert among_others[~real].eq(0).all(), (kind, name)
        actual = among_others[real].view_as(own[0])
        torch.testing.assert_close(actual, own[0], rtol=tolerance, atol=tolerance, msg=f"{kind} {name} of agent {agent}")


# Initial weights


def test_initial_weights_are_those_of_the_agent_alone() -> None:
    together = small_population()
    for agent in range(3):
        alone = small_population(SIZES[agent : agent + 1], SEEDS[agent : agent + 1])
        for kind, parameters in alone.parameter_sets.items():
            assert_same_agent(kind, together.parameter_sets[kind], parameters, agent, tolerance=0)


def test_initial_weights_follow_from_seed_and_size_alone() -> None:
    same_size = [(3, 2)] * 3
    first, other = small_population(same_size, [1, 2, 1]), small_population(same_size, [2, 1, 3])
    for kind, parameters in first.parameter_sets.items():
        for name, p in parameters.items():
            assert torch.equal(p[0], p[2]) and torch.equal(p[:2], other.parameter_sets[kind][name][:2].flip(0)), (kind, name)
            if "hidden" in name and name.endswith("weight"):
                assert not torch.equal(p[0], p[1]), (kind, name)


def test_layer_norm_can_be_left_out() -> None:
    assert not [name for name in small_population(settings=small_settings(layer_norm=False)).policy if "norm" in name]


def test_twins_differ() -> None:
    critics = small_population().critics
    assert all((p[:, 0] != p[:, 1]).any() for name, p in critics.items() if name.endswith("weight") and "norm" not in name)


def test_a_population_can_be_padded_wider() -> None:
    """As on a process that does not hold the widest agent."""
    wide = small_population(SIZES[:1], SEEDS[:1], padded_to=WIDTH)
    assert wide.policy["hidden.0.weight"].shape == (1, 5, 6) and wide.policy["out.bias"].shape == (1, 3)
    assert wide.critics["hidden.0.weight"].shape == (1, 2, 8, 6)
    together = small_population()
    for kind, parameters in wide.parameter_sets.items():
        assert all(torch.equal(p[0], together.parameter_sets[kind][name][0]) for name, p in parameters.items())


def test_targets_start_as_independent_copies() -> None:
    population = small_population()
    for kind in ("policy", "critics"):
        networks, targets = population.parameter_sets[kind], population.parameter_sets[f"target_{kind}"]
        for name, p in networks.items():
            assert torch.equal(p, targets[name])
            p.add_(1)
            assert targets[name].ne(p).all()


# Alone and among others


def learner_of(population: Population, seeds: list[int], objective: Objective) -> Learner:
    return Learner(population, objective, small_settings(target_noise=0.0), seeds)


def meta_task(population: Population, windows: Windows, learner: Learner, inner: InnerStep) -> MetaTask:
    moments = learner._policy_moments() if inner.needs_moments else None
    return MetaTask(population.policy, population.critics, windows, moments)


@pytest.mark.parametrize(
    "objective",
    [LearnedObjective(hidden_units=8, context_units=3), Reinforce(), CriticObjective()],
    ids=lambda o: type(o).__name__,
)
@pytest.mark.usefixtures("float64")
def test_an_agent_among_others_learns_as_it_would_alone(objective: Objective) -> None:
    """Through seven update cycles, four of them with policy and target updates; then its gradient of the objective."""
    objective = objective.double()

    def trained(sizes: list[tuple[int, int]], seeds: list[int]) -> tuple[Population, Learner]:
        population = small_population(sizes, seeds)
        learner = learner_of(population, seeds, objective)
        for update in range(7):
            batch_seeds = [seed + 100 * update for seed in seeds]
            learner.update(partial(random_windows, sizes=sizes, seeds=batch_seeds), env_steps=update)
        return population, learner

    together, together_learner = trained(SIZES, SEEDS)
    for name, p in small_population().policy.items():
        assert (together.policy[name] - p).abs().flatten(1).amax(1).gt(1e-4).all(), name  # something was learned
    for agent in range(3):
        sizes, seeds = SIZES[agent : agent + 1], SEEDS[agent : agent + 1]
        alone, alone_learner = trained(sizes, seeds)
        for kind, parameters in alone.parameter_sets.items():
            assert_same_agent(kind, together.parameter_sets[kind], parameters, agent, tolerance=1e-9)
        for metric in ("critic_loss", "policy_gradient_norm"):
            actual, expected = together_learner.metrics.newest[metric][agent], alone_learner.metrics.newest[metric][0]
            torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)

        inners: list[InnerStep] = [SGD(step_size=0.02), Adam(), SGD(step_size=0.02, num_steps=2)]
        for inner in inners if objective.learns else []:
            num_windows, gradients = 3 * (inner.num_steps + 1), []
            for population, learner, size, seed in (
                (together, together_learner, SIZES, SEEDS),
                (alone, alone_learner, sizes, seeds),
            ):
                task = meta_task(population, random_windows(num_windows, sizes=size, seeds=seed), learner, inner)
                alpha = objective.stacked_parameters(population.num_agents)
                gradients.append(meta_gradients(population.networks, objective, inner, CriticJudge(), alpha, task)[0])
            among_others, own = ({name: g[[k]] for name, g in x.items()} for x, k in zip(gradients, (agent, 0), strict=True))
            norm = float(norm_per_agent(own))
            assert norm > 1e-6
            assert float(norm_per_agent({name: among_others[name] - own[name] for name in own})) < 1e-9 * norm


@pytest.mark.usefixtures("float64")
def test_noise_on_padded_actions_does_nothing() -> None:
    population, windows = small_population(), random_windows(3)
    noise = torch.randn(windows.action.shape, generator=torch.Generator().manual_seed(0))
    real = population.networks.action_mask[:, None, None]

    def gradients(noise: Tensor) -> Parameters:
        networks, targets = population.networks, (population.target_policy, population.target_critics)
        return critic_gradients(networks, population.critics, *targets, windows, noise, 0.99)[0]

    reference, same, other = gradients(noise * real), gradients(noise), gradients(0 * noise)
    for name, g in reference.items():
        assert torch.equal(g, same[name])
        assert not torch.equal(g, other[name])


@pytest.mark.parametrize("gradient", ["clip", "normalize"])
def test_padding_stays_zero_while_the_objective_learns(gradient: Any) -> None:
    population = small_population()
    meta = MetaLearning(Adam(), CriticJudge(), MetaSettings(gradient=gradient, annealing_env_steps=4))
    learner = Learner(population, LearnedObjective(8, 3), small_settings(), SEEDS, meta)
    for update in range(6):
        learner.update(partial(random_windows, seeds=[seed + update for seed in SEEDS]), env_steps=update)
    for kind, parameters in population.parameter_sets.items():
        for name, p in parameters.items():
            for agent in range(3):
                real = real_entries(kind, name, p[agent].shape, SIZES[agent])
                assert p[agent][~real].eq(0).all() and p[agent].isfinite().all(), (kind, name)


def test_act() -> None:
    population = small_population()
    observation = random_windows(1).states[:, 0, 0]  # [P, O]
    action = population.act(observation)
    assert action.shape == (3, 3) and action.abs().max() < 1 and not action.requires_grad
    assert action.ne(0).tolist() == population.networks.action_mask.bool().tolist()
    for agent, (o, a) in enumerate(SIZES):
        alone = small_population(SIZES[agent : agent + 1], SEEDS[agent : agent + 1])
        torch.testing.assert_close(action[agent, :a], alone.act(observation[[agent], :o])[0], rtol=1e-5, atol=1e-6)


# State


def test_state_comes_back_in_place() -> None:
    population = small_population()
    for parameters in population.parameter_sets.values():
        for k, p in enumerate(parameters.values()):
            p.add_(k + 1.0)
    state = population.state_dict()
    values = {kind: {name: p.clone() for name, p in parameters.items()} for kind, parameters in population.parameter_sets.items()}
    for parameters in population.parameter_sets.values():
        for p in parameters.values():
            p.zero_()  # shares no memory with the state
    fresh = small_population(seeds=[1, 2, 3])
    tensors = {(kind, name): p for kind, parameters in fresh.parameter_sets.items() for name, p in parameters.items()}
    assert not any(torch.equal(p, state[kind][name]) for (kind, name), p in tensors.items())
    fresh.load_state_dict(state)
    for (kind, name), p in tensors.items():
        assert fresh.parameter_sets[kind][name] is p
        assert torch.equal(p, values[kind][name])


def test_a_renewed_agent_is_the_one_that_its_seed_makes_and_the_others_stay() -> None:
    population, expected = small_population(), small_population(seeds=[0, 77, 2])
    others = small_population()
    for flat in (*population.flat.values(), *others.flat.values()):
        flat.add_(1.0)
    population.renew(1, 77)
    for kind, parameters in population.parameter_sets.items():
        for name, p in parameters.items():
            assert torch.equal(p[1], expected.parameter_sets[kind][name][1]), (kind, name)
            assert torch.equal(p[[0, 2]], others.parameter_sets[kind][name][[0, 2]]), (kind, name)
    for kind, rows in population.rows.items():
        assert all(row.data_ptr() == part.data_ptr() for row, part in zip(rows, population.flat[kind].unbind(), strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_moving_keeps_the_tensors_that_optimizers_hold() -> None:
    population = small_population()
    before, rows = dict(population.flat), population.rows["critics"][1]
    population.to(torch.device("cuda"))
    assert population.device.type == "cuda"
    assert all(flat is before[kind] and flat.device.type == "cuda" for kind, flat in population.flat.items())
    assert population.rows["critics"][1] is rows and rows.data_ptr() == population.flat["critics"][1].data_ptr()
    assert all(p.device.type == "cuda" for p in population.policy.values())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_units", 0),
        ("num_windows", 0),
        ("policy_learning_rate", 0.0),
        ("target_noise", -0.1),
        ("discount", 1.5),
        ("target_rate", -1.0),
    ],
)
def test_settings_refuse(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must .*, got {value}"):
        AgentSettings(**{name: value})  # type: ignore[arg-type]


def test_a_population_has_an_agent() -> None:
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        PopulationSettings(0)
