"""When agents are replaced by fresh ones. So the objective keeps training beginners, as it does in a meta-test."""

from dataclasses import dataclass, replace

import numpy as np

from metagenrl_pl.agents.population import AgentSettings, PopulationSettings
from metagenrl_pl.common.placement import Placement


@dataclass(frozen=True)
class Lifetimes:
    """Lives of equal length, which start at different times for different agents.

        agent 0  |-----------|-----------|------      length
        agent 1  |-----|-----------|-----------|      first lives are shorter
                             ==                       warm-up of the new agent

    Every life after the first begins with a warm-up. During the warm-up the environment collects steps for the new agent, while
    the learner still trains the old agent on the replay. At its end the new networks replace the old ones and older steps are
    dropped from the replay. So every agent always has data, and a new agent begins like a fresh agent of a meta-test. Not in the
    paper.

    Args:
        length: of a life, in env steps; None if agents are never replaced.
        warmup: env steps at the start of a life before its networks are trained.
        offsets: env steps by which each agent's first life is shorter.
    """

    length: int | None
    warmup: int
    offsets: tuple[int, ...]

    @classmethod
    def of_population(cls, population: PopulationSettings, agent: AgentSettings, in_generations: bool = False) -> "Lifetimes":
        """The lifetimes of a run's agents.

        Args:
            population, agent: settings.
            in_generations: whether all lives start at the same time. Otherwise their starts are spread evenly over the length of a
                life, also among the agents of each environment.

        Raises:
            ValueError: if a life is not longer than its phase of random actions, or that phase is shorter than the warm-up. Until
                the warm-up ends, the new agent has no policy to act with.
        """
        length, warmup, random = population.lifetime_env_steps, agent.warmup_env_steps, agent.random_env_steps
        if length is not None and length <= random:
            raise ValueError(
                f"population.lifetime_env_steps must be above agent.random_env_steps={random}, or null, got {length}"
            )
        if length is not None and random < warmup:
            raise ValueError(
                f"population.lifetime_env_steps={length} needs agent.random_env_steps of at least agent.warmup_env_steps={warmup}, "
                f"got {random}"
            )
        share = 0 if in_generations else (length or 0)
        return cls(length, warmup, tuple(i * share // population.size for i in range(population.size)))

    @classmethod
    def single(cls, num_agents: int) -> "Lifetimes":
        """One life for every agent: no agent is ever replaced."""
        return cls(None, 0, (0,) * num_agents)

    def local_to(self, placement: Placement) -> "Lifetimes":
        """The lifetimes of the agents of one process."""
        return replace(self, offsets=tuple(placement.local(self.offsets)))

    def age(self, env_steps: int) -> np.ndarray:
        """Env steps since each agent's current life began, [P]."""
        first_age = np.full(len(self.offsets), env_steps)
        if self.length is None:
            return first_age
        return np.where(self.life(env_steps) > 0, (first_age + self.offsets) % self.length, first_age)

    def life(self, env_steps: int) -> np.ndarray:
        """The number of each agent's current life, counted from 0, [P]."""
        if self.length is None:
            return np.zeros(len(self.offsets), int)
        return (env_steps + np.array(self.offsets)) // self.length

    def starting(self, env_steps: int) -> list[int]:
        """Agents that begin a new life at this env step, first lives excluded."""
        return np.flatnonzero((self.age(env_steps) == 0) & (self.life(env_steps) > 0)).tolist()

    def ending_warmup(self, env_steps: int) -> list[int]:
        """Agents whose warm-up ends at this env step, first lives excluded."""
        return np.flatnonzero((self.age(env_steps) == self.warmup) & (self.life(env_steps) > 0)).tolist()
