"""Agents learn: DDPG, through the machinery that trains them with any objective, reaches returns that are known."""

import numpy as np
import pytest
import toy_environments  # noqa: F401  (registers them)
from torch import Tensor

from metagenrl_pl.agents.population import AgentSettings
from metagenrl_pl.environments.environment import EnvironmentSpec
from metagenrl_pl.evaluation.evaluator import Evaluator
from metagenrl_pl.evaluation.fresh_agents import MetaTestPlan, fresh_seeds, meta_test
from metagenrl_pl.objectives import CriticObjective

SEEDS = [0, 1, 2]


@pytest.mark.slow
def test_agents_find_the_optimum_of_a_problem_that_is_solved_on_paper() -> None:
    """In `Approach`, from x the optimum is -4/17 x^2; who thinks of the last move alone, without bootstrapping, gets -4/5 x^2.

    Policies go on moving round the optimum, so the best of an agent's evaluations counts.
    """
    specs, num_episodes = [EnvironmentSpec("Approach-v0")], 20
    settings = AgentSettings(
        hidden_units=32,
        num_windows=64,
        window_length=4,
        random_env_steps=1000,
        warmup_env_steps=100,
        discount=1.0,
        critic_learning_rate=3e-3,
        target_rate=0.05,
    )
    rows = meta_test("critic", CriticObjective(), MetaTestPlan(specs, SEEDS, settings, 2500, 250, num_episodes))
    learned = np.array([max(row.episode_return for row in rows if row.seed == seed) for seed in SEEDS])

    agent_specs, _, agent_seeds = fresh_seeds(specs, SEEDS)
    starts = []

    def act_best(observation: Tensor) -> Tensor:
        x, num_moves = observation.unbind(-1)
        starts.append(x.clone())  # the observations change in place
        p = 1 / (1 / 4 + 4 - num_moves)
        return (-p * x).unsqueeze(-1)

    best = Evaluator(agent_specs, agent_seeds, num_episodes)(act_best)
    squares = (starts[0] ** 2).mean(1).numpy()
    np.testing.assert_allclose(best, -4 / 17 * squares, rtol=1e-4)  # arithmetic and environment agree
    nothing = -4 * squares
    score = (learned - nothing) / (best - nothing)  # 0: nothing is done, 0.85: the last move alone, 1: the optimum
    assert score.mean() > 0.93 and score.min() > 0.88 and score.max() < 1 + 1e-6, score


@pytest.mark.slow
def test_agents_solve_pendulum() -> None:
    """The pendulum hangs at about -1200 when nothing is done; the best policies keep it up for about -150. Settings of `agent=small`.

    An agent may lose a swing-up for some thousand steps and find it again, so the best of the evaluations counts.
    """
    settings = AgentSettings(hidden_units=64, num_windows=16, window_length=10, random_env_steps=1000)
    plan = MetaTestPlan([EnvironmentSpec("Pendulum-v1")], SEEDS, settings, 15_000, 1500, 10)
    rows = meta_test("critic", CriticObjective(), plan)
    means = [np.mean([row.episode_return for row in rows if row.env_steps == n]) for n in range(1500, 15_001, 1500)]
    assert means[0] < -1000 and max(means) > -200, means
