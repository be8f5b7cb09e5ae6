"""Gymnasium environments as agents see them: flat float32 observations, actions in [-1, 1], terminated and truncated kept apart."""

import contextlib
import difflib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


@dataclass(frozen=True)
class EnvironmentSpec:
    """Which environment to make.

    Args:
        id: a Gymnasium id, also `module:Id`.
        kwargs: for `gymnasium.make`.
        max_episode_steps: time limit in env steps; null keeps the environment's own.
    """

    id: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    max_episode_steps: int | None = None

    @classmethod
    def parse(cls, entry: "str | Mapping[str, Any] | EnvironmentSpec") -> "EnvironmentSpec":
        """From an id or a mapping with `id` and, optionally, `kwargs` and `max_episode_steps`.

        Raises:
            ValueError: if the mapping has no id, an unknown key or a time limit below 1.
        """
        if isinstance(entry, EnvironmentSpec):
            return entry
        if isinstance(entry, str):
            return cls(entry)
        known = set(cls.__dataclass_fields__)
        if "id" not in entry or not set(entry) <= known:
            raise ValueError(f"environment {dict(entry)}: valid keys are {', '.join(sorted(known))}, and id is needed")
        spec = cls(str(entry["id"]), dict(entry.get("kwargs") or {}), entry.get("max_episode_steps"))
        if spec.max_episode_steps is not None and spec.max_episode_steps < 1:
            raise ValueError(f"environment {spec.id}: max_episode_steps must be at least 1, got {spec.max_episode_steps}")
        return spec

    @property
    def name(self) -> str:
        """Its name in tables and files: the id, with what was changed."""
        changes = [f"{key}={value}" for key, value in self.kwargs.items()]
        changes += [] if self.max_episode_steps is None else [f"max_episode_steps={self.max_episode_steps}"]
        return self.id + (f"[{','.join(changes)}]" if changes else "")


@dataclass(frozen=True)
class EnvironmentSets:
    """Environments for meta-training and for meta-testing.

    Args:
        train: dealt to the agents round robin.
        test: where fresh agents are trained with the frozen objective.

    Raises:
        ValueError: if there is nothing to train on.
    """

    train: Sequence[str | Mapping[str, Any]]
    test: Sequence[str | Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        if not self.train:
            raise ValueError("train must name at least one environment, got []")

    @property
    def train_specs(self) -> list[EnvironmentSpec]:
        """The training environments."""
        return [EnvironmentSpec.parse(entry) for entry in self.train]

    @property
    def test_specs(self) -> list[EnvironmentSpec]:
        """The test environments."""
        return [EnvironmentSpec.parse(entry) for entry in self.test]


class Environment:
    """One environment.

    Args:
        spec: what to make.

    Raises:
        ValueError: if there is no such environment, its actions are not a bounded continuous Box or its observations cannot be
            flattened into a Box.
    """

    def __init__(self, spec: EnvironmentSpec) -> None:
        self.spec = spec
        self._env = _make(spec)
        action_space, observation_space = self._env.action_space, self._env.observation_space
        if not isinstance(action_space, spaces.Box) or not np.issubdtype(action_space.dtype, np.floating):
            raise ValueError(f"environment {spec.name}: its actions are {action_space}; valid is a continuous Box")
        if not (np.isfinite(action_space.low).all() and np.isfinite(action_space.high).all()):
            raise ValueError(f"environment {spec.name}: its actions are unbounded, {action_space}; valid is a bounded Box")
        if not (action_space.low < action_space.high).all():
            raise ValueError(f"environment {spec.name}: low is not below high in its actions, {action_space}")
        if not _is_flattenable(observation_space):
            raise ValueError(f"environment {spec.name}: its observations are {observation_space}; valid is a Box or boxes in a Dict or Tuple")
        self._action_shape = action_space.shape
        self._middle = (action_space.high.astype(np.float64) + action_space.low).ravel() / 2
        self._half_range = (action_space.high.astype(np.float64) - action_space.low).ravel() / 2
        self._action_dtype = action_space.dtype
        self._observation_space = observation_space
        self.observation_size = int(spaces.flatdim(observation_space))
        self.action_size = int(self._middle.size)

    def reset(self, seed: int) -> np.ndarray:
        """Begin the episode that belongs to `seed`; the first observation, [O]."""
        observation, _ = self._env.reset(seed=seed)
        return self._flat(observation)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool]:
        """Take an action in [-1, 1], [A]: next observation [O], reward, terminated, truncated."""
        scaled = (self._middle + self._half_range * action).astype(self._action_dtype).reshape(self._action_shape)
        observation, reward, terminated, truncated, _ = self._env.step(scaled)
        return self._flat(observation), float(reward), bool(terminated), bool(truncated)

    def close(self) -> None:
        """Free what the environment holds."""
        self._env.close()

    def _flat(self, observation: Any) -> np.ndarray:
        return np.asarray(spaces.flatten(self._observation_space, observation), dtype=np.float32)


def _is_flattenable(space: gym.Space) -> bool:
    if isinstance(space, spaces.Dict):
        return all(_is_flattenable(part) for part in space.spaces.values())
    if isinstance(space, spaces.Tuple):
        return all(_is_flattenable(part) for part in space.spaces)
    return isinstance(space, spaces.Box)


def _make(spec: EnvironmentSpec) -> gym.Env:
    try:
        with _quiet_stderr():
            return gym.make(spec.id, max_episode_steps=spec.max_episode_steps, disable_env_checker=True, **spec.kwargs)
    except (gym.error.Error, ModuleNotFoundError, TypeError) as error:
        near = difflib.get_close_matches(spec.id, list(gym.registry), n=1)
        hint = f"; did you mean {near[0]!r}?" if near and near[0] != spec.id else ""
        raise ValueError(f"environment {spec.name}: {str(error).splitlines()[0]}{hint}") from error


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Holds back what C libraries print to stderr while an environment is made (a deprecation line of MuJoCo for each one)."""
    try:
        stderr = sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):  # replaced by an object without a file
        yield
        return
    sys.stderr.flush()
    saved, null = os.dup(stderr), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, stderr)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, stderr)
        os.close(saved)
        os.close(null)
