"""Environments that are stepped together: what collection and evaluation see of them, wherever they run."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from metagenrl_pl.environments.environment import Environment, EnvironmentSpec


class Steps(NamedTuple):
    """One step of E environments; observations are zero-padded to the widest. Unspecified where an environment was left out."""

    observation: np.ndarray  # [E, O], float32
    reward: np.ndarray  # [E], float64
    terminated: np.ndarray  # [E], bool
    truncated: np.ndarray  # [E], bool

    @property
    def ended(self) -> np.ndarray:
        """Whether the episode is over, [E]."""
        return self.terminated | self.truncated


class Repeated(NamedTuple):
    """Where repeating an episode's actions led."""

    observation: np.ndarray  # [O] of this environment
    episode_return: float
    ended: bool


class EnvironmentGroup(ABC):
    """E environments. Whichever way they run, the same calls give the same bits.

    Args:
        specs: what to make.
        sizes: observation and action size of each.
    """

    def __init__(self, specs: Sequence[EnvironmentSpec], sizes: Sequence[tuple[int, int]]) -> None:
        self.specs, self.sizes = list(specs), list(sizes)
        self.observation_size, self.action_size = max(o for o, _ in sizes), max(a for _, a in sizes)

    def __len__(self) -> int:
        return len(self.specs)

    @abstractmethod
    def reset(self, index: int, seed: int) -> np.ndarray:
        """Begin the episode of an environment that belongs to `seed`; the first observation, [O] of this environment."""

    @abstractmethod
    def begin_step(self, action: np.ndarray, is_open: np.ndarray | None = None) -> None:
        """Hand out actions; `end_step` has to follow before anything else is asked.

        Args:
            action: in [-1, 1], [E, at least the widest A]; what exceeds an environment's own size is not read. Copied if need be.
            is_open: which environments take a step, [E]; all by default.
        """

    @abstractmethod
    def end_step(self) -> Steps:
        """What came of the actions. The arrays are the caller's."""

    @abstractmethod
    def repeat(self, index: int, seed: int, actions: np.ndarray) -> Repeated:
        """Reset an environment and take these actions, [N, A of this environment]; stops where the episode ends."""

    @abstractmethod
    def close(self) -> None:
        """Free what the environments hold."""


class SerialGroup(EnvironmentGroup):
    """In this process, one after another.

    Args:
        specs: what to make.

    Raises:
        ValueError: if an environment cannot serve.
    """

    def __init__(self, specs: Sequence[EnvironmentSpec]) -> None:
        self._environments = [Environment(spec) for spec in specs]
        super().__init__(specs, [(environment.observation_size, environment.action_size) for environment in self._environments])
        self._action, self._is_open = np.zeros((0, 0), np.float32), np.zeros(0, bool)

    def reset(self, index: int, seed: int) -> np.ndarray:
        """See EnvironmentGroup."""
        return self._environments[index].reset(seed)

    def begin_step(self, action: np.ndarray, is_open: np.ndarray | None = None) -> None:
        """See EnvironmentGroup."""
        self._action = action.copy()
        self._is_open = np.ones(len(self), bool) if is_open is None else is_open.copy()

    def end_step(self) -> Steps:
        """See EnvironmentGroup."""
        steps = empty_steps(len(self), self.observation_size)
        for index in np.flatnonzero(self._is_open):
            step_into(steps, int(index), self._environments[index], self._action[index])
        return steps

    def repeat(self, index: int, seed: int, actions: np.ndarray) -> Repeated:
        """See EnvironmentGroup."""
        return repeated(self._environments[index], seed, actions)

    def close(self) -> None:
        """See EnvironmentGroup."""
        for environment in self._environments:
            environment.close()


def empty_steps(num_environments: int, observation_size: int) -> Steps:
    """Steps that are still to be taken, all zero."""
    return Steps(
        np.zeros((num_environments, observation_size), np.float32),
        np.zeros(num_environments),
        np.zeros(num_environments, bool),
        np.zeros(num_environments, bool),
    )


def step_into(steps: Steps, index: int, environment: Environment, action: np.ndarray) -> None:
    """Take a step and write what came of it to one row of `steps`."""
    observation, steps.reward[index], steps.terminated[index], steps.truncated[index] = environment.step(
        action[: environment.action_size]
    )
    steps.observation[index, : environment.observation_size] = observation


def repeated(environment: Environment, seed: int, actions: np.ndarray) -> Repeated:
    """Reset an environment and take these actions, [N, A]."""
    observation, episode_return = environment.reset(seed), 0.0
    for action in actions:
        observation, reward, is_terminated, is_truncated = environment.step(action)
        episode_return += reward
        if is_terminated or is_truncated:
            return Repeated(observation, episode_return, True)
    return Repeated(observation, episode_return, False)


def sizes_of(specs: Sequence[EnvironmentSpec]) -> list[tuple[int, int]]:
    """Observation and action size of each environment; makes each kind once.

    Raises:
        ValueError: if an environment cannot serve.
    """
    sizes: dict[str, tuple[int, int]] = {}
    for spec in specs:
        if spec.name not in sizes:
            environment = Environment(spec)
            sizes[spec.name] = environment.observation_size, environment.action_size
            environment.close()
    return [sizes[spec.name] for spec in specs]
