"""When agents are replaced by fresh ones."""

import pytest
from random_population import small_settings

from metagenrl_pl.agents.lifetimes import Lifetimes
from metagenrl_pl.agents.population import AgentSettings, PopulationSettings
from metagenrl_pl.common.placement import Placement


def staggered(size: int = 4, length: int | None = 100, warmup: int = 20, random: int = 20) -> Lifetimes:
    agent = small_settings(warmup_env_steps=warmup, random_env_steps=random)
    return Lifetimes.of_population(PopulationSettings(size, length), agent)


def test_starts_of_lives_are_spread_over_a_life() -> None:
    starts = {agent: [n for n in range(301) if agent in staggered().starting(n)] for agent in range(4)}
    assert starts == {0: [100, 200, 300], 1: [75, 175, 275], 2: [50, 150, 250], 3: [25, 125, 225]}


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


def test_a_warm_up_ends_once_in_each_life() -> None:
    ends = [(n, agent) for n in range(150) for agent in staggered().ending_warmup(n)]
    assert ends == [(45, 3), (70, 2), (95, 1), (120, 0), (145, 3)]  # none in a first life


def test_without_a_length_there_is_one_life() -> None:
    for lifetimes in (staggered(length=None), Lifetimes.single(4)):
        assert lifetimes.age(12345).tolist() == [12345] * 4
        assert not any(lifetimes.starting(n) or lifetimes.ending_warmup(n) for n in range(300))


def test_a_process_has_the_lifetimes_of_its_agents() -> None:
    every, second = staggered(5), staggered(5).local_to(Placement(5, 1, 2))
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


def test_generations_live_at_the_same_time() -> None:
    agent = AgentSettings(random_env_steps=3, warmup_env_steps=2)
    lifetimes = Lifetimes.of_population(PopulationSettings(4, 10), agent, in_generations=True)
    assert lifetimes.starting(9) == [] and lifetimes.starting(10) == lifetimes.starting(20) == [0, 1, 2, 3]
    assert lifetimes.ending_warmup(12) == [0, 1, 2, 3]
