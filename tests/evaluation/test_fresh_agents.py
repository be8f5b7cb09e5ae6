"""Meta-testing: what an evaluation measures, and that fresh agents are compared on equal terms."""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from tiny_runs import tiny_objective, tiny_settings
from torch import Tensor
from toy_environments import Counting, Losing

from metagenrl_pl.common.placement import Placement
from metagenrl_pl.environments import probing
from metagenrl_pl.environments.environment import Environment, EnvironmentSpec
from metagenrl_pl.environments.workers import make_group
from metagenrl_pl.evaluation.evaluator import Evaluator
from metagenrl_pl.evaluation.fresh_agents import MetaTestPlan, fresh_seeds, meta_test, random_returns
from metagenrl_pl.evaluation.policies import load_policies
from metagenrl_pl.objectives import CriticObjective, Objective, Reinforce
from metagenrl_pl.results.rows import MetaTestRow

THREE_STEPS = EnvironmentSpec("Counting-v0", {"ends_after": 3, "num_actions": 2})  # returns 1 + 2 + 3
FIVE_STEPS = EnvironmentSpec("Counting-v0", {}, max_episode_steps=5)  # returns 1 + ... + 5
ENDLESS = EnvironmentSpec("Counting-v0")
APPROACH = EnvironmentSpec("Approach-v0")  # without a move from x: returns -4 x^2

Act = Callable[[Tensor], Tensor]


def still(observation: Tensor) -> Tensor:
    return torch.zeros(*observation.shape[:-1], 2)


def remembering(observations: list[Tensor], act: Act = still) -> Act:
    def act_and_remember(observation: Tensor) -> Tensor:
        observations.append(observation.clone())
        return act(observation)

    return act_and_remember


# ----------------------------------------------------------------------------------------------------------------- Evaluator


def test_returns_are_summed_to_each_episodes_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "MAX_EPISODE_STEPS", 7)  # where the last one ends
    evaluator = Evaluator([THREE_STEPS, FIVE_STEPS, ENDLESS], [0, 1, 2], 4)
    before = Counting.steps_taken_by_all
    np.testing.assert_array_equal(evaluator(still), [6, 15, 28])
    assert Counting.steps_taken_by_all - before == 4 * (3 + 5 + 7)  # nobody goes on after an end


def test_an_episode_that_is_lost_is_begun_again() -> None:
    """The third episode is lost in the second step. A lost environment whose episode has ended waits for the next evaluation."""
    groups: list[Losing] = []

    def make(specs: Sequence[EnvironmentSpec]) -> Losing:
        groups.append(Losing(specs, {2: 2, 4: 0}))
        return groups[-1]

    evaluator = Evaluator([THREE_STEPS, FIVE_STEPS], [0, 1], 2, make)
    np.testing.assert_array_equal(evaluator(still), [6, 15])
    assert [len(seeds) for seeds in groups[0].seeds] == [1, 1, 2, 1] and len(set(groups[0].seeds[2])) == 2
    np.testing.assert_array_equal(evaluator(still), [6, 15])
    assert not groups[0].lost.any()


def test_returns_are_the_mean_over_episodes_of_each_agent() -> None:
    observations: list[Tensor] = []
    returns = Evaluator([APPROACH, APPROACH], [0, 1], 3)(remembering(observations))
    x = observations[0][..., 0].double().numpy()  # [P, episodes]
    assert len(np.unique(x)) == 6
    np.testing.assert_allclose(returns, (-4 * x**2).mean(1), rtol=1e-6)


def test_an_agent_is_given_its_own_observations_and_actions() -> None:
    """The action of each step says who it is for; `Counting` shows the sum of the last action."""
    actions = torch.tensor([[[0.1, 0.2], [0.3, 0.4]], [[0.5, 9.0], [0.6, 9.0]]])  # the second agent has one action: 9 is padding
    observations: list[Tensor] = []
    Evaluator([THREE_STEPS, FIVE_STEPS], [0, 1], 2)(remembering(observations, lambda observation: actions))
    torch.testing.assert_close(observations[1][..., 2], torch.tensor([[0.3, 0.7], [0.5, 0.6]]))
    assert [observation[1, 0, 1].item() for observation in observations] == [0, 1, 2, 3, 4]


def test_episodes_begin_alike_at_every_evaluation() -> None:
    evaluator = Evaluator([APPROACH, THREE_STEPS], [0, 1], 3)
    starts: list[list[Tensor]] = [[], []]
    first, second = (evaluator(remembering(observations)) for observations in starts)
    assert torch.equal(starts[0][0], starts[1][0])
    np.testing.assert_array_equal(first, second)
    other: list[Tensor] = []
    Evaluator([APPROACH, THREE_STEPS], [2, 1], 3)(remembering(other))
    assert not torch.equal(other[0][0], starts[0][0][0]) and torch.equal(other[0][1], starts[0][0][1])


def test_a_better_policy_returns_more() -> None:
    evaluator = Evaluator([APPROACH], [0], 5)
    towards = evaluator(lambda observation: -observation[..., :1] / 4)
    away = evaluator(lambda observation: observation[..., :1] / 4)
    assert towards > evaluator(still) > away


@pytest.mark.parametrize("worst", [np.nan, np.inf])
def test_an_agent_that_has_diverged_has_no_return(worst: float) -> None:
    """In the second episode of the first agent, from its third step on; the second agent has one action, the other is padding."""

    def diverging(observation: Tensor) -> Tensor:
        action = torch.zeros(2, 2, 2)
        action[1, :, 1] = worst
        if observation[0, 1, 1] == 2:
            action[0, 1, 1] = worst
        return action

    before = Counting.steps_taken_by_all
    np.testing.assert_array_equal(Evaluator([THREE_STEPS, FIVE_STEPS], [0, 1], 2)(diverging), [np.nan, 15])
    assert Counting.steps_taken_by_all - before == 3 + 2 + 2 * 5  # no environment is given what is not finite

    everywhere = [dataclasses.replace(spec, id=f"toy_environments:{spec.id}") for spec in (THREE_STEPS, FIVE_STEPS)]
    with closing(Evaluator(everywhere, [0, 1], 2, partial(make_group, num_workers=1))) as evaluator:
        np.testing.assert_array_equal(evaluator(diverging), [np.nan, 15])
        np.testing.assert_array_equal(evaluator(lambda observation: torch.full((2, 2, 2), worst)), [np.nan] * 2)
        np.testing.assert_array_equal(evaluator(still), [6, 15])


def test_a_policy_of_nan_is_not_better_than_random_actions() -> None:
    """The environment's end, and a reward for every step until then, come whatever the action."""
    specs = [EnvironmentSpec("InvertedPendulum-v5")]
    (nan,) = Evaluator(specs, [0], 2)(lambda observation: torch.full((1, 2, 1), torch.nan))
    assert np.isnan(nan) and random_returns(specs, [0], 2)[0].episode_return > 0


def test_an_evaluation_needs_an_episode() -> None:
    with pytest.raises(ValueError, match="num_episodes must be at least 1, got 0"):
        Evaluator([APPROACH], [0], 0)


# ----------------------------------------------------------------------------------------------------------------- meta_test


def run(
    objective: Objective,
    specs: list[EnvironmentSpec],
    seeds: list[int],
    env_steps: int = 25,
    every: int = 10,
    report: Callable[[int], None] = lambda env_steps: None,
) -> list[MetaTestRow]:
    return meta_test("name", objective, MetaTestPlan(specs, seeds, tiny_settings(), env_steps, every, 2), report=report)


def test_every_agent_has_a_row_for_every_evaluation_and_one_at_the_end() -> None:
    reported: list[int] = []
    rows = run(tiny_objective(), [APPROACH, THREE_STEPS], [4, 7], 25, 10, reported.append)
    keys = [(row.environment, row.method, row.seed, row.env_steps, row.meta_training_env_steps) for row in rows]
    assert len(keys) == len(set(keys))
    assert set(keys) == {
        (environment, "name", seed, n, None)
        for environment in ("Approach-v0", "Counting-v0[ends_after=3,num_actions=2]")
        for seed in (4, 7)
        for n in (10, 20, 25)
    }
    assert reported == list(range(1, 26))
    assert {row.episode_return for row in rows if row.environment != "Approach-v0"} == {6.0}


def test_an_interval_that_divides_the_length_gives_one_row_at_the_end() -> None:
    assert [row.env_steps for row in run(tiny_objective(), [APPROACH], [0], 20, 10)] == [10, 20]


def test_the_objective_stays_as_it_is() -> None:
    objective = tiny_objective()
    before = {name: p.detach().clone() for name, p in objective.named_parameters()}
    returns = {row.episode_return for row in run(objective, [APPROACH], [0], 30, 10)}
    assert len(returns) == 3  # something was learned with it
    for name, p in objective.named_parameters():
        assert torch.equal(p, before[name]) and p.grad is None and p.requires_grad, name


def test_methods_begin_with_the_same_agents_and_episodes() -> None:
    """Before the warmup ends nothing is learned, so that any difference would come from first weights or starts."""
    methods = [tiny_objective(0), tiny_objective(1), CriticObjective(), Reinforce(0.99)]
    specs, seeds = [APPROACH, THREE_STEPS], [0, 1]
    at_first = [run(method, specs, seeds, 10) for method in methods]
    assert all(rows == at_first[0] for rows in at_first)
    assert len({row.episode_return for row in at_first[0] if row.environment == "Approach-v0"}) == 2  # seeds differ
    after_one_update = [tuple(row.episode_return for row in run(method, [APPROACH], seeds, 11)) for method in methods]
    assert len(set(after_one_update)) == len(methods)


def test_an_agent_does_not_depend_on_those_beside_it() -> None:
    alone = run(tiny_objective(), [APPROACH], [1], 20)
    together = run(tiny_objective(), [APPROACH], [0, 1, 2], 20)
    assert alone == [row for row in together if row.seed == 1]


def test_a_second_test_repeats_the_first() -> None:
    assert run(tiny_objective(), [APPROACH], [0], 20) == run(tiny_objective(), [APPROACH], [0], 20)


def test_rows_of_all_processes_are_told_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here another process has the same rows."""
    monkeypatch.setattr(Placement, "gather_objects", lambda self, value: [value, value])
    told: list[list[MetaTestRow]] = []
    plan = MetaTestPlan([APPROACH, THREE_STEPS], [0, 1], tiny_settings(), 20, 10, 1)
    rows = meta_test("name", tiny_objective(), plan, evaluated=lambda rows: told.append(list(rows)))
    assert [len(rows) for rows in told] == [8, 8] and [row for rows in told for row in rows] == rows


def test_kept_policies_are_those_of_the_same_networks(tmp_path: Path) -> None:
    plan = MetaTestPlan([APPROACH], [3], tiny_settings(), 5, 5, 1, tmp_path)
    meta_test("name", tiny_objective(), plan)
    file = tmp_path / "name.safetensors"
    method, agents = load_policies(file, tiny_settings(), ["toy_environments"])
    assert (method, agents.numbers, [spec.name for spec in agents.specs]) == ("name", [3], ["Approach-v0"])
    with pytest.raises(ValueError, match=r"name.safetensors holds policies of other agents \(hidden"):
        load_policies(file, tiny_settings(hidden_units=7), ["toy_environments"])
    with pytest.raises(ValueError, match="holds policies of other agents"):
        load_policies(file, tiny_settings(num_hidden_layers=3), ["toy_environments"])
    for agents_in_it in ('[{"id": "Pendulum-v1"}]', '[{"number": 1, "size": 2}]', "[3]"):
        file.write_bytes(save({"x": torch.zeros(1)}, {"method": "name", "agents": agents_in_it}))
        with pytest.raises(ValueError, match=r"name.safetensors does not say which agents it holds \("):
            load_policies(file, tiny_settings())


def test_a_test_may_be_shorter_than_a_window() -> None:
    settings = tiny_settings(window_length=20)
    assert len(meta_test("name", tiny_objective(), MetaTestPlan([THREE_STEPS], [0], settings, 3, 3, 1))) == 1


def test_own_seeds_follow_from_seed_and_environment() -> None:
    specs, seeds, own = fresh_seeds([APPROACH, THREE_STEPS], [0, 1])
    assert specs == [APPROACH, APPROACH, THREE_STEPS, THREE_STEPS] and seeds == [0, 1, 0, 1]
    assert len(set(own)) == 4
    assert fresh_seeds([THREE_STEPS], [1])[2] == own[3:]


# ------------------------------------------------------------------------------------------------------------ random actions


def test_random_actions_are_uniform_and_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    actions: list[np.ndarray] = []
    step = Environment.step

    def remember(self: Environment, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool]:
        actions.append(action.copy())
        return step(self, action)

    monkeypatch.setattr(Environment, "step", remember)
    rows = random_returns([APPROACH, FIVE_STEPS], [0, 1], 100)
    assert [row[:4] for row in rows] == [
        (name, "random", seed, 0) for name in ("Approach-v0", "Counting-v0[max_episode_steps=5]") for seed in (0, 1)
    ]
    assert [row.episode_return for row in rows[2:]] == [15, 15]
    assert rows[0].episode_return != rows[1].episode_return
    drawn = np.concatenate(actions)
    assert len(drawn) == 2 * 100 * (4 + 5) and len(np.unique(drawn)) == len(drawn)
    assert abs(drawn).max() <= 1
    assert abs(drawn.mean()) < 0.05 and abs((drawn**2).mean() - 1 / 3) < 0.03  # standard errors 0.014 and 0.007
    assert random_returns([APPROACH, FIVE_STEPS], [0, 1], 100) == rows


def test_every_seed_may_have_an_objective_of_its_own() -> None:
    """Bit for bit as if each were tested alone."""
    objectives = {seed: tiny_objective(seed=seed) for seed in (4, 7)}
    settings = tiny_settings(warmup_env_steps=5)
    specs = [EnvironmentSpec("Approach-v0"), EnvironmentSpec("Pendulum-v1")]

    def rows_of(objective: Any, seeds: list[int]) -> set[Any]:
        return set(meta_test("untrained", objective, MetaTestPlan(specs, seeds, settings, 20, 10, 1)))

    together = rows_of(objectives, [4, 7])
    assert together == rows_of(objectives[4], [4]) | rows_of(objectives[7], [7])
    assert together != rows_of(objectives[4], [4, 7])
