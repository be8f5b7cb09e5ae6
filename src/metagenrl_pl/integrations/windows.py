"""A replay of steps from one or several environments, which draws windows of consecutive steps."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Normalize = Callable[[np.ndarray], np.ndarray]


class WindowBatch(NamedTuple):
    """B windows of up to T consecutive steps of one episode each, padded with 0. Actions have the environment's units."""

    states: Tensor  # [B, T + 1, ...], the states of the steps, and the one after the last step
    action: Tensor  # [B, T, A]
    reward: Tensor  # [B, T]
    terminated: Tensor  # [B, T], 0 or 1
    valid: Tensor  # [B, T], 0 or 1; ones first

    def transitions(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The N valid steps one by one: observation [N, ...], action [N, A], reward, next observation, terminated [N, 1]."""
        real = self.valid > 0
        state, next_state = self.states[:, :-1][real], self.states[:, 1:][real]
        return state, self.action[real], self.reward[real][:, None], next_state, self.terminated[real][:, None]


class WindowIndex(NamedTuple):
    """Where the steps of B windows lie in a ring buffer."""

    slot: np.ndarray  # [B, T], the last valid one where padded
    environment: np.ndarray  # [B]
    valid: np.ndarray  # [B, T], bool


def draw_windows(
    ends: np.ndarray, oldest: int, num_steps: int, num_windows: int, window_length: int, random: np.random.Generator | None = None
) -> WindowIndex:
    """Draw windows from a ring buffer of C slots for each of N environments.

    A window begins at a step that is drawn uniformly. If fewer than T steps of its episode are left there, it begins earlier. So a
    window is shorter than T only if its episode is. An episode that goes on is included.

    Args:
        ends: whether an episode ended with this step, or the next one does not continue it, [C, N].
        oldest: slot of the oldest step.
        num_steps: stored steps of each environment.
        num_windows: B.
        window_length: T.
        random: draws the steps; NumPy's global generator by default.

    Raises:
        ValueError: if nothing is stored yet, or a number is not positive.
    """
    if num_steps < 1:
        raise ValueError("the buffer is empty; add a step before drawing windows")
    if num_windows < 1 or window_length < 1:
        raise ValueError(f"num_windows={num_windows}, window_length={window_length}: valid are positive numbers")
    integers = np.random.randint if random is None else random.integers
    step = integers(0, num_steps, num_windows)  # 0 is the oldest one
    environment = integers(0, ends.shape[1], num_windows)
    # 1. Which of the T - 1 neighbours on each side belong to the same episode? Those before the first end on the way.
    offset = np.arange(window_length)
    after, before = step[:, None] + offset, step[:, None] - offset[1:]  # [B, T], [B, T - 1]
    last = np.minimum(after, num_steps - 1)
    stops = _at(ends, oldest, last, environment) | (after >= num_steps - 1)  # no step of the episode follows
    num_after = np.argmax(np.concatenate([stops, np.ones((num_windows, 1), bool)], 1), 1)
    begins = (before < 0) | _at(ends, oldest, np.maximum(before, 0), environment)
    num_before = np.argmax(np.concatenate([begins, np.ones((num_windows, 1), bool)], 1), 1)
    # 2. Begin earlier, by as many steps as are missing after it, or as there are.
    start = step - np.minimum(num_before, np.maximum(window_length - 1 - num_after, 0))
    length = np.minimum(step + num_after - start + 1, window_length)
    slot = (oldest + start[:, None] + np.minimum(offset, length[:, None] - 1)) % len(ends)
    return WindowIndex(slot, environment, offset < length[:, None])


def _at(ends: np.ndarray, oldest: int, step: np.ndarray, environment: np.ndarray) -> np.ndarray:
    return ends[(oldest + step) % len(ends), environment[:, None]]


def gather_windows(
    index: WindowIndex,
    observations: np.ndarray,
    next_observations: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    terminated: np.ndarray,
    device: torch.device | str,
    normalize_observations: Normalize = lambda observations: observations,
    normalize_rewards: Normalize = lambda rewards: rewards,
    truncated: np.ndarray | None = None,
) -> WindowBatch:
    """The windows at `index` as tensors. All arrays are `[C, N, ...]`. Computes on the drawn steps alone.

    With `truncated`, `terminated` holds both kinds of ends.
    """
    where = index.slot, index.environment[:, None]
    length = index.valid.sum(1)
    states = np.concatenate([observations[where], next_observations[index.slot[:, -1], index.environment][:, None]], 1)
    rows = np.arange(len(length))
    states[rows, length] = states[:, -1]  # after the last valid step
    states = normalize_observations(states)
    states[np.arange(states.shape[1]) > length[:, None]] = 0

    def tensor(steps: np.ndarray) -> Tensor:
        padded = steps * index.valid.reshape(*index.valid.shape, *(1,) * (steps.ndim - 2))
        return torch.as_tensor(padded.astype(np.float32), device=device)

    is_terminal = terminated[where] if truncated is None else terminated[where] * (1 - truncated[where])
    steps = tensor(actions[where]), tensor(normalize_rewards(rewards[where])), tensor(is_terminal)
    return WindowBatch(torch.as_tensor(states, device=device), *steps, torch.as_tensor(index.valid, device=device).float())


def goes_on(next_observation: np.ndarray, observation: np.ndarray) -> np.ndarray:
    """Whether an observation, [N, ...], is the one after the step before, [N]. If not, the environment was reset in between."""
    same = next_observation == np.asarray(observation, next_observation.dtype).reshape(next_observation.shape)
    return same.reshape(len(same), -1).all(1)


class WindowBuffer:
    """Ring buffers of N environments that step together.

    If an observation is not the `next_observation` of the step before, that step ended its episode. So add observations as the environment
    gives them, and normalise windows after `sample`. Gymnasium's vector environments need `AutoresetMode.SAME_STEP`.

    Args:
        capacity: steps of each environment.
        observation_shape: of one environment, such as `env.single_observation_space.shape`.
        action_shape: of one environment; actions are vectors.
        num_envs: N.
        device: of the windows. The buffer itself is in the main memory.
        seed: of the drawn windows.

    Raises:
        ValueError: if `capacity` or `num_envs` is not positive, or actions are no vectors.
    """

    def __init__(
        self,
        capacity: int,
        observation_shape: tuple[int, ...],
        action_shape: tuple[int, ...],
        num_envs: int = 1,
        device: torch.device | str = "cpu",
        seed: int | None = None,
    ) -> None:
        if capacity < 1 or num_envs < 1:
            raise ValueError(f"capacity={capacity}, num_envs={num_envs}: valid are positive numbers")
        if len(action_shape) != 1:
            raise ValueError(f"action_shape={action_shape}: valid is the shape of a vector, such as (1,)")
        self.capacity, self.num_envs, self.device = capacity, num_envs, device
        self._observations = np.zeros((capacity, num_envs, *observation_shape), np.float32)
        self._next_observations = np.zeros_like(self._observations)
        self._actions = np.zeros((capacity, num_envs, *action_shape), np.float32)
        self._rewards, self._terminated = np.zeros((2, capacity, num_envs), np.float32)
        self._ends = np.zeros((capacity, num_envs), bool)
        self._num_added = 0
        self._random = np.random.default_rng(seed)

    def __len__(self) -> int:
        """Stored steps of each environment."""
        return min(self._num_added, self.capacity)

    def add(
        self,
        observation: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray | float,
        next_observation: np.ndarray,
        terminated: np.ndarray | bool,
        truncated: np.ndarray | bool,
    ) -> None:
        """Add one step of every environment.

        With one environment, arrays need no axis for it.

        Args:
            observation: before the step, [N, ...].
            action: in the environment's units, [N, A].
            reward: [N].
            next_observation: after the step, [N, ...]; of an ended episode its last one, not the first one of the next episode.
            terminated: whether the episode ended in a terminal state, [N]. The value of that state is 0.
            truncated: whether it ended otherwise, such as by a time limit, [N]. The value of the last state counts.

        Raises:
            ValueError: if an array has another shape, or holds a number that is not finite; the step is not stored.
        """
        steps = [
            ("observation", self._observations, observation),
            ("action", self._actions, action),
            ("reward", self._rewards, reward),
            ("next_observation", self._next_observations, next_observation),
            ("terminated", self._terminated, terminated),
            ("truncated", self._ends, truncated),
        ]
        checked = [(array, _checked(name, value, array.shape[1:])) for name, array, value in steps]
        slot = self._num_added % self.capacity
        if self._num_added:
            is_reset = ~self._ends[slot - 1] & ~goes_on(self._next_observations[slot - 1], checked[0][1])
            if is_reset.any():
                warnings.warn(
                    "observation is not the next_observation of the step before, which ended no episode: an episode that was reset counts "
                    "as truncated; if this comes at every step, add observations as the environment gives them",
                    stacklevel=2,
                )
            self._ends[slot - 1] |= is_reset
        for array, value in checked:
            array[slot] = value
        self._ends[slot] |= self._terminated[slot] > 0  # the end of an episode either way
        self._num_added += 1

    def sample(self, num_windows: int, window_length: int = 1) -> WindowBatch:
        """Draw windows (see `draw_windows`). With `window_length=1`, `.transitions()` is a batch of single steps.

        Raises:
            ValueError: if nothing is stored yet, or a number is not positive.
        """
        oldest = self._num_added % self.capacity if self._num_added > self.capacity else 0
        index = draw_windows(self._ends, oldest, len(self), num_windows, window_length, self._random)
        return gather_windows(
            index,
            self._observations,
            self._next_observations,
            self._actions,
            self._rewards,
            self._terminated,
            self.device,
        )


def _checked(name: str, value: np.ndarray | float, shape: tuple[int, ...]) -> np.ndarray:
    """A step's numbers of all environments, [N, ...]."""
    array = np.asarray(value, np.float32)
    if array.shape != shape and not (shape[0] == 1 and array.shape == shape[1:]):
        alternative = f" or {shape[1:]}" if shape[0] == 1 else ""
        raise ValueError(f"{name} has the shape {array.shape}; valid is {shape}{alternative}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds {array[~np.isfinite(array)][0]}; valid are finite numbers")
    return array.reshape(shape)
