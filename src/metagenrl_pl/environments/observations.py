"""Observations as flat 32-bit numbers.

Only the sizes of a space are relied on. Its dtype is a declaration which environments break: floats in a space of integers, or
pictures scaled to [0, 1] in a space of bytes. So observations are not cast to it.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from metagenrl_pl.environments.failures import Unusable

LARGEST = float(np.finfo(np.float32).max)
"""The largest number that is stored."""

_NUMBERS = "biuf"  # kinds of dtypes


def is_flattenable(space: gym.Space) -> bool:
    """Whether a space is a Box or Discrete, also in a Dict or Tuple."""
    if isinstance(space, spaces.Dict):
        return all(is_flattenable(part) for part in space.spaces.values())
    if isinstance(space, spaces.Tuple):
        return all(is_flattenable(part) for part in space.spaces)
    return isinstance(space, spaces.Box | spaces.Discrete)


def flatten(space: gym.Space, observation: Any, must_be_finite: bool = True) -> np.ndarray:
    """A copy of the observation as a flat array, [O], float32. A Dict's keys are in the order of its space.

    A Discrete value of n becomes n numbers, all 0 but for one 1.

    Raises:
        Unusable: if the observation has another size than its space or is not numeric, or a number in it is not finite or too
            large for 32 bits (unless `must_be_finite` is false).
    """
    parts = [_to_numbers(box, value, place) for box, value, place in _boxes(space, observation, "")]
    with np.errstate(over="ignore"):
        flat = np.concatenate(parts, dtype=np.float32, casting="unsafe") if parts else np.zeros(0, np.float32)
    if must_be_finite and not np.isfinite(flat).all():
        number = next(number for part in parts for number in part if not abs(number) <= LARGEST)  # also true for NaN
        reason = ", which is too large for 32 bits" if np.isfinite(number) else ""
        raise Unusable(f"the observation has a number that is {number}{reason}")
    return flat


def outside(space: gym.Space, observation: Any) -> str | None:
    """The first number of an observation that lies outside of its space, in words; None if there is none."""
    for box, value, place in _boxes(space, observation, ""):
        numbers, low, high = _to_numbers(box, value, place), box.low.ravel(), box.high.ravel()
        wrong = np.flatnonzero((numbers < low) | (numbers > high))
        if wrong.size:
            index = wrong[0]
            return f"its observation{place} has the number {numbers[index]:.6g}, its space only {low[index]:.6g} to {high[index]:.6g}"
    return None


def _boxes(space: gym.Space, value: Any, place: str) -> Iterator[tuple[spaces.Box, Any, str]]:
    """The boxes of a space with their values and places, such as `['camera'][0]`."""
    if isinstance(space, spaces.Dict):
        if not isinstance(value, Mapping):
            raise Unusable(
                f"the observation{place} is a {type(value).__name__}; its space is a Dict with {', '.join(space.spaces)}"
            )
        for key, part in space.spaces.items():
            if key not in value:
                raise Unusable(f"the observation{place} lacks {key!r}, which is in its space")
            yield from _boxes(part, value[key], f"{place}[{key!r}]")
    elif isinstance(space, spaces.Tuple):
        if not hasattr(value, "__len__") or len(value) != len(space.spaces):
            raise Unusable(f"the observation{place} has other parts than its space, a Tuple of {len(space.spaces)}")
        for index, part in enumerate(space.spaces):
            yield from _boxes(part, value[index], f"{place}[{index}]")
    elif isinstance(space, spaces.Discrete):
        yield _one_hot_box(int(space.n)), _one_hot(space, value, place), place
    else:
        assert isinstance(space, spaces.Box)
        yield space, value, place


@cache
def _one_hot_box(num_values: int) -> spaces.Box:
    return spaces.Box(0, 1, (num_values,), np.float32)


def _one_hot(space: spaces.Discrete, value: Any, place: str) -> np.ndarray:
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biu" or not 0 <= int(array.item()) - int(space.start) < space.n:
        raise Unusable(f"the observation{place} is {value!r}, its space {space}")
    numbers = np.zeros(int(space.n), np.float32)
    numbers[int(array.item()) - int(space.start)] = 1
    return numbers


def _to_numbers(box: spaces.Box, value: Any, place: str) -> np.ndarray:
    numbers = np.asarray(value)
    if numbers.dtype.kind not in _NUMBERS:
        raise Unusable(f"the observation{place} is not numeric ({numbers.dtype}, {type(value).__name__})")
    if numbers.size != (size := int(np.prod(box.shape))):
        raise Unusable(f"the observation{place} has {numbers.size} numbers, {size} in its space")
    return numbers.ravel()
