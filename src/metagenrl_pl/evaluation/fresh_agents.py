"""The meta-test in plain functions: a frozen objective trains fresh agents in given environments."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from metagenrl_pl.agents.population import AgentSettings
from metagenrl_pl.common.streams import AgentStreams, derive_seed
from metagenrl_pl.environments.environment import EnvironmentSpec
from metagenrl_pl.evaluation.evaluator import Evaluator
from metagenrl_pl.evaluation.policies import save_policies
from metagenrl_pl.learning.cycle import Agents, Resources
from metagenrl_pl.objectives import Objective
from metagenrl_pl.results.rows import MetaTestRow

_AGREE_EVERY = 100  # env steps between exchanges of stop requests among processes


class MetaTestStopped(Exception):
    """A meta-test was stopped before its end. It has no results."""


@dataclass(frozen=True)
class MetaTestPlan:
    """Which fresh agents are trained, for how long, and how they are evaluated.

    Args:
        specs, seeds: environments and seeds. There is one fresh agent for each pair.
        agent: settings of the agents.
        env_steps: of each agent.
        evaluate_every_env_steps: env steps between two noise-free evaluations. The last evaluation is at the end.
        num_episodes: per evaluation.
        policies: folder in which the trained policies are kept, as `save_policies` does; None for none.
    """

    specs: Sequence[EnvironmentSpec]
    seeds: Sequence[int]
    agent: AgentSettings
    env_steps: int
    evaluate_every_env_steps: int
    num_episodes: int = 10
    policies: Path | None = None


def fresh_seed(spec: EnvironmentSpec, number: int) -> int:
    """The random seed of a fresh agent. `number` is its `seed` in results.

    It does not depend on the method that trains the agent. So methods are compared with the same initial weights and episodes.
    """
    return derive_seed(number, "meta-test", spec.name)


def agent_numbers(specs: Sequence[EnvironmentSpec], seed: int) -> list[int]:
    """Numbers of a run's fresh agents. They are unique within an environment, also over runs with different seeds."""
    names = [spec.name for spec in specs]
    return [seed * names.count(name) + names[:agent].count(name) for agent, name in enumerate(names)]


def fresh_seeds(specs: Sequence[EnvironmentSpec], seeds: Sequence[int]) -> tuple[list[EnvironmentSpec], list[int], list[int]]:
    """One fresh agent for each environment and seed: lists of their environments, their `seeds` and their random seeds."""
    pairs = [(spec, seed) for spec in specs for seed in seeds]
    return (
        [spec for spec, _ in pairs],
        [seed for _, seed in pairs],
        [fresh_seed(spec, seed) for spec, seed in pairs],
    )


def meta_test(
    method: str,
    objective: Objective | Mapping[int, Objective],
    plan: MetaTestPlan,
    resources: Resources = Resources(),  # noqa: B008 (frozen)
    report: Callable[[int], None] = lambda env_steps: None,
    stop_requested: Callable[[], bool] = lambda: False,
    evaluated: Callable[[Sequence[MetaTestRow]], None] = lambda rows: None,
) -> list[MetaTestRow]:
    """Train fresh agents with a frozen objective, all in one stacked population.

    Critics learn as usual. The meta-test uses its own random streams. With several processes, each trains some of the fresh
    agents, and every process has to call this function. The result does not depend on the number of processes.

    Args:
        method: name of the method in the rows.
        objective: frozen; it does not change. Or one of the same kind for each of the plan's seeds.
        plan: which agents are trained and for how long.
        resources: devices, memory and processes.
        report: called after each env step with the number of env steps so far.
        stop_requested: called regularly. The meta-test stops if it returns true in any process.
        evaluated: called after each evaluation with its rows.

    Returns:
        One row for each evaluation of each agent, without a meta-training stage.

    Raises:
        MetaTestStopped: in every process, if a stop was requested in one of them.
    """
    specs, numbers, seeds = fresh_seeds(plan.specs, plan.seeds)
    placement = resources.placement(len(specs))
    local_specs, local_numbers = placement.local(specs), placement.local(numbers)
    rows: list[MetaTestRow] = []
    with ExitStack() as stack:
        if local_specs:  # there may be more processes than fresh agents
            agents, evaluator = _make(plan, objective, resources, stack)
        for done in range(1, plan.env_steps + 1):
            if local_specs:
                agents.cycle()
            if done % plan.evaluate_every_env_steps == 0 or done == plan.env_steps:
                values = evaluator(agents.population.act) if local_specs else ()
                returns = zip(local_specs, local_numbers, values, strict=True)
                own = [MetaTestRow(spec.name, method, number, done, float(value)) for spec, number, value in returns]
                newest = [row for part in placement.gather_objects(own) for row in part]
                rows += newest
                evaluated(newest)
            report(done)
            if done % _AGREE_EVERY == 0 and any(placement.gather_objects(stop_requested())):
                raise MetaTestStopped(f"{method}: stopped after {done:,} of {plan.env_steps:,} env steps")
        if plan.policies is not None:
            save_policies(plan.policies, method, agents.population if local_specs else None, specs, numbers, placement)
    return rows


def _make(
    plan: MetaTestPlan, objective: Objective | Mapping[int, Objective], resources: Resources, stack: ExitStack
) -> tuple[Agents, Evaluator]:
    """Fresh agents of this process and what evaluates them, closed with the stack."""
    specs, numbers, seeds = fresh_seeds(plan.specs, plan.seeds)
    of_seeds = objective if isinstance(objective, Mapping) else dict.fromkeys(numbers, objective)
    agents = Agents(specs, seeds, plan.agent, of_seeds[numbers[0]], resources=resources, env_steps=plan.env_steps)
    stack.enter_context(closing(agents))
    placement, width = agents.placement, agents.population.observation_size
    if isinstance(objective, Mapping):
        agents.learner.give_objectives([objective[number] for number in placement.local(numbers)])
    evaluator = Evaluator(placement.local(specs), placement.local(seeds), plan.num_episodes, resources.make_group, width)
    return agents, stack.enter_context(closing(evaluator))


def random_returns(specs: Sequence[EnvironmentSpec], seeds: Sequence[int], num_episodes: int = 10) -> list[MetaTestRow]:
    """The mean return of uniformly random actions, one row for each environment and seed, as from `meta_test`."""
    agent_specs, numbers, agent_seeds = fresh_seeds(specs, seeds)
    streams = AgentStreams(agent_seeds, "random actions")
    with closing(Evaluator(agent_specs, agent_seeds, num_episodes)) as evaluator:
        sizes = [action_size for _, action_size in evaluator.environments.sizes[::num_episodes]]
        returns = evaluator(lambda observation: (2 * streams.uniform(observation.shape[1], max(sizes), sizes=sizes) - 1).float())
    return [
        MetaTestRow(spec.name, "random", seed, 0, float(value))
        for spec, seed, value in zip(agent_specs, numbers, returns, strict=True)
    ]
