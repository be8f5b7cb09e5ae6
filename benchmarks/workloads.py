"""Populations that are ready to learn, for the benchmarks to time."""

from collections.abc import Iterator, Sequence

import torch

from measure import Job
from metagenrl_pl.agents.population import AgentSettings, Population
from metagenrl_pl.common.streams import derive_seed
from metagenrl_pl.environments.environment import EnvironmentSpec
from metagenrl_pl.environments.workers import make_group
from metagenrl_pl.experience.collector import Collector
from metagenrl_pl.experience.replay import Replay
from metagenrl_pl.learning.inner_step import SGD
from metagenrl_pl.learning.learner import Learner, MetaSettings
from metagenrl_pl.learning.meta_update import general_meta_gradients
from metagenrl_pl.objectives import LearnedObjective, Objective
from metagenrl_pl.training.datamodule import MacroBatch

NUM_STORED, CAPACITY = 250, 100_000  # replay slots of each agent: filled at random before anything is measured, and all


def assign_round_robin(ids: Sequence[str], num_agents: int) -> list[EnvironmentSpec]:
    """An environment for each agent, round robin."""
    return [EnvironmentSpec(ids[i % len(ids)]) for i in range(num_agents)]


class Agents:
    """A population with its environments and experience, ready to learn, as after the annealing.

    Args:
        specs: each agent's environment.
        settings: of the agents; they take no random env steps but those that fill the replay.
        seed: of agents and objective.
        objective: the learned one by default, with one SGD inner step.
        learns: whether the objective does; otherwise it is frozen.
        compile: see Learner.
        device: of everything but the environments.
        first: number of the first of these agents in a larger population.
        num_stored: env steps of each agent, taken at random at once.
        general: take the general path to the meta-gradient, through the whole inner loop, whatever the learner would choose.
        env_workers: processes that step environments; None to choose.
    """

    def __init__(
        self,
        specs: Sequence[EnvironmentSpec],
        settings: AgentSettings,
        seed: int,
        objective: Objective | None = None,
        learns: bool = True,
        compile: bool = False,
        device: torch.device | str = "cpu",
        first: int = 0,
        num_stored: int = NUM_STORED,
        general: bool = False,
        env_workers: int | None = 0,
    ) -> None:
        self.specs, self.settings = list(specs), settings
        self.seeds = [derive_seed(seed, "agent", first + i) for i in range(len(specs))]
        environments = make_group(specs, env_workers)
        self.sizes = environments.sizes
        self.objective, self.inner = objective or LearnedObjective(seed=seed), SGD()
        meta = MetaSettings(annealing_env_steps=0) if learns else None
        self.population = Population(self.sizes, self.seeds, settings)
        self.learner = Learner(self.population, self.objective, settings, self.seeds, self.inner, meta, compile)
        self.learner.to(torch.device(device))
        if general:
            assert not compile and callable(self.learner._meta_gradients)
            self.learner._meta_gradients = general_meta_gradients
        replay = Replay(self.sizes, CAPACITY, settings.window_length, device)
        noise = settings.exploration_noise
        self.collector = Collector(environments, self.seeds, replay, self.population.act, noise, random_env_steps=num_stored)
        for _ in self.batch(num_stored):
            pass

    def batch(self, num_cycles: int) -> Iterator[Collector]:
        """An env step of every agent for each of some cycles."""
        return iter(MacroBatch(self.collector, num_cycles))

    def cycles(self, num_cycles: int = 2) -> None:
        """What `MetaGenRL.training_step` does with a macro batch, without Lightning."""
        for collector in self.batch(num_cycles):
            if collector.num_collected > 0:  # agents that begin with nothing have nothing to draw in their first cycle
                self.learner.update(collector.draw, collector.env_steps)
        self.learner.checked_metrics()

    def pair_of_updates(self) -> None:
        """Two cycles without their env steps: critics twice, the rest once."""
        for _ in range(2):
            self.learner.update(self.collector.draw, self.collector.env_steps)

    def updates(self) -> dict[str, Job]:
        """The updates, on windows that stay the same."""
        learner, num_windows = self.learner, self.settings.num_windows
        windows, twice = self.collector.draw(num_windows), self.collector.draw(2 * num_windows)
        jobs: dict[str, Job] = {
            "critic update": lambda: learner._update_critics(windows, learner.critic_optimizer.step),
            "policy update": lambda: learner._update_policies(windows, share=None),
        }
        if learner.meta is not None:
            jobs["meta update"] = lambda: learner._update_objective(twice, env_steps=0)
        return jobs
