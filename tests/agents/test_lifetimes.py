"""When agents are born again."""

import pytest
from random_population import small_settings

from metagenrl_pl.agents.lifetimes import Lifetimes
from metagenrl_pl.agents.population import PopulationSettings
from metagenrl_pl.common.placement import Placement


def staggered(
    size: int = 4, length: int | None = 100, warmup: int = 20, random: int = 20, num_environments: int = 1
) -> Lifetimes:
    agent = small_settings(warmup_env_steps=warmup, random_env_steps=random)
    return Lifetimes.staggered(PopulationSettings(size, length), agent, num_environments)


def test_births_are_spread_over_a_life() -> None:
    births = {agent: [n for n in range(301) if agent in staggered().born(n)] for agent in range(4)}
    assert births == {0: [100, 200, 300], 1: [75, 175, 275], 2: [50, 150, 250], 3: [25, 125, 225]}


def test_two_agents_of_an_environment_are_half_a_life_apart() -> None:
    """Six agents are dealt to three environments round robin: 0 and 3 are in the same one."""
    lifetimes = staggered(6, 600)
    assert abs(lifetimes.age(1000)[:3] - lifetimes.age(1000)[3:]).tolist() == [300, 300, 300]


def test_age_and_life() -> None:
    lifetimes = staggered()
    for env_steps, age, life in [
        (0, [0, 0, 0, 0], [0, 0, 0, 0]),
        (24, [24, 24, 24, 24], [0, 0, 0, 0]),
        (25, [25, 25, 25, 0], [0, 0, 0, 1]),
        (130, [30, 55, 80, 5], [1, 1, 1, 2]),
    ]:
        assert (lifetimes.age(env_steps).tolist(), lifetimes.life(env_steps).tolist()) == (age, life)


def test_newborns_grow_up_once_in_each_life() -> None:
    grown = [(n, agent) for n in range(150) for agent in staggered().grown(n)]
    assert grown == [(45, 3), (70, 2), (95, 1), (120, 0), (145, 3)]  # nobody in the first life


def test_the_eldest_is_the_one_of_the_environment_whose_networks_are_oldest() -> None:
    """Agents 0 and 2 are in one environment, 1 and 3 in the other; networks change when the newborn has grown up."""
    lifetimes = staggered(num_environments=2)  # grown at 120, 95, 70, 45 and every 100 env steps from then on
    for env_steps, eldest in [
        (44, [0, 1, 2, 3]),  # all are as old as each other
        (45, [0, 1, 2, 1]),
        (70, [0, 1, 0, 1]),
        (94, [0, 1, 0, 1]),
        (95, [0, 3, 0, 3]),
        (120, [2, 3, 2, 3]),
        (145, [2, 1, 2, 1]),
        (170, [0, 1, 0, 1]),
    ]:
        assert lifetimes.eldest(env_steps).tolist() == eldest, env_steps


def test_networks_are_born_when_the_newborn_has_grown_up() -> None:
    """Those of agent 3 take over at 45, of agent 2 at 70, and are counted from their births at 25 and 50."""
    lifetimes = staggered()
    for env_steps, age in [(44, [44, 44, 44, 44]), (45, [45, 45, 45, 20]), (70, [70, 70, 20, 45]), (144, [44, 69, 94, 119])]:
        assert lifetimes.age_of_networks(env_steps).tolist() == age, env_steps
    assert staggered(length=None).age_of_networks(12345).tolist() == [12345] * 4


def test_without_a_length_there_is_one_life() -> None:
    for lifetimes in (staggered(length=None), Lifetimes.single(4)):
        assert lifetimes.age(12345).tolist() == [12345] * 4
        assert not any(lifetimes.born(n) or lifetimes.grown(n) for n in range(300))


def test_a_process_has_those_of_its_agents() -> None:
    every, second = staggered(5), staggered(5).of(Placement(5, 1, 2))
    assert all(second.age(n).tolist() == every.age(n).tolist()[3:] for n in range(250))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 20}, r"population.lifetime_env_steps must be above agent.random_env_steps=20, or null, got 20"),
        ({"length": 30, "random": 30}, r"population.lifetime_env_steps must be above agent.random_env_steps=30, or null, got 30"),
        (
            {"random": 10},
            r"population.lifetime_env_steps=100 needs agent.random_env_steps of at least .*warmup_env_steps=20, got 10",
        ),
        ({"length": 0}, r"lifetime_env_steps must be at least 1, or null, got 0"),
    ],
)
def test_refusals(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        staggered(**changes)
