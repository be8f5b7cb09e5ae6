"""Agents that act and learn, and the one cycle in which they do: an env step of every agent, then an update from replay."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from metagenrl_pl.agents.lifetimes import Lifetimes
from metagenrl_pl.agents.population import AgentSettings, Population
from metagenrl_pl.agents.windows import widest
from metagenrl_pl.common.placement import Placement
from metagenrl_pl.environments.environment import EnvironmentSpec
from metagenrl_pl.environments.group import EnvironmentGroup, SerialGroup, sizes_of
from metagenrl_pl.experience.collector import Collector
from metagenrl_pl.experience.replay import Replay
from metagenrl_pl.learning.compiling import Notify, ignore
from metagenrl_pl.learning.learner import Draw, Learner
from metagenrl_pl.learning.settings import MetaLearning
from metagenrl_pl.objectives import Objective

MakeGroup = Callable[[Sequence[EnvironmentSpec]], EnvironmentGroup]


@dataclass(frozen=True)
class Resources:
    """Where agents live and what they compute with.

    Args:
        device: of networks and updates.
        replay_device: where experience is kept; where the updates are by default.
        replay_capacity: slots of each agent's ring buffer.
        make_group: makes the environments; in this process by default.
        compile: run the updates through `torch.compile`.
        rank, world_size: of this process, among those that share the agents.
        notify: called with a line when something is compiled.
    """

    device: torch.device | str = "cpu"
    replay_device: torch.device | str | None = None
    replay_capacity: int = 1_000_000
    make_group: MakeGroup = SerialGroup
    compile: bool = False
    rank: int = 0
    world_size: int = 1
    notify: Notify = ignore

    def placement(self, num_agents: int) -> Placement:
        """Which of some agents live in this process."""
        return Placement(num_agents, self.rank, self.world_size)


class Agents:
    """The agents of this process: environments, replay, population and learner.

    A cycle is one env step of every agent and one update. Updates are computed while environments step: they draw windows from what was
    stored before.

        begin the env step -> draw windows, update -> end the env step, store it

    Args:
        specs: each agent's environment; of all agents, also those of other processes.
        seeds: one for each agent, likewise.
        settings: of the agents.
        objective: what their policies descend.
        meta: how the objective is meta-learned; None keeps it frozen.
        lifetimes: when agents are replaced by fresh ones, of all agents; never by default.
        resources: where this happens.

    Raises:
        ValueError: if an environment cannot serve, or the replay does not fit.
    """

    def __init__(
        self,
        specs: Sequence[EnvironmentSpec],
        seeds: Sequence[int],
        settings: AgentSettings,
        objective: Objective,
        meta: MetaLearning | None = None,
        lifetimes: Lifetimes | None = None,
        resources: Resources = Resources(),
    ) -> None:
        self.specs, self.seeds, self.settings, self.resources = list(specs), list(seeds), settings, resources
        self.placement = placement = resources.placement(len(specs))
        device, sizes = torch.device(resources.device), sizes_of(specs)
        local_sizes, local_seeds, padded_to = placement.local(sizes), placement.local(seeds), widest(sizes)
        replay_device = device if resources.replay_device is None else resources.replay_device
        replay = Replay(local_sizes, resources.replay_capacity, settings.window_length, replay_device, padded_to)
        population = Population(local_sizes, local_seeds, settings, padded_to)
        self.learner = Learner(population, objective, settings, local_seeds, meta, placement, resources.compile, resources.notify)
        self.learner.to(device)
        self.collector = Collector(
            resources.make_group(placement.local(self.specs)),
            local_seeds,
            replay,
            population.act,
            settings.exploration_noise,
            settings.random_env_steps,
            device,
            (lifetimes or Lifetimes.single(len(specs))).local_to(placement),
            self.learner.renew,
        )

    @property
    def population(self) -> Population:
        """Networks of the agents."""
        return self.learner.population

    @property
    def replay(self) -> Replay:
        """Experience of the agents."""
        return self.collector.replay

    @property
    def objective(self) -> Objective:
        """What the policies descend."""
        return self.learner.objective

    @property
    def env_steps(self) -> int:
        """Env steps that each agent has taken."""
        return self.collector.env_steps

    def cycle(self, critic_step: Callable[[], Any] | None = None) -> None:
        """One env step of every agent and one update; `critic_step` as in `Learner.update`."""
        for draw in self.steps(1):
            self.learn(draw, critic_step)

    def steps(self, num_steps: int) -> Iterator[Draw]:
        """Some env steps of every agent, each handed out while it is under way, as the function that draws windows for an update."""
        for _ in range(num_steps):
            self.collector.begin_step()
            yield self.collector.draw
            self.collector.end_step()

    def learn(self, draw: Draw, critic_step: Callable[[], Any] | None = None) -> None:
        """One update, once the warm-up is over."""
        if self.collector.num_collected >= self.settings.warmup_env_steps:
            self.learner.update(draw, self.env_steps, critic_step)

    def close(self) -> None:
        """Close the environments."""
        self.collector.close()

    def state_dict(self) -> dict[str, Any]:
        """Collector and environments of all agents (gathered). Learner and replay are kept apart."""
        collector = self.collector.state_dict()
        collector["agents"] = self.placement.gather_list(collector["agents"])
        return collector

    def load_state_dict(self, state: Mapping[str, Any]) -> list[int]:
        """Restore what `state_dict` gave, also in another number of processes; the replay must have been restored before.

        Returns:
            Agents, of all processes, whose open episode could not be repeated (see `Collector.load_state_dict`).
        """
        local = {**state, "agents": self.placement.local(state["agents"])}
        lost = [self.placement.agents[agent] for agent in self.collector.load_state_dict(local)]
        return [agent for part in self.placement.gather_objects(lost) for agent in part]
