"""Environments that break a habit: what agents see of them, and what is told."""

from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch
import toy_environments  # noqa: F401  (registers them)
from odd_environments import Endless, Nested, OneArray, ScaledPictures

from metagenrl_pl.common.machine import seed_global_generators
from metagenrl_pl.environments import probing
from metagenrl_pl.environments.environment import Environment, EnvironmentSpec
from metagenrl_pl.environments.failures import EnvironmentFailure
from metagenrl_pl.environments.probing import MAX_EPISODE_STEPS, episode_limit, probe
from metagenrl_pl.environments.workers import make_group
from metagenrl_pl.evaluation.evaluator import Evaluator
from metagenrl_pl.reporting import film, film_frames

PLACE = "odd_environments.py, line "


def make(name: str) -> Environment:
    return Environment(EnvironmentSpec(f"{name}-v0"))


def play(environment: Environment, num_steps: int = 25) -> list[np.ndarray]:
    seen = [environment.reset(3)]
    for _ in range(num_steps):
        observation, *_, truncated = environment.step(np.full(environment.action_size, 0.5))
        seen.append(environment.reset(4) if truncated else observation)
    return seen


@pytest.mark.parametrize("name", ["FloatsAsIntegers", "DoublesAsHalves", "OneArray"])
def test_observations_are_not_cut_to_what_their_space_declares(name: str) -> None:
    seen, expected = play(make(name)), play(make("Sliding"))
    assert len({float(observation[0]) for observation in expected}) > 20
    assert all(np.array_equal(one, other) for one, other in zip(seen, expected, strict=True))


def test_pictures_of_fractions_are_seen_in_a_space_of_bytes() -> None:
    environment = make("ScaledPictures")
    inner: Any = environment.gymnasium.unwrapped
    seen = environment.reset(3)
    assert isinstance(inner, ScaledPictures) and np.allclose(seen, 0.5 + inner.place / 20) and 0 < seen[0] < 1


def test_an_environment_that_overwrites_its_array_does_not_change_what_was_seen() -> None:
    environment = make("OneArray")
    first = environment.reset(3)
    before = first.copy()
    environment.step(np.ones(1))
    assert isinstance(environment.gymnasium.unwrapped, OneArray) and np.array_equal(first, before)


def test_parts_are_in_the_order_of_the_space() -> None:
    environment = make("Nested")
    seen, inner = environment.reset(3), environment.gymnasium.unwrapped
    assert isinstance(inner, Nested)
    assert np.allclose(seen, [inner.place, 0, 0.25, 0.25, 0.25, 0.25, inner.place])


@pytest.mark.parametrize(("name", "limit"), [("ArrayResults", 30), ("TwoEnds", 30), ("Once", 1)])
def test_results_are_plain_numbers(name: str, limit: int) -> None:
    environment = make(name)
    environment.reset(3)
    for step in range(1, limit + 1):
        _, reward, terminated, truncated = environment.step(np.ones(1))
        assert type(reward) is float and type(terminated) is type(truncated) is bool
        assert truncated is (step == limit) and terminated is (step == limit and name == "TwoEnds")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "FourValues",
            "in step 1 of an episode odd_environments.FourValues.step returned 4 values; Gymnasium expects five values from ",
        ),
        (
            "OneValue",
            "in step 1 of an episode odd_environments.OneValue.step returned a single value; Gymnasium expects five values fr",
        ),
        (
            "OneValueAtReset",
            "at a reset odd_environments.OneValueAtReset.reset returned a single value; Gymnasium expects two values",
        ),
        ("TwoRewards", "in step 1 of an episode the reward is an array of 2 numbers; valid is one number"),
        ("NoReward", "in step 1 of an episode the reward is None; valid is one number"),
        ("FlagAsText", "in step 1 of an episode terminated is 'False'; valid is true or false"),
        ("TwoFlags", "in step 1 of an episode truncated is an array of 2 numbers; valid is true or false"),
        ("Huge", "at a reset the observation has a number that is 1e+300, which is too large for 32 bits"),
        ("Texts", "at a reset the observation is not numeric (<U1, ndarray)"),
        ("LacksPart", "at a reset the observation lacks 'goal', which is in its space"),
        ("NotANumberLater", "in step 20 of an episode the reward is nan"),
        ("RaisesLater", f"in step 20 of an episode LinAlgError: Singular matrix ({PLACE}"),
        ("ExitsLater", f"in step 20 of an episode sys.exit(5) was called ({PLACE}"),
    ],
)
@pytest.mark.parametrize("limit", [None, 100])  # with Gymnasium's wrapper for time limits and without
def test_what_cannot_be_learned_from_names_the_place(name: str, message: str, limit: int | None) -> None:
    environment = Environment(EnvironmentSpec(f"{name}-v0", max_episode_steps=limit))
    with pytest.raises(EnvironmentFailure) as caught:
        play(environment)
    assert f": {message}" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "message"), [("FailsToBegin", "AssertionError"), ("ExitsToBegin", "sys.exit(4) was called")])
def test_a_constructor_that_fails_names_the_place(name: str, message: str) -> None:
    with pytest.raises(ValueError, match="^environment ") as caught:
        make(name)
    assert str(caught.value).startswith(f"environment {name}-v0: {message} ({PLACE}")


@pytest.mark.parametrize(
    ("name", "is_evaluated", "message"),
    [
        ("Sliding", False, None),
        ("FloatsAsIntegers", False, None),
        ("ScaledPictures", False, None),
        ("GlobalRandom", False, "the same seed and actions gave other observations the second time"),
        ("Beyond", False, "its observation has the number 100"),
        ("Endless", False, None),
        (
            "Endless",
            True,
            "declares no time limit, so evaluations end its episodes after 10,000 env steps if it does not end them earlier; {id",
        ),
    ],
)
def test_a_look_before_the_run_warns(name: str, is_evaluated: bool, message: str | None) -> None:
    told = probe(EnvironmentSpec(f"{name}-v0"), is_evaluated)
    assert len(told) == (message is not None)
    assert message is None or told[0].startswith(f"environment {name}-v0: {message}")


def test_a_wrapper_that_keeps_statistics_is_told_of() -> None:
    (told,) = probe(EnvironmentSpec("Pendulum-v1", wrappers=("gymnasium.wrappers.NormalizeObservation",)), is_evaluated=False)
    assert told.endswith("; a wrapper that keeps statistics begins anew in evaluations and after a resume")


def test_evaluations_have_the_sizes_of_training() -> None:
    spec = EnvironmentSpec("Counting-v0", evaluation_kwargs={"num_actions": 2})
    assert len(probe(spec, is_evaluated=False)) == 0
    with pytest.raises(ValueError, match=r"evaluation_kwargs give 3 observations and 2 actions, not 3 and 1 as in training"):
        probe(spec, is_evaluated=True)


def test_a_time_limit_is_known_or_set() -> None:
    assert Endless.num_steps > MAX_EPISODE_STEPS == episode_limit(EnvironmentSpec("Endless-v0"))
    assert episode_limit(EnvironmentSpec("Endless-v0", max_episode_steps=7)) == 7
    assert episode_limit(EnvironmentSpec("Pendulum-v1")) == 200


def test_evaluations_and_films_end(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (probing, film_frames):
        monkeypatch.setattr(module, "MAX_EPISODE_STEPS", 12)
    specs = [EnvironmentSpec("Endless-v0"), EnvironmentSpec("Sliding-v0", max_episode_steps=20)]
    counts = np.zeros(2, int)

    def act(observation: torch.Tensor) -> torch.Tensor:
        counts[:] += observation[..., 0].ne(0).all(1).numpy()
        return torch.zeros(2, 3, 1)

    evaluator = Evaluator(specs, [0, 1], 3)
    assert (evaluator(act) < 0).all() and counts.max() == 20
    episode = film.record_episode(specs[0], lambda observation: np.zeros(1))
    assert episode.episode_return < 0 and len(episode.frames) == 13


def test_what_an_environment_draws_globally_follows_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def firsts(seed: int, num_workers: int) -> list[float]:
        seed_global_generators(seed)
        group = make_group([EnvironmentSpec("odd_environments:GlobalRandom-v0")] * 2, num_workers)
        with closing(group):
            return [float(group.reset(index, 0)[0]) for index in (0, 1, 0)]

    for num_workers in (0, 2):
        assert firsts(1, num_workers) == firsts(1, num_workers) != firsts(2, num_workers)


def test_an_error_while_closing_costs_nothing() -> None:
    group = make_group([EnvironmentSpec("Unclosable-v0"), EnvironmentSpec("Sliding-v0")], 0)
    group.reset(0, 0)
    with pytest.warns(
        UserWarning, match=r"environment Unclosable-v0: close failed, OSError: gone \(odd_environments.py, line \d+\)"
    ):
        group.close()
