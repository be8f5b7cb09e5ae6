"""Meta-testing as plain functions: fresh agents, a frozen objective, environments of one's choice."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing

import numpy as np
import torch
from torch import Tensor

from metagenrl_pl.agents.population import AgentSettings, Population
from metagenrl_pl.agents.windows import widest
from metagenrl_pl.common.placement import Placement
from metagenrl_pl.common.streams import AgentStreams, derive_seed
from metagenrl_pl.environments.environment import EnvironmentSpec
from metagenrl_pl.environments.group import EnvironmentGroup, SerialGroup, sizes_of
from metagenrl_pl.experience.collector import Collector
from metagenrl_pl.experience.replay import Replay
from metagenrl_pl.learning.learner import Learner
from metagenrl_pl.objectives import Objective
from metagenrl_pl.results.rows import MetaTestRow

Act = Callable[[Tensor], Tensor]
MakeGroup = Callable[[Sequence[EnvironmentSpec]], EnvironmentGroup]
Report = Callable[[int], None]

_AGREE_EVERY = 100  # env steps after which processes ask each other whether one was told to stop


class MetaTestStopped(Exception):
    """A meta-test was told to stop before its end; it has no results."""


class Evaluator:
    """Noise-free returns: the mean of some episodes, whose starts are the same at every evaluation.

    Args:
        specs: each agent's environment.
        seeds: one for each agent.
        num_episodes: per agent; they run side by side.
        make: makes the environments; in this process by default.
        observation_size: what the agents' observations are padded to; the widest here by default.

    Raises:
        ValueError: if there is no episode to run.
    """

    def __init__(
        self,
        specs: Sequence[EnvironmentSpec],
        seeds: Sequence[int],
        num_episodes: int,
        make: MakeGroup = SerialGroup,
        observation_size: int | None = None,
    ) -> None:
        if num_episodes < 1:
            raise ValueError(f"num_episodes must be at least 1, got {num_episodes}")
        self._shape = len(specs), num_episodes
        self._seeds = [derive_seed(seed, "evaluation", episode) % 2**31 for seed in seeds for episode in range(num_episodes)]
        self.environments = make([spec for spec in specs for _ in range(num_episodes)])
        self._observation_size = observation_size or self.environments.observation_size
        self._action_sizes = np.array([action_size for _, action_size in self.environments.sizes])

    def __call__(self, act: Act) -> np.ndarray:
        """Mean return of each agent, [P]; NaN for one that has diverged, that is, with an action that is not finite.

        Args:
            act: observations [P, num_episodes, O] -> actions [P, num_episodes, A] in [-1, 1].
        """
        environments, size = self.environments, self.environments.observation_size
        observation = np.zeros((len(environments), self._observation_size), np.float32)
        returns, is_open = np.zeros(len(environments)), np.ones(len(environments), bool)
        for index, seed in enumerate(self._seeds):
            first = environments.reset(index, seed)
            observation[index, : len(first)] = first
        while is_open.any():
            action = act(torch.from_numpy(observation).view(*self._shape, -1)).cpu().flatten(0, 1).numpy()
            has_diverged = is_open & ~self._are_finite(action)
            returns[has_diverged] = np.nan  # what an environment makes of NaN, rewards included, is no merit of the agent
            is_open = is_open & ~has_diverged
            environments.begin_step(action, is_open)
            steps = environments.end_step()
            observation[is_open, :size] = steps.observation[is_open]
            returns[is_open] += steps.reward[is_open]
            is_open = is_open & ~steps.ended
        return returns.reshape(self._shape).mean(1)

    def close(self) -> None:
        """Close the environments."""
        self.environments.close()

    def _are_finite(self, action: np.ndarray) -> np.ndarray:
        """Whether the real dimensions of each action, [N, A], are finite, [N]."""
        is_real = np.arange(action.shape[1]) < self._action_sizes[:, None]
        return np.isfinite(action).all(1, where=is_real)


def fresh_seed(spec: EnvironmentSpec, number: int) -> int:
    """The own seed of a fresh agent, from its number, which is the `seed` of results.

    It does not depend on the method that trains the agent, so methods are compared on the same first weights and episodes.
    """
    return derive_seed(number, "meta-test", spec.name)


def agent_numbers(specs: Sequence[EnvironmentSpec], seed: int) -> list[int]:
    """Numbers of the fresh agents of a whole run: those in one environment are told apart, and so are those of runs with other seeds."""
    names = [spec.name for spec in specs]
    return [seed * names.count(name) + names[:agent].count(name) for agent, name in enumerate(names)]


def fresh_seeds(specs: Sequence[EnvironmentSpec], seeds: Sequence[int]) -> tuple[list[EnvironmentSpec], list[int], list[int]]:
    """Fresh agents, one for each environment and seed: their environments, users' seeds and own seeds."""
    pairs = [(spec, seed) for spec in specs for seed in seeds]
    return (
        [spec for spec, _ in pairs],
        [seed for _, seed in pairs],
        [fresh_seed(spec, seed) for spec, seed in pairs],
    )


def needed_capacity(env_steps: int, agent: AgentSettings, most: int) -> int:
    """Replay slots of a fresh agent: enough for all of its env steps, even in episodes of one step, and `most` at most."""
    return min(2 * env_steps + agent.window_length, most)


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
    make: MakeGroup = SerialGroup,
    rank: int = 0,
    world_size: int = 1,
    replay_device: torch.device | str | None = None,
    is_told_to_stop: Callable[[], bool] = lambda: False,
) -> list[MetaTestRow]:
    """Train fresh agents with a frozen objective, one for each environment and seed, all in one stacked population.

    Critics learn as usual. Draws from random streams of its own only. With several processes, which have to call this together, the
    fresh agents are dealt to them; the result is the same.

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
        make: makes the environments; in this process by default.
        rank, world_size: of this process.
        replay_device: where experience is kept; where the updates are by default.
        is_told_to_stop: asked now and then; that one process is told so is enough.

    Returns:
        One row for each evaluation of each agent, with no meta-training stage.

    Raises:
        MetaTestStopped: in every process, if one was told to stop.
    """
    all_specs, all_names, all_seeds = fresh_seeds(specs, seeds)
    placement, padded_to = Placement(len(all_specs), rank, world_size), widest(sizes_of(all_specs))
    agent_specs, agent_names, agent_seeds = placement.local(all_specs), placement.local(all_names), placement.local(all_seeds)
    rows: list[MetaTestRow] = []
    with ExitStack() as stack:
        if agent_specs:  # there may be more processes than fresh agents
            environments = stack.enter_context(closing(make(agent_specs)))
            evaluator = stack.enter_context(closing(Evaluator(agent_specs, agent_seeds, num_episodes, make, padded_to[0])))
            population = Population(environments.sizes, agent_seeds, agent, padded_to)
            learner = Learner(population, objective, agent, agent_seeds, compile=compile)
            learner.to(torch.device(device))
            capacity = needed_capacity(env_steps, agent, replay_capacity)
            replay = Replay(environments.sizes, capacity, agent.window_length, replay_device or device, padded_to)
            noise, random = agent.exploration_noise, agent.random_env_steps
            collector = Collector(environments, agent_seeds, replay, population.act, noise, random, torch.device(device))
        for done in range(1, env_steps + 1):
            if agent_specs:
                collector.begin_step()
                if collector.num_collected >= agent.warmup_env_steps:
                    learner.update(collector.draw, collector.env_steps)
                collector.end_step()
            if agent_specs and (done % evaluate_every_env_steps == 0 or done == env_steps):
                returns = evaluator(population.act)
                rows += [
                    MetaTestRow(spec.name, method, seed, done, float(value))
                    for spec, seed, value in zip(agent_specs, agent_names, returns, strict=True)
                ]
            report(done)
            if done % _AGREE_EVERY == 0 and any(placement.gather_objects(is_told_to_stop())):
                raise MetaTestStopped(f"{method}: stopped after {done:,} of {env_steps:,} env steps")
    return sorted((row for part in placement.gather_objects(rows) for row in part), key=lambda row: row.env_steps)


def random_returns(specs: Sequence[EnvironmentSpec], seeds: Sequence[int], num_episodes: int = 10) -> list[MetaTestRow]:
    """The return of uniformly random actions, in rows like those of `meta_test`."""
    agent_specs, agent_names, agent_seeds = fresh_seeds(specs, seeds)
    streams = AgentStreams(agent_seeds, "random actions")
    evaluator = Evaluator(agent_specs, agent_seeds, num_episodes)
    sizes = [action_size for _, action_size in evaluator.environments.sizes[::num_episodes]]
    returns = evaluator(lambda observation: (2 * streams.uniform(observation.shape[1], max(sizes), sizes=sizes) - 1).float())
    evaluator.close()
    return [
        MetaTestRow(spec.name, "random", seed, 0, float(value))
        for spec, seed, value in zip(agent_specs, agent_names, returns, strict=True)
    ]
