"""Environments that tests can compute by hand. Importing this module registers them."""

import os
import signal
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from metagenrl_pl.environments.environment import EnvironmentSpec
from metagenrl_pl.environments.group import SerialGroup, Steps


class Echo(gym.Env):
    """Observes the action that it was given."""

    def __init__(self, action_space: spaces.Box) -> None:
        self.action_space = action_space
        self.observation_space = spaces.Box(-np.inf, np.inf, action_space.shape, action_space.dtype)  # type: ignore[arg-type]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(self.action_space.shape, self.action_space.dtype), {}  # type: ignore[arg-type]

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        return action, 0.0, False, False, {}


class Showing(gym.Env):
    """Observes one given value of a given space, whatever happens; the reward is given, too."""

    def __init__(
        self,
        observation_space: spaces.Space | None = None,
        action_space: spaces.Space | None = None,
        observation: Any = None,
        reward: float = 0.0,
    ) -> None:
        self.observation_space = observation_space or spaces.Box(-1, 1, (2,))
        self.action_space = action_space or spaces.Box(-1, 1, (2,))
        self._observation, self._reward = observation, reward

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self._observation, {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._observation, self._reward, False, False, {}


class Losing(SerialGroup):
    """Loses the episodes of an environment in given steps of the group, as `WorkerGroup` does after a hang."""

    def __init__(self, specs: Sequence[EnvironmentSpec], losses: Mapping[int, int]) -> None:
        super().__init__(specs)
        self.seeds: list[list[int]] = [[] for _ in specs]
        self._losses, self._num_steps = losses, 0

    def reset(self, index: int, seed: int) -> np.ndarray:
        self.seeds[index].append(seed)
        self.lost[index] = False
        return super().reset(index, seed)

    def end_step(self) -> Steps:
        assert not (self._is_open & self.lost).any(), "a lost environment was stepped"
        steps = super().end_step()
        self._num_steps += 1
        if self._num_steps in self._losses:
            index = self._losses[self._num_steps]
            self.lost[index] = True
            for array in steps:
                array[index] = -1  # has no meaning
        return steps


class Counting(gym.Env):
    """Observes [number of the episode's seed, steps done, sum of the last action]; the reward is the number of steps done.

    Args:
        ends_after: steps until it terminates; None: never.
        num_actions: in [-1, 1].
        global_randomness: what no seed reproduces: `observation`, `reward`, `length` or none.
    """

    steps_taken_by_all = 0

    def __init__(self, ends_after: int | None = None, num_actions: int = 1, global_randomness: str = "none") -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,))
        self.action_space = spaces.Box(-1, 1, (num_actions,))
        self._ends_after, self._randomness = ends_after, global_randomness

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._episode, self._num_steps = int(self.np_random.integers(1_000_000)), 0
        return np.array([self._episode, 0, 0], np.float32), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        Counting.steps_taken_by_all += 1
        random = Counting.steps_taken_by_all
        self._num_steps += 1
        observation = np.array([self._episode, self._num_steps, action.sum()], np.float32)
        reward = float(self._num_steps)
        terminated = self._num_steps == self._ends_after
        if self._randomness == "observation":
            observation[2] = random
        elif self._randomness == "reward":
            reward = float(random)
        elif self._randomness == "length":
            terminated = random % 50 == 49
        return observation, reward, terminated, False, {}


class Approach(gym.Env):
    """Four moves towards 0: a move a costs a^2, and the place x where they end 4 x^2. Observes [x, moves done].

    From x after t moves the best return is -p_t x^2, where p_4 = 4. Before that it is the largest -a^2 - p_{t+1} (x + a)^2,
    which is -p_t x^2 with 1 / p_t = 1 / p_{t+1} + 1, for a = -p_t x. So p_0 = 4/17, while no move at all returns -4 x^2 and
    the last one alone -4/5 x^2.
    """

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,))
        self.action_space = spaces.Box(-1, 1, (1,))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._x, self._num_moves = float(self.np_random.uniform(-1, 1)), 0
        return np.array([self._x, 0], np.float32), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        move = float(action[0])
        self._x += move
        self._num_moves += 1
        terminated = self._num_moves == 4
        reward = -(move**2) - (4 * self._x**2 if terminated else 0)
        return np.array([self._x, self._num_moves], np.float32), reward, terminated, False, {}


class Breaking(Counting):
    """Counting whose rewards are so large from the 50th step of an episode on that their squares are infinite."""

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, *rest = super().step(action)
        return observation, 3e38 if self._num_steps >= 50 else reward, *rest


class Signalling(Counting):
    """Counting that sends this process SIGTERM at one of the steps that all of these take."""

    signals_at: int | None = None
    num_taken = 0

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        Signalling.num_taken += 1
        if Signalling.num_taken == Signalling.signals_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().step(action)


class Spaceless(gym.Env):
    """Somebody's first environment, which has forgotten its spaces."""


for kind in (Spaceless, Echo, Showing, Counting, Approach, Breaking, Signalling):
    gym.register(f"{kind.__name__}-v0", entry_point=f"{__name__}:{kind.__name__}")
