"""Populations that are ready to learn, for the benchmarks to time."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from measure import Job
from metagenrl_pl.agents.population import AgentSettings
from metagenrl_pl.common.streams import derive_seed
from metagenrl_pl.environments.environment import EnvironmentSets, EnvironmentSpec
from metagenrl_pl.environments.workers import make_group
from metagenrl_pl.learning.cycle import Agents, Resources
from metagenrl_pl.learning.inner_step import SGD
from metagenrl_pl.learning.judges import CriticJudge
from metagenrl_pl.learning.meta_update import general_meta_gradients
from metagenrl_pl.learning.settings import MetaLearning, MetaSettings
from metagenrl_pl.objectives import LearnedObjective, Objective

NUM_STORED, CAPACITY = 250, 100_000  # replay slots of each agent: filled at random before anything is measured, and all
META = MetaLearning(SGD(), CriticJudge(), MetaSettings(annealing_env_steps=0))


def assign_round_robin(ids: Sequence[str], num_agents: int) -> list[EnvironmentSpec]:
    """An environment for each agent, round robin."""
    return EnvironmentSets(ids).assign_round_robin(num_agents)


def make_agents(
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
) -> Agents:
    """Agents with experience, ready to learn, as after the annealing.

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
    agents = Agents(
        specs,
        [derive_seed(seed, "agent", first + i) for i in range(len(specs))],
        replace(settings, random_env_steps=num_stored, warmup_env_steps=max(num_stored, 1)),
        objective or LearnedObjective(seed=seed),
        META if learns else None,
        resources=Resources(
            device, replay_capacity=CAPACITY, make_group=partial(make_group, num_workers=env_workers), compile=compile
        ),
    )
    if general:
        assert not compile
        agents.learner.meta_gradients = general_meta_gradients
    for _ in range(num_stored):
        agents.cycle()
    return agents


def run_cycles(agents: Agents, num_cycles: int = 2) -> None:
    """What `MetaGenRL.training_step` does with a macro batch, without Lightning."""
    for _ in range(num_cycles):
        agents.cycle()
    agents.learner.checked_metrics()


def pair_of_updates(agents: Agents) -> None:
    """Two cycles without their env steps: critics twice, the rest once."""
    for _ in range(2):
        agents.learner.update(agents.collector.draw, agents.env_steps)


def updates(agents: Agents) -> dict[str, Job]:
    """The updates, on windows that stay the same."""
    learner, num_windows = agents.learner, agents.settings.num_windows
    windows, twice = agents.collector.draw(num_windows), agents.collector.draw(2 * num_windows)
    jobs: dict[str, Job] = {
        "critic update": partial(learner.update_critics, windows),
        "policy update": partial(learner.update_policies, windows),
    }
    if learner.meta is not None:
        jobs["meta update"] = partial(learner.update_objective, twice)
    return jobs
