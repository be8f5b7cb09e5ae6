"""Environments: what agents see of them, and what is refused in which words."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import toy_environments  # noqa: F401  (registers them)
from gymnasium import spaces

from metagenrl_pl.environments.environment import Environment, EnvironmentSets, EnvironmentSpec
from metagenrl_pl.environments.failures import EnvironmentFailure


def make(id: str, max_episode_steps: int | None = None, **kwargs: Any) -> Environment:
    return Environment(EnvironmentSpec(id, kwargs, max_episode_steps))


# --------------------------------------------------------------------------------------------------------- actions and states


def test_every_action_dimension_has_its_own_bounds() -> None:
    environment = make("Echo-v0", action_space=spaces.Box(np.array([-1, 0, 10]), np.array([1, 5, 30]), dtype=np.float32))
    environment.reset(0)
    assert environment.action_size == 3

    def received(*action: float) -> list[float]:
        return list(environment.step(np.array(action, np.float32))[0])

    assert received(-1, -1, -1) == [-1, 0, 10]
    assert received(1, 1, 1) == [1, 5, 30]
    assert received(0, 0.5, -0.5) == [0, 3.75, 15]


def test_an_action_of_several_axes_keeps_its_order() -> None:
    low = np.arange(6, dtype=np.float64).reshape(3, 2)
    environment = make("Echo-v0", action_space=spaces.Box(low, low + 100, dtype=np.float64))
    environment.reset(0)
    assert environment.action_size == environment.observation_size == 6
    observation = environment.step(np.array([-1, 1, -1, 1, -1, 1], np.float32))[0]
    assert list(observation) == [0, 101, 2, 103, 4, 105]


def test_rounding_does_not_pass_a_bound() -> None:
    low, high = -2.0, 0.1
    assert (high + low) / 2 + (high - low) / 2 > high
    environment = make("Echo-v0", action_space=spaces.Box(np.array([low]), np.array([high]), dtype=np.float64))
    environment.reset(0)
    environment.step(np.array([1.0], np.float32))  # `Echo` asserts that its action space contains the action


NESTED = spaces.Dict(
    {
        "b": spaces.Box(-np.inf, np.inf, (2, 3), np.float64),
        "a": spaces.Tuple((spaces.Box(0, 255, (2,), np.uint8), spaces.Box(-1, 1, (), np.float32))),
    }
)


@pytest.mark.parametrize(
    ("space", "observation", "flat"),
    [
        (spaces.Box(-9, 9, (3,), np.float64), np.array([1.0, 2, 3]), [1, 2, 3]),
        (spaces.Box(-9, 9, (2, 2)), np.array([[1, 2], [3, 4]], np.float32), [1, 2, 3, 4]),
        (spaces.Tuple((spaces.Box(-9, 9, (1,)), spaces.Box(-9, 9, (2,)))), (np.array([1]), np.array([2, 3])), [1, 2, 3]),
        (
            NESTED,
            {"b": np.arange(4, 10).reshape(2, 3), "a": (np.array([1, 2], np.uint8), np.array(3, np.float32))},
            [1, 2, 3, 4, 5, 6, 7, 8, 9],  # keys in alphabetical order
        ),
    ],
)
def test_observations_are_flattened(space: spaces.Space, observation: Any, flat: list[float]) -> None:
    environment = make("Showing-v0", observation_space=space, observation=observation)
    assert environment.observation_size == len(flat)
    for seen in (environment.reset(0), environment.step(np.zeros(2, np.float32))[0]):
        assert seen.dtype == np.float32 and seen.shape == (len(flat),) and list(seen) == flat


def test_an_observation_is_a_copy() -> None:
    observation = np.array([0.25, 0.5], np.float32)
    environment = make("Showing-v0", observation=observation)
    seen = environment.reset(0)
    observation[:] = 9
    assert list(seen) == [0.25, 0.5] and list(environment.reset(0)) == [9, 9]


def test_a_seed_is_an_episode() -> None:
    environment = make("Pendulum-v1")
    first, other, again = environment.reset(3), environment.reset(4), environment.reset(3)
    assert np.array_equal(first, again) and not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("limit", "ends_after", "expected"),
    [
        (None, 3, [(False, False), (False, False), (True, False)]),
        (3, None, [(False, False), (False, False), (False, True)]),
        (3, 3, [(False, False), (False, False), (True, True)]),
    ],
)
def test_terminated_and_truncated_are_apart(limit: int | None, ends_after: int | None, expected: list[tuple[bool, bool]]) -> None:
    environment = make("Counting-v0", limit, ends_after=ends_after)
    environment.reset(0)
    assert [environment.step(np.zeros(1, np.float32))[2:] for _ in range(3)] == expected


def test_a_time_limit_replaces_the_environments_own() -> None:
    def length(environment: Environment) -> int:
        environment.reset(0)
        return next(n for n in range(1, 1000) if environment.step(np.zeros(1, np.float32))[3])

    assert length(make("Pendulum-v1")) == 200
    assert length(make("Pendulum-v1", 250)) == 250
    assert length(make("Pendulum-v1", 7)) == 7


def test_kwargs_reach_the_environment() -> None:
    def velocity(environment: Environment) -> float:
        environment.reset(0)
        return float(environment.step(np.ones(1, np.float32))[0][2])

    assert velocity(make("Pendulum-v1", g=1.0)) != velocity(make("Pendulum-v1"))


def test_a_module_is_imported_for_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_environments.py").write_text(
        "import gymnasium, toy_environments\ngymnasium.register('Own-v0', entry_point=toy_environments.Counting)"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert "Own-v0" not in gym.registry
    environment = make("own_environments:Own-v0", ends_after=2)
    assert environment.observation_size == 3 and environment.spec.name == "own_environments:Own-v0[ends_after=2]"
    with pytest.raises(ValueError, match=r"^environment no_such_module:Pendulm-v1: (?!.*did you mean)"):
        make("no_such_module:Pendulm-v1")
    with pytest.raises(ValueError, match=r"^environment Foo-v1: (?!.*did you mean)"):  # Acrobot-v1 has four of its letters
        make("Foo-v1")
    with pytest.raises(ValueError, match=r"^environment own_environments:Ow-v0: .*; did you mean 'own_environments:Own-v0'\?$"):
        make("own_environments:Ow-v0")
    del gym.registry["Own-v0"]


# ------------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: make("CartPole-v1"), "environment CartPole-v1: its actions are Discrete(2); valid is a continuous Box"),
        (
            lambda: make("Showing-v0", action_space=spaces.Box(0, 3, (2,), np.int64)),
            "environment Showing-v0[action_space=Box(0, 3, (2,), int64)]: its actions are Box(0, 3, (2,), int64); valid is a con",
        ),
        (
            lambda: make("Showing-v0", action_space=spaces.Box(np.array([0, -np.inf]), np.array([1, 1]), dtype=np.float64)),
            "its actions are unbounded, Box([  0. -inf], 1.0, (2,), float64); valid is a bounded Box",
        ),
        (
            lambda: make("Showing-v0", action_space=spaces.Box(-3e38, 3e38, (1,))),
            "its actions are unbounded, Box(-3e+38, 3e+38, (1,), float32); valid is a bounded Box",
        ),
        (
            lambda: make("Spaceless-v0"),
            "environment Spaceless-v0: AttributeError: 'Spaceless' object has no attribute 'action_space'; valid is one with both",
        ),
        (
            lambda: Environment(EnvironmentSpec("Pendulum-v1", action_high={"a": 1})),
            "action_low and action_high must be numbers, or lists of the shape (1,)",
        ),
        (
            lambda: make("Showing-v0", action_space=spaces.Box(np.array([0, 1]), np.array([1, 1]), dtype=np.float64)),
            "low is not below high in its actions, Box([0. 1.], 1.0, (2,), float64)",
        ),
        (
            lambda: make("Showing-v0", action_space=spaces.Box(-1, 1, (0,))),
            "observations and 0 actions; valid is at least one of each",
        ),
        (lambda: make("Showing-v0", observation_space=spaces.Box(-1, 1, (0,))), "has 0 observations and"),
        (
            lambda: make("Showing-v0", observation_space=spaces.MultiDiscrete([5, 2])),
            "its observations are MultiDiscrete([5 2]); valid is a Box or Discrete, also in a Dict or Tuple",
        ),
        (
            lambda: make("Showing-v0", observation_space=spaces.Tuple((spaces.Box(0, 1, (1,)), spaces.Text(2)))),
            "valid is a Box or Discrete, also in a Dict or Tuple",
        ),
        (
            lambda: make("Pendulm-v1"),
            "environment Pendulm-v1: Environment `Pendulm` doesn't exist; did you mean 'Pendulum-v1'?",
        ),
        (lambda: make("Pendulum-v7"), "exist. It provides versioned environments: [ `v1` ]; did you mean 'Pendulum-v1'?"),
        (lambda: make("no_such_module:Own-v0"), "environment no_such_module:Own-v0: No module named 'no_such_module'"),
        (
            lambda: make("Pendulum-v1", h=3),
            "environment Pendulum-v1[h=3]: TypeError: PendulumEnv.__init__() got an unexpected keyword",
        ),
        (  # what its constructor asserts
            lambda: make("LunarLanderContinuous-v3", gravity=3.0),
            "environment LunarLanderContinuous-v3[gravity=3.0]: AssertionError: gravity (current value: 3.0) must be between -12 and 0",
        ),
        (
            lambda: make("Hopper-v5", xml_file="/no.xml"),
            "environment Hopper-v5[xml_file=/no.xml]: OSError: File /no.xml does not exist",
        ),
        (
            lambda: EnvironmentSpec.parse({"id": "Pendulum-v1", "limit": 3}),
            "environment Pendulum-v1: unknown key 'limit'; valid: id, kwargs, max_episode_steps, wrappers, ac",
        ),
        (
            lambda: EnvironmentSpec.parse({"kwargs": {}}),
            "environment {'kwargs': {}}: needs an id; valid is an id or a mapping with the keys id, kwargs, max_episode_steps",
        ),
        (
            lambda: EnvironmentSpec.parse(3),  # type: ignore[arg-type]
            "environment 3: needs an id; valid is an id or a mapping with the keys id, kwargs, max_episode_steps",
        ),
        (
            lambda: EnvironmentSpec.parse({"id": "Pendulum-v1", "max_episode_steps": 0}),
            "environment Pendulum-v1: max_episode_steps must be null or a whole number from 1, got 0",
        ),
        (
            lambda: EnvironmentSpec.parse({"id": "Pendulum-v1", "max_episode_steps": "7"}),
            "environment Pendulum-v1: max_episode_steps must be null or a whole number from 1, got '7'",
        ),
        (
            lambda: EnvironmentSpec.parse({"id": "Pendulum-v1", "kwargs": ["g", 3]}),
            "environment Pendulum-v1: kwargs must be a mapping of names to values, got ['g', 3]",
        ),
        (lambda: EnvironmentSets([]), "train must name at least one environment, got []"),
        (lambda: EnvironmentSets(["Pendulum-v1"], [{"id": "Hopper-v5", "x": 1}]), "environment Hopper-v5: unknown key 'x'"),
    ],
)
def test_refusals(make_it: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        make_it()
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith(("environment ", "train "))


def test_specs_are_read_from_ids_and_mappings() -> None:
    sets = EnvironmentSets(["Pendulum-v1", {"id": "Hopper-v5", "kwargs": {"a": 1}}], [{"id": "X-v0", "max_episode_steps": 5}])
    assert sets.train_specs == [EnvironmentSpec("Pendulum-v1"), EnvironmentSpec("Hopper-v5", {"a": 1})]
    assert [EnvironmentSpec.parse(entry).name for entry in (*sets.train, *sets.test)] == [
        "Pendulum-v1",
        "Hopper-v5[a=1]",
        "X-v0[max_episode_steps=5]",
    ]
    unset = EnvironmentSpec.parse({"id": "X-v0", "kwargs": None, "max_episode_steps": None})
    assert unset == EnvironmentSpec("X-v0") and EnvironmentSpec.parse(unset) is unset


# --------------------------------------------------------------------------------------------------------------------- MuJoCo

SCRIPT = """
import sys
import gymnasium
from metagenrl_pl.environments.environment import Environment, EnvironmentSpec
gymnasium.make("HalfCheetah-v5") if sys.argv[1] == "plain" else Environment(EnvironmentSpec("HalfCheetah-v5"))
"""


@pytest.mark.parametrize("way", ["plain", "ours"])
def test_the_deprecation_line_of_mujoco_is_held_back(tmp_path: Path, way: str) -> None:
    pytest.importorskip("mujoco")
    command = [sys.executable, "-c", SCRIPT, way]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    done = subprocess.run(command, check=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ("deprecated" in done.stderr) is (way == "plain")
    assert [path.name for path in tmp_path.iterdir()] == (["MUJOCO_LOG.TXT"] if way == "plain" else [])


def test_other_warnings_of_mujoco_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    mujoco = pytest.importorskip("mujoco")
    before = mujoco.get_mju_user_warning()
    handlers = []

    def made(*args: Any, **kwargs: Any) -> gym.Env:
        handlers.append(mujoco.get_mju_user_warning())
        handlers[0]("compiler attribute 'x' is deprecated")
        handlers[0]("the model is odd")
        raise gym.error.Error("no")

    monkeypatch.setattr(gym, "make", made)
    with pytest.warns(UserWarning) as caught, pytest.raises(ValueError, match="environment Hopper-v5: no"):
        make("Hopper-v5")
    assert [str(warning.message) for warning in caught] == ["MuJoCo: the model is odd"]
    assert handlers[0] is not before and mujoco.get_mju_user_warning() is before


@pytest.mark.parametrize(
    ("observation", "reward", "message"),
    [
        ([0.0, 0.0], np.nan, "in step 2 of an episode the reward is nan"),
        ([0.0, 0.0], -np.inf, "in step 2 of an episode the reward is -inf"),
        ([0.0, 0.0], 1e39, "in step 2 of an episode the reward is 1e+39"),  # infinite in 32 bits
        ([0.0, np.inf], 0.0, "at a reset the observation has a number that is inf"),
        ([0.0, 0.0, 0.0], 0.0, "at a reset the observation has 3 numbers, 2 in its space"),
    ],
)
def test_what_cannot_be_learned_from_is_told(observation: list[float], reward: float, message: str) -> None:
    environment = make("Showing-v0", observation=np.array(observation))
    with pytest.raises(EnvironmentFailure) as caught:
        environment.reset(0)
        environment.gymnasium.unwrapped._reward = 3e38  # type: ignore[attr-defined]
        assert environment.step(np.zeros(2))[1] == 3e38
        environment.gymnasium.unwrapped._reward = reward  # type: ignore[attr-defined]
        environment.step(np.zeros(2))
    assert str(caught.value).startswith("environment Showing-v0") and str(caught.value).endswith(message)
