"""When agents are born again: so that the objective keeps seeing beginners, which is all that it meets at meta-test time."""

from dataclasses import dataclass, replace

import numpy as np

from metagenrl_pl.agents.population import AgentSettings, PopulationSettings
from metagenrl_pl.common.placement import Placement


@dataclass(frozen=True)
class Lifetimes:
    """Lives of equal length, staggered over the agents.

        agent 0  |-----------|-----------|------      length
        agent 1  |-----|-----------|-----------|      first lives are shorter
                             ==                       the newborn's warm-up

    In the warm-up of a life after the first the environment is already the newborn's, while the learner still trains the predecessor,
    on what is stored; with the warm-up's end the newborn's networks take over and everything older than its life is forgotten. So
    every agent always has something to learn from, and a newborn begins as a fresh agent of a meta-test does. Not in the paper.

    Args:
        length: of a life, in env steps; None for a single one.
        warmup: env steps of a life before its networks learn.
        offsets: env steps by which each agent's first life is shorter.
        num_environments: to which the agents are dealt, round robin.
    """

    length: int | None
    warmup: int
    offsets: tuple[int, ...]
    num_environments: int = 1

    @classmethod
    def staggered(cls, population: PopulationSettings, agent: AgentSettings, num_environments: int = 1) -> "Lifetimes":
        """Births spread evenly over a life, also among the agents of each environment, to which they are dealt round robin.

        Raises:
            ValueError: if a life is not longer than its phase of random actions, or that phase shorter than the warm-up: during the
                warm-up there is no policy of the newborn's to be asked.
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
        return cls(length, warmup, offsets, num_environments)

    @classmethod
    def single(cls, num_agents: int) -> "Lifetimes":
        """One life for every agent."""
        return cls(None, 0, (0,) * num_agents)

    @property
    def is_anybody_elder(self) -> bool:
        """Whether there are two agents in some environment, and lives that make one the elder."""
        return self.length is not None and len(self.offsets) > self.num_environments

    def of(self, placement: Placement) -> "Lifetimes":
        """Those of the agents of one process."""
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

    def born(self, env_steps: int) -> list[int]:
        """Agents whose life after the first begins now."""
        return np.flatnonzero((self.age(env_steps) == 0) & (self.life(env_steps) > 0)).tolist()

    def grown(self, env_steps: int) -> list[int]:
        """Agents whose warm-up in a life after the first is over now."""
        return np.flatnonzero((self.age(env_steps) == self.warmup) & (self.life(env_steps) > 0)).tolist()

    def eldest(self, env_steps: int) -> np.ndarray:
        """For each agent the one of its environment whose networks have learned for longest, [P]; itself if none has for longer."""
        agents, since = np.arange(len(self.offsets)), self._birth_of_networks(env_steps)
        others = np.where(agents % self.num_environments == agents[:, None] % self.num_environments, since, np.inf)
        return np.where(since == others.min(1), agents, others.argmin(1))

    def age_of_networks(self, env_steps: int) -> np.ndarray:
        """Env steps since the birth of the agents whose networks learn now, [P]: a predecessor's during a newborn's warm-up."""
        return env_steps - self._birth_of_networks(env_steps)

    def _birth_of_networks(self, env_steps: int) -> np.ndarray:
        born = np.maximum(self.life(env_steps - self.warmup), 0) * (self.length or 0) - np.array(self.offsets)
        return np.where(born > 0, born, 0)  # of a first life the run's begin
