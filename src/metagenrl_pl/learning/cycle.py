"""Agents that act and learn. One cycle is an env step of every agent and an update from the replay."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from metagenrl_pl.agents.lifetimes import Lifetimes
from metagenrl_pl.agents.population import AgentSettings, Population
from metagenrl_pl.agents.windows import widest
from metagenrl_pl.common.placement import Placement
from metagenrl_pl.environments.environment import EnvironmentSpec
from metagenrl_pl.environments.group import EnvironmentGroup, SerialGroup, layouts_of
from metagenrl_pl.experience.collector import Collector
from metagenrl_pl.experience.memory import slots_for
from metagenrl_pl.experience.replay import Replay
from metagenrl_pl.learning.compiling import Notify, ignore
from metagenrl_pl.learning.evolution import Evolution
from metagenrl_pl.learning.learner import Learner
from metagenrl_pl.learning.settings import MetaLearning
from metagenrl_pl.objectives import Objective

MakeGroup = Callable[[Sequence[EnvironmentSpec]], EnvironmentGroup]


@dataclass(frozen=True)
class Resources:
    """Devices, memory and processes that the agents use.

    Args:
        device: of networks and updates.
        replay_device: of the replay; `device` by default.
        replay_capacity: slots of each agent's ring buffer, at most.
        make_group: makes the environments; in this process by default.
        compile: whether updates are compiled by `torch.compile`.
        rank, world_size: of this process, among the processes that share the agents.
        num_processes: processes on this machine, which share its memory.
        notify: called with a message when something is compiled.
    """

    device: torch.device | str = "cpu"
    replay_device: torch.device | str | None = None
    replay_capacity: int = 1_000_000
    make_group: MakeGroup = SerialGroup
    compile: bool = False
    rank: int = 0
    world_size: int = 1
    num_processes: int = 1
    notify: Notify = ignore

    def placement(self, num_agents: int) -> Placement:
        """The placement of `num_agents` agents over all processes."""
        return Placement(num_agents, self.rank, self.world_size)


class Agents:
    """The agents of this process: environments, replay, population and learner.

    A cycle is one env step of every agent and one update. The update runs while the environments step, and draws windows of
    earlier steps only:

        begin the env step -> draw windows, update -> end the env step, store it

    Args:
        specs: environments of all agents, also of agents in other processes.
        seeds: one for each of all agents.
        settings: of the agents.
        objective: that the policies descend.
        meta: how the objective is meta-learned; None keeps it frozen.
        lifetimes: when agents are replaced by fresh ones, for all agents; never by default.
        resources: devices, memory and processes.
        env_steps: of each agent, if known. The replay is no larger than these need.

    Raises:
        ValueError: if an environment is not usable, or the replay does not fit into memory.
    """

    def __init__(
        self,
        specs: Sequence[EnvironmentSpec],
        seeds: Sequence[int],
        settings: AgentSettings,
        objective: Objective,
        meta: MetaLearning | Evolution | None = None,
        lifetimes: Lifetimes | None = None,
        resources: Resources = Resources(),
        env_steps: int | None = None,
    ) -> None:
        self.specs, self.seeds, self.settings, self.resources = list(specs), list(seeds), settings, resources
        self.placement = placement = resources.placement(len(specs))
        device, (sizes, are_bytes) = torch.device(resources.device), layouts_of(specs)
        local_sizes, local_seeds, padded_to = placement.local(sizes), placement.local(seeds), widest(sizes)
        replay_device = device if resources.replay_device is None else resources.replay_device
        local_bytes = placement.local(are_bytes)
        capacity = slots_for(env_steps, settings.window_length, resources.replay_capacity)
        replay = Replay(local_sizes, capacity, settings.window_length, replay_device, padded_to, local_bytes)
        population = Population(local_sizes, local_seeds, settings, padded_to)
        self.learner = Learner(
            population,
            objective,
            settings,
            seeds=local_seeds,
            meta=meta,
            placement=placement,
            compile=resources.compile,
            notify=resources.notify,
        )
        self.learner.to(device)
        self.collector = Collector(
            resources.make_group(placement.local(self.specs)),
            seeds=local_seeds,
            replay=replay,
            act=population.act,
            exploration_noise=settings.exploration_noise,
            random_env_steps=settings.random_env_steps,
            update_device=device,
            lifetimes=(lifetimes or Lifetimes.single(len(specs))).local_to(placement),
            renew=self.learner.renew,
        )

    @property
    def population(self) -> Population:
        """The networks of this process's agents."""
        return self.learner.population

    @property
    def replay(self) -> Replay:
        """The experience of this process's agents."""
        return self.collector.replay

    @property
    def objective(self) -> Objective:
        """The objective that the policies descend."""
        return self.learner.objective

    @property
    def env_steps(self) -> int:
        """Env steps that each agent has taken."""
        return self.collector.env_steps

    def cycle(self, critic_step: Callable[[], Any] | None = None) -> None:
        """One env step of every agent and one update, after the warm-up. `critic_step` as in `Learner.update`."""
        learner, evolution = self.learner, self.learner.evolution
        self.collector.begin_step()
        if self.collector.num_collected >= self.settings.warmup_env_steps:
            learner.update(self.collector.draw, self.env_steps, critic_step)
        self.collector.end_step()
        if evolution is not None and evolution.ends_at(self.env_steps):
            learner.end_generation(self.collector.newest_returns())

    def close(self) -> None:
        """Close the environments of this process."""
        self.collector.close()

    def state_dict(self) -> dict[str, Any]:
        """The collector's state, gathered from all processes. Learner and replay are saved separately."""
        collector = self.collector.state_dict()
        collector["agents"] = self.placement.gather_list(collector["agents"])
        return collector

    def load_state_dict(self, state: Mapping[str, Any]) -> list[int]:
        """Restore the result of `state_dict`, also with another number of processes. The replay must have been restored before.

        Returns:
            Agents of all processes whose open episode could not be repeated (see `Collector.load_state_dict`).
        """
        if len(state["agents"]) != self.placement.num_agents:
            raise ValueError(f"it has the experience of {len(state['agents'])} agents, not {self.placement.num_agents}")
        local = {**state, "agents": self.placement.local(state["agents"])}
        lost = [self.placement.agents[agent] for agent in self.collector.load_state_dict(local)]
        return [agent for part in self.placement.gather_objects(lost) for agent in part]
