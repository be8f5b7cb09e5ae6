"""What a configuration can say about an environment: wrappers, bounds of actions, a name, arguments of evaluations."""

import json
import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import toy_environments  # noqa: F401  (registers them)
from gymnasium import spaces
from omegaconf import OmegaConf

from metagenrl_pl.environments.environment import Environment, EnvironmentSets, EnvironmentSpec
from metagenrl_pl.environments.failures import EnvironmentFailure
from metagenrl_pl.environments.spec import to_plain
from metagenrl_pl.evaluation.evaluator import Evaluator

ROOT = Path(__file__).parents[2]


def make(**entry: Any) -> Environment:
    return Environment(EnvironmentSpec.parse(entry))


def test_wrappers_go_round_each_other_from_the_inside() -> None:
    rewards = "gymnasium.wrappers.TransformReward"
    wrappers = [
        {"wrapper": rewards, "kwargs": {"func": lambda reward: reward + 1}},
        {"wrapper": rewards, "kwargs": {"func": lambda reward: 10 * reward}},
    ]
    environment, plain = make(id="Counting-v0", wrappers=wrappers), make(id="Counting-v0")
    for one in (environment, plain):
        one.reset(0)
    assert environment.step(np.zeros(1))[1] == 10 * (plain.step(np.zeros(1))[1] + 1)
    limited = make(id="Counting-v0", wrappers=["gymnasium.wrappers.FlattenObservation"], max_episode_steps=2)
    assert limited.spec.name == "Counting-v0[max_episode_steps=2,FlattenObservation]" and limited.time_limit == 2


def test_bounds_of_actions_can_be_given() -> None:
    space = spaces.Box(np.array([-np.inf, 0], np.float32), np.array([np.inf, 8], np.float32))
    environment = make(id="Echo-v0", kwargs={"action_space": space}, action_low=[-3, 0], action_high=[1, 4], name="short")
    environment.reset(0)
    assert environment.step(np.array([-1, -1]))[0].tolist() == [-3, 0] and environment.step(np.array([1, 1]))[0].tolist() == [
        1,
        4,
    ]
    assert environment.spec.name == "short"
    space = spaces.Box(-0.9, 0.9, (1,))  # of float32, in which 0.9 is another number
    assert make(id="Echo-v0", kwargs={"action_space": space}, action_low=-0.9, action_high=0.9).action_size == 1
    narrow = make(id="Pendulum-v1", action_low=-0.5, action_high=0.5)
    assert narrow.spec.name == "Pendulum-v1[action_low=-0.5,action_high=0.5]"


def test_evaluations_may_have_arguments_of_their_own() -> None:
    spec = EnvironmentSpec.parse({"id": "Counting-v0", "kwargs": {"ends_after": 7}, "evaluation_kwargs": {"ends_after": 3}})
    assert spec.name == "Counting-v0[ends_after=7,evaluation:ends_after=3]" == spec.for_evaluation.name
    evaluator = Evaluator([spec], [0], 1)
    assert evaluator(lambda observation: observation[..., :1] * 0)[0] == 1 + 2 + 3
    evaluator.close()


def test_discrete_observations_are_one_hot() -> None:
    space = spaces.Dict({"position": spaces.Box(-1, 1, (2,)), "mode": spaces.Discrete(3, start=1)})
    value = {"position": np.array([0.5, -0.5]), "mode": np.int64(2)}
    environment = make(id="Showing-v0", kwargs={"observation_space": space, "observation": value})
    assert environment.observation_size == 5 and environment.reset(0).tolist() == [0, 1, 0, 0.5, -0.5]
    assert environment.outside_of_space() is None
    wrong = make(id="Showing-v0", kwargs={"observation_space": spaces.Discrete(2), "observation": 2})
    with pytest.raises(EnvironmentFailure, match=r"the observation is 2, its space Discrete\(2\)"):
        wrong.reset(0)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"wrappers": "x.Y"}, "environment Pendulum-v1: wrappers must be a list, got 'x.Y'"),
        (
            {"wrappers": [{"path": "x.Y"}]},
            "the wrapper {'path': 'x.Y'} must be module.Class, or a mapping with the keys wrapper, kwargs",
        ),
        ({"wrappers": ["gymnasium.wrappers.Nothing"]}, "there is no wrapper gymnasium.wrappers.Nothing; valid is module.Class"),
        ({"wrappers": ["builtins.list"]}, "environment Pendulum-v1[list]: TypeError: "),
        (
            {"wrappers": [{"wrapper": "gymnasium.wrappers.ClipReward", "kwargs": 3}]},
            "kwargs of the wrapper {'wrapper': 'gymnasium.wrappers.ClipReward', 'kwargs': 3} must be a mapping of names to values, got 3",
        ),
        (
            {"action_low": 1, "action_high": 0},
            "environment Pendulum-v1[action_low=1,action_high=0]: action_low=[1.0] must be below action",
        ),
        ({"action_low": float("nan")}, "action_low and action_high must be numbers below 1e+30"),
        ({"action_low": -2e30}, "action_low and action_high must be numbers below 1e+30"),
        ({"action_low": [0, 1]}, "action_low and action_high must be numbers, or lists of the shape (1,)"),
        ({"action_low": -9}, "action_low and action_high must lie in its actions, Box(-2.0, 2.0, (1,), float32)"),
        ({"evaluation_kwargs": 3}, "evaluation_kwargs must be a mapping of names to values, got 3"),
        ({"name": 3}, "environment Pendulum-v1: name must be text, got 3"),
    ],
)
def test_mistakes_are_one_line(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        make(id="Pendulum-v1", **entry)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_environments_that_differ_have_different_names() -> None:
    same = {"id": "Pendulum-v1", "name": "mine"}
    EnvironmentSets([same, same], [same])
    with pytest.raises(ValueError, match="environment mine: two environments that differ have this name"):
        EnvironmentSets([same], [{**same, "kwargs": {"g": 3}}])


@pytest.mark.parametrize("entry", [{"kwargs": {"task": object()}}, {"wrappers": [{"wrapper": "x.Y", "kwargs": {"f": [len]}}]}])
def test_objects_are_refused_in_a_configuration(entry: dict[str, Any]) -> None:
    """A resumed run could not tell that they are the same, and policies of fresh agents could not be stored."""
    with pytest.raises(ValueError, match=r"^environment Pendulum-v1: its kwargs hold the \w+ <.*; valid are numbers"):
        EnvironmentSets(["Pendulum-v1"], [{"id": "Pendulum-v1", **entry}])
    plain = {"a": np.float32(1), "b": np.zeros(2), "c": Path("x"), "d": (1, None), "e": OmegaConf.create({"f": [True]})}
    EnvironmentSets(["Pendulum-v1"], [{"id": "Pendulum-v1", "kwargs": plain}])
    as_read = json.loads(json.dumps(plain, default=to_plain))
    assert as_read == {"a": 1.0, "b": [0.0, 0.0], "c": "x", "d": [1, None], "e": {"f": [True]}}


def test_the_wrappers_that_are_recommended_exist() -> None:
    """Those of Gymnasium, in messages and in the documentation."""
    files = [ROOT / "docs" / "extending.md", *(ROOT / "src").rglob("*.py")]
    names = {name for file in files for name in re.findall(r"gymnasium\.wrappers\.(\w+)", file.read_text())}
    assert {"FlattenObservation", "NormalizeReward"} <= names
    assert all(issubclass(getattr(gym.wrappers, name), gym.Wrapper) for name in names)
