"""When agents are replaced by fresh ones, so that the objective keeps teaching beginners, as it will have to in a meta-test."""

from dataclasses import dataclass, replace

import numpy as np

from metagenrl_pl.agents.population import AgentSettings, PopulationSettings
from metagenrl_pl.common.placement import Placement


@dataclass(frozen=True)
class Lifetimes:
    """Lives of equal length, staggered over the agents.

        agent 0  |-----------|-----------|------      length
        agent 1  |-----|-----------|-----------|      first lives are shorter
                             ==                       warm-up of the new agent

    A life after the first begins with a warm-up. The environment is the new agent's already, while the learner still trains its
    predecessor on what is stored. When the warm-up ends, the new agent's networks take over and older experience is forgotten. So every
    agent always has something to learn from, and a new one begins like a fresh agent of a meta-test. Not in the paper.

    Args:
        length: of a life, in env steps; None for a single one.
        warmup: env steps of a life before its networks learn.
        offsets: env steps by which each agent's first life is shorter.
    """

    length: int | None
    warmup: int
    offsets: tuple[int, ...]

    @classmethod
    def staggered(cls, population: PopulationSettings, agent: AgentSettings) -> "Lifetimes":
        """Starts of lives spread evenly over the length of a life, also among the agents of each environment.

        Raises:
            ValueError: if a life is not longer than its phase of random actions, or that phase shorter than the warm-up: until the
                warm-up ends the new agent has no policy to act with.
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
        offsets = tuple(i * (length or 0) // population.size for i in range(population.size))
        return cls(length, warmup, offsets)

    @classmethod
    def single(cls, num_agents: int) -> "Lifetimes":
        """One life for every agent."""
        return cls(None, 0, (0,) * num_agents)

    def local_to(self, placement: Placement) -> "Lifetimes":
        """The lifetimes of the agents of one process."""
        return replace(self, offsets=tuple(placement.local(self.offsets)))

    def age(self, env_steps: int) -> np.ndarray:
        """Env steps of each agent's life so far, [P]."""
        since = np.full(len(self.offsets), env_steps)
        return since if self.length is None else np.where(self.life(env_steps) > 0, (since + self.offsets) % self.length, since)

    def life(self, env_steps: int) -> np.ndarray:
        """Each agent's life, counted from 0, [P]."""
        if self.length is None:
            return np.zeros(len(self.offsets), int)
        return (env_steps + np.array(self.offsets)) // self.length

    def starting(self, env_steps: int) -> list[int]:
        """Agents whose life after the first begins now."""
        return np.flatnonzero((self.age(env_steps) == 0) & (self.life(env_steps) > 0)).tolist()

    def ending_warmup(self, env_steps: int) -> list[int]:
        """Agents whose warm-up in a life after the first is over now."""
        return np.flatnonzero((self.age(env_steps) == self.warmup) & (self.life(env_steps) > 0)).tolist()
