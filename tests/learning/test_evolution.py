"""Evolution: perturbations, ranks, the estimate of the gradient, and objectives that get better by it."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from omegaconf import OmegaConf
from torch import Tensor, nn

from metagenrl_pl.agents.lifetimes import Lifetimes
from metagenrl_pl.agents.population import AgentSettings, PopulationSettings
from metagenrl_pl.agents.stacked_networks import Parameters
from metagenrl_pl.common.placement import Placement
from metagenrl_pl.environments.environment import EnvironmentSpec
from metagenrl_pl.launch.assembly import agent_seeds
from metagenrl_pl.learning.cycle import Agents
from metagenrl_pl.learning.evolution import Evolution, EvolutionSettings
from metagenrl_pl.objectives import LearnedObjective, ObjectiveInputs, ParametricObjective

ENVIRONMENTS = ["A", "B", "A", "B", "A", "A"]


def evolution(placement: Placement | None = None, **settings: float) -> Evolution:
    return Evolution(EvolutionSettings(**settings), ENVIRONMENTS, 10, 0, placement or Placement(6))


class Towards(ParametricObjective):
    """Actions move towards a point that has to be found."""

    needs_value = False

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.point = nn.Parameter(torch.zeros(2))

    def loss(self, parameters: Parameters, inputs: ObjectiveInputs) -> Tensor:
        distance = inputs.policy_action - parameters["point"][:, None, None, :1]
        return (distance.square().mean(-1) + 0 * parameters["point"][:, None, None, 1]) * inputs.valid


def test_pairs_have_opposite_noise() -> None:
    objective = LearnedObjective(hidden_units=4, context_units=2)
    before = {name: p.detach() for name, p in objective.named_parameters()}
    alpha = evolution(noise=0.1).perturbed(objective, 3)
    for name, p in alpha.items():
        noise = (p - before[name]) / 0.1
        for one, other in ((0, 2), (1, 3), (4, 5)):
            torch.testing.assert_close(noise[one], -noise[other], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(noise[0].abs(), noise[1].abs()) and not torch.allclose(noise[0].abs(), noise[4].abs())
    later = evolution(noise=0.1).perturbed(objective, 4)
    assert not torch.allclose(later["head.out.weight"], alpha["head.out.weight"])


def test_each_process_has_its_agents() -> None:
    objective = LearnedObjective(hidden_units=4, context_units=2)
    every = evolution().perturbed(objective, 1)
    for rank in range(2):
        placement = Placement(6, rank, 2)
        part = evolution(placement).perturbed(objective, 1)
        for name, p in part.items():
            assert torch.equal(p, every[name][list(placement.agents)]), name


def test_returns_count_by_their_rank_in_the_environment() -> None:
    objective, settings = LearnedObjective(hidden_units=4, context_units=2), {"noise": 0.1}
    returns = torch.tensor([1.0, -50.0, 2.0, -40.0, 2.0, 7.0])
    gradient = evolution(**settings).gradient(objective, 0, returns)
    moved = torch.tensor([-3.0, 1e6, 500.0, 2e6, 500.0, 501.0])  # the same order in each environment
    for name, g in evolution(**settings).gradient(objective, 0, moved).items():
        torch.testing.assert_close(g, gradient[name])
    alpha = evolution(**settings).perturbed(objective, 0)
    shaped = torch.tensor([-0.5, -0.5, 0.0, 0.5, 0.0, 0.5])  # 2 and 2 tie in A
    for name, p in objective.named_parameters():
        noise = (alpha[name] - p.detach()) / 0.1
        expected = -torch.einsum("p,p...->...", shaped, noise) / (6 * 0.1)
        torch.testing.assert_close(gradient[name], expected, rtol=1e-3, atol=1e-3)


def test_it_climbs_to_a_known_optimum() -> None:
    """Returns that fall with the distance from a point, noise and another scale in each environment included."""
    objective, best = Towards(), torch.tensor([0.6, -0.3])
    optimizer, generator = torch.optim.Adam(objective.parameters(), 0.03), torch.Generator().manual_seed(0)
    evolve = evolution(noise=0.1)
    for generation in range(300):
        point = evolve.perturbed(objective, generation)["point"]
        returns = -(point - best).square().sum(-1) + 1e-3 * torch.randn(6, generator=generator)
        returns = returns * torch.tensor([1.0, 1000.0, 1.0, 1000.0, 1.0, 1.0])
        objective.point.grad = evolve.gradient(objective, generation, returns)["point"]
        optimizer.step()
    torch.testing.assert_close(objective.point.detach(), best, atol=0.1, rtol=0)


class Point(gym.Env):
    """An action a returns -(a - 1/2)^2; nothing else happens."""

    observation_space, action_space = spaces.Box(-1, 1, (1,)), spaces.Box(-1, 1, (1,))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(1, np.float32), -(float(action[0] - 0.5) ** 2), True, False, {}


gym.register("Point-v0", entry_point=Point)


def test_agents_live_with_their_own_objectives_and_find_the_best() -> None:
    """The objective pulls actions towards a point, and returns say which: the optimum is 1/2."""
    objective, num_agents, life = Towards(), 6, 16
    settings = AgentSettings(
        hidden_units=4, num_windows=4, window_length=1, random_env_steps=4, warmup_env_steps=4, policy_learning_rate=1e-1,
        policy_delay=1, exploration_noise=0.05,
    )  # fmt: skip
    specs = [EnvironmentSpec("Point-v0")] * num_agents
    meta = Evolution(EvolutionSettings(0.2, 0.3), ["Point-v0"] * num_agents, life, 0, Placement(num_agents))
    lifetimes = Lifetimes.of_population(PopulationSettings(num_agents, life), settings, in_generations=True)
    agents = Agents(specs, range(num_agents), settings, objective, meta, lifetimes)
    points, found = [], []
    for _ in range(10):
        for _ in range(life):
            points.append(agents.learner.alpha["point"].clone())
            agents.cycle()
        found.append(objective.point[0].item())
    agents.close()
    lives = torch.stack(points).unflatten(0, (10, life))
    assert lives.eq(lives[:, :1]).all() and lives[:, 0].unique(dim=0).shape[0] == 10  # one objective for each agent and life
    assert found[0] < 0.2 and np.mean(found[-4:]) == pytest.approx(0.5, abs=0.15)


def test_a_pair_differs_by_its_objectives_alone() -> None:
    """Same first weights, same episodes: without an effect of the objective both returns would be the same."""
    specs = [EnvironmentSpec("Pendulum-v1"), EnvironmentSpec("Reacher-v5")] * 4
    meta = Evolution(EvolutionSettings(), [spec.name for spec in specs], 10, 0, Placement(8))
    seeds = agent_seeds(OmegaConf.create({"seed": 3}), specs, meta)
    assert meta.pairs == [0, 1, 0, 1, 4, 5, 4, 5] and [seeds.index(seed) for seed in seeds] == meta.pairs
    assert len(set(agent_seeds(OmegaConf.create({"seed": 3}), specs, None))) == len(specs)


def test_refuses_an_odd_number() -> None:
    with pytest.raises(ValueError, match="even number of agents in each environment, A has 1"):
        Evolution(EvolutionSettings(), ["A", "B", "B"], 10, 0, Placement(3))
    for name in ("noise", "learning_rate"):
        wrong: dict[str, Any] = {name: 0.0}
        with pytest.raises(ValueError, match=f"{name} must be positive"):
            EvolutionSettings(**wrong)
