"""Groups of environments that are stepped together. Collector and evaluator use this interface, in this process or in workers."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from metagenrl_pl.environments.environment import Environment, EnvironmentSpec


class Steps(NamedTuple):
    """Results of one step of E environments.

    Observations are zero-padded to the largest size. Skipped environments have no meaning.
    """

    observation: np.ndarray  # [E, O], float32
    reward: np.ndarray  # [E], float64
    terminated: np.ndarray  # [E], bool
    truncated: np.ndarray  # [E], bool

    @property
    def ended(self) -> np.ndarray:
        """Whether the episode is over, [E]."""
        return self.terminated | self.truncated


class RepeatedEpisode(NamedTuple):
    """The state after the actions of an episode were taken again."""

    observation: np.ndarray  # [O] of this environment
    episode_return: float
    ended: bool


class EnvironmentGroup(ABC):
    """E environments. Every implementation gives the same results for the same calls, bit for bit.

    Args:
        specs: which environments to make.
        sizes: observation and action size of each environment.
    """

    def __init__(self, specs: Sequence[EnvironmentSpec], sizes: Sequence[tuple[int, int]]) -> None:
        self.specs, self.sizes = list(specs), list(sizes)
        self.observation_size, self.action_size = max(o for o, _ in sizes), max(a for _, a in sizes)
        #: Environments that have lost their episode and take no step before they are reset, [E]; see `WorkerGroup`.
        self.lost = np.zeros(len(specs), bool)

    def __len__(self) -> int:
        return len(self.specs)

    @abstractmethod
    def reset(self, index: int, seed: int) -> np.ndarray:
        """Begin an episode of one environment; return the first observation, [O] of this environment."""

    @abstractmethod
    def begin_step(self, action: np.ndarray, is_open: np.ndarray | None = None) -> None:
        """Start a step with these actions. The next call must be `end_step`.

        Args:
            action: in [-1, 1], [E, at least the largest A]. Entries beyond an environment's own size are ignored. The caller may
                reuse the array after the call.
            is_open: which environments take a step, [E]; all by default.
        """

    @abstractmethod
    def end_step(self) -> Steps:
        """Wait for the step and return its results. The arrays belong to the caller. Rows of `lost` environments have no meaning."""

    @abstractmethod
    def repeat(self, index: int, seed: int, actions: np.ndarray) -> RepeatedEpisode:
        """Reset an environment and take these actions, [N, A of this environment], until the episode ends or none is left."""

    @abstractmethod
    def close(self) -> None:
        """Close all environments."""


class SerialGroup(EnvironmentGroup):
    """Environments in this process, stepped one after another.

    Args:
        specs: which environments to make.

    Raises:
        ValueError: if an environment is not usable (see `Environment`).
    """

    def __init__(self, specs: Sequence[EnvironmentSpec]) -> None:
        self._environments = [Environment(spec) for spec in specs]
        super().__init__(specs, [(environment.observation_size, environment.action_size) for environment in self._environments])
        self._action, self._is_open = np.zeros((0, 0), np.float32), np.zeros(0, bool)

    def reset(self, index: int, seed: int) -> np.ndarray:
        return self._environments[index].reset(seed)

    def begin_step(self, action: np.ndarray, is_open: np.ndarray | None = None) -> None:
        self._action = action.copy()
        self._is_open = np.ones(len(self), bool) if is_open is None else is_open.copy()

    def end_step(self) -> Steps:
        steps = empty_steps(len(self), self.observation_size)
        for index in np.flatnonzero(self._is_open):
            step_into(steps, int(index), self._environments[index], self._action[index])
        return steps

    def repeat(self, index: int, seed: int, actions: np.ndarray) -> RepeatedEpisode:
        return repeat_episode(self._environments[index], seed, actions)

    def close(self) -> None:
        while self._environments:  # each once, however often this is called
            self._environments.pop().close()


def empty_steps(num_environments: int, observation_size: int) -> Steps:
    """Results of E environments, all zero, to be filled in."""
    return Steps(
        np.zeros((num_environments, observation_size), np.float32),
        np.zeros(num_environments),
        np.zeros(num_environments, bool),
        np.zeros(num_environments, bool),
    )


def step_into(steps: Steps, index: int, environment: Environment, action: np.ndarray) -> None:
    """Take a step in one environment and write the results to row `index` of `steps`."""
    observation, steps.reward[index], steps.terminated[index], steps.truncated[index] = environment.step(
        action[: environment.action_size]
    )
    steps.observation[index, : environment.observation_size] = observation


def repeat_episode(environment: Environment, seed: int, actions: np.ndarray) -> RepeatedEpisode:
    """Reset an environment and take these actions, [N, A], until the episode ends or none is left."""
    observation, episode_return = environment.reset(seed), 0.0
    for action in actions:
        observation, reward, is_terminated, is_truncated = environment.step(action)
        episode_return += reward
        if is_terminated or is_truncated:
            return RepeatedEpisode(observation, episode_return, True)
    return RepeatedEpisode(observation, episode_return, False)


def sizes_of(specs: Sequence[EnvironmentSpec]) -> list[tuple[int, int]]:
    """Observation and action size of each environment, see `layouts_of`."""
    return layouts_of(specs)[0]


def layouts_of(specs: Sequence[EnvironmentSpec]) -> tuple[list[tuple[int, int]], list[bool]]:
    """Of each environment its observation and action size, and whether its observations are declared as bytes, as pictures are.

    One environment of each kind is made to find out.

    Raises:
        ValueError: if an environment is not usable (see `Environment`).
    """
    sizes: dict[str, tuple[int, int]] = {}
    are_bytes: dict[str, bool] = {}
    for spec in specs:
        if spec.name not in sizes:
            environment = Environment(spec)
            sizes[spec.name] = environment.observation_size, environment.action_size
            are_bytes[spec.name] = environment.declares_bytes
            environment.close()
    return [sizes[spec.name] for spec in specs], [are_bytes[spec.name] for spec in specs]
