"""Meta-testing as plain functions: fresh agents, a frozen objective, environments of one's choice."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from metagenrl_pl.collector import Collector
from metagenrl_pl.envs import Environment, EnvironmentSpec
from metagenrl_pl.learner import Learner
from metagenrl_pl.objectives import Objective
from metagenrl_pl.population import AgentSettings, Population
from metagenrl_pl.replay import Replay
from metagenrl_pl.results import MetaTestRow
from metagenrl_pl.streams import AgentStreams, derive_seed

Act = Callable[[Tensor], Tensor]
Report = Callable[[int], None]


class Evaluator:
    """Noise-free returns: the mean of some episodes, whose starts are the same at every evaluation.

    Args:
        specs: each agent's environment.
        seeds: one for each agent.
        num_episodes: per agent; they run side by side.

    Raises:
        ValueError: if there is no episode to run.
    """

    def __init__(self, specs: Sequence[EnvironmentSpec], seeds: Sequence[int], num_episodes: int) -> None:
        if num_episodes < 1:
            raise ValueError(f"num_episodes must be at least 1, got {num_episodes}")
        self._seeds = list(seeds)
        self.environments = [[Environment(spec) for _ in range(num_episodes)] for spec in specs]

    def __call__(self, act: Act) -> np.ndarray:
        """Mean return of each agent, [P].

        Args:
            act: observations [P, num_episodes, O] -> actions [P, num_episodes, A] in [-1, 1].
        """
        widest = max(environments[0].observation_size for environments in self.environments)
        num_agents, num_episodes = len(self.environments), len(self.environments[0])
        observation = np.zeros((num_agents, num_episodes, widest), np.float32)
        returns, is_open = np.zeros((num_agents, num_episodes)), np.ones((num_agents, num_episodes), bool)
        for (agent, episode), environment in self._each():
            first = environment.reset(derive_seed(self._seeds[agent], "evaluation", episode) % 2**31)
            observation[agent, episode, : len(first)] = first
        while is_open.any():
            action = act(torch.from_numpy(observation)).cpu().numpy()
            for (agent, episode), environment in self._each():
                if is_open[agent, episode]:
                    step = environment.step(action[agent, episode, : environment.action_size])
                    observation[agent, episode, : environment.observation_size] = step[0]
                    returns[agent, episode] += step[1]
                    is_open[agent, episode] = not (step[2] or step[3])
        return returns.mean(1)

    def _each(self) -> list[tuple[tuple[int, int], Environment]]:
        return [((p, n), environment) for p, row in enumerate(self.environments) for n, environment in enumerate(row)]

    def close(self) -> None:
        """Close the environments."""
        for _, environment in self._each():
            environment.close()


def fresh_seeds(specs: Sequence[EnvironmentSpec], seeds: Sequence[int]) -> tuple[list[EnvironmentSpec], list[int], list[int]]:
    """Fresh agents, one for each environment and seed: their environments, users' seeds and own seeds.

    An agent's own seed does not depend on the method that trains it, so methods are compared on the same first weights and episodes.
    """
    pairs = [(spec, seed) for spec in specs for seed in seeds]
    return (
        [spec for spec, _ in pairs],
        [seed for _, seed in pairs],
        [derive_seed(seed, "meta-test", spec.name) for spec, seed in pairs],
    )


def meta_test(
    method: str,
    objective: Objective,
    specs: Sequence[EnvironmentSpec],
    seeds: Sequence[int],
    agent: AgentSettings,
    env_steps: int,
    evaluate_every_env_steps: int,
    num_episodes: int = 10,
    replay_capacity: int = 1_000_000,
    device: torch.device | str = "cpu",
    compile: bool = False,
    report: Report = lambda env_steps: None,
) -> list[MetaTestRow]:
    """Train fresh agents with a frozen objective, one for each environment and seed, all in one stacked population.

    Critics learn as usual. Draws from random streams of its own only.

    Args:
        method: what the rows are called.
        objective: stays as it is.
        specs, seeds: environments and seeds.
        agent: settings of the agents.
        env_steps: of each agent.
        evaluate_every_env_steps: interval of the noise-free evaluations; there is one at the end as well.
        num_episodes: per evaluation.
        replay_capacity: slots of each agent, if it needs that many.
        device, compile: as in training.
        report: told the env steps that are done.

    Returns:
        One row for each evaluation of each agent, with no meta-training stage.
    """
    agent_specs, agent_names, agent_seeds = fresh_seeds(specs, seeds)
    environments = [Environment(spec) for spec in agent_specs]
    sizes = [(environment.observation_size, environment.action_size) for environment in environments]
    population = Population(sizes, agent_seeds, agent)
    learner = Learner(population, objective, agent, agent_seeds, compile=compile)
    learner.to(torch.device(device))
    enough = 2 * env_steps + agent.window_length  # even for episodes of one step
    replay = Replay(sizes, min(enough, replay_capacity), agent.window_length, device)
    collector = Collector(environments, agent_seeds, replay, population.act, agent.exploration_noise, agent.random_env_steps)
    evaluator = Evaluator(agent_specs, agent_seeds, num_episodes)
    rows = []
    for done in range(1, env_steps + 1):
        collector.step()
        if done >= agent.warmup_env_steps:
            learner.update(collector.draw, done)
        if done % evaluate_every_env_steps == 0 or done == env_steps:
            returns = evaluator(population.act)
            rows += [
                MetaTestRow(spec.name, method, seed, done, float(value))
                for spec, seed, value in zip(agent_specs, agent_names, returns, strict=True)
            ]
        report(done)
    evaluator.close()
    collector.close()
    return rows


def random_returns(specs: Sequence[EnvironmentSpec], seeds: Sequence[int], num_episodes: int = 10) -> list[MetaTestRow]:
    """The return of uniformly random actions, in rows like those of `meta_test`."""
    agent_specs, agent_names, agent_seeds = fresh_seeds(specs, seeds)
    streams = AgentStreams(agent_seeds, "random actions")
    evaluator = Evaluator(agent_specs, agent_seeds, num_episodes)
    sizes = [environments[0].action_size for environments in evaluator.environments]
    returns = evaluator(lambda observation: (2 * streams.uniform(observation.shape[1], max(sizes), sizes=sizes) - 1).float())
    evaluator.close()
    return [
        MetaTestRow(spec.name, "random", seed, 0, float(value))
        for spec, seed, value in zip(agent_specs, agent_names, returns, strict=True)
    ]
