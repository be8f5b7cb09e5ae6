"""Environments that break one habit each. Importing this module registers them under their names and `-v0`."""

import os
import random
import sys
import time
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

Result = tuple[Any, Any, Any, Any, dict[str, Any]]


class Sliding(gym.Env):
    """The normal one, from which the others differ: a point that an action pushes along a line; episodes of 30 steps."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space: spaces.Space = spaces.Box(-9.0, 9.0, (2,), np.float32)
    action_space: spaces.Space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    num_steps = 30

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.speed, self.step_number = self.first_place(), 0.0, 0
        return self.observe(), {}

    def first_place(self) -> float:
        return float(self.np_random.uniform(-1, 1))

    def observe(self) -> Any:
        return np.array([self.place, self.speed], np.float32)

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), (action, action.dtype)
        self.speed = 0.9 * self.speed + 0.1 * float(np.ravel(action)[0])
        self.place = float(np.clip(self.place + self.speed, -9, 9))
        self.step_number += 1
        return self.change((self.observe(), -(self.place**2), False, self.step_number >= self.num_steps, {}))

    def change(self, result: Result) -> Any:
        """What a step returns; for a habit to break."""
        return result

    def render(self) -> Any:
        return np.full((16, 16, 3), 128, np.uint8)


class FloatsAsIntegers(Sliding):
    """Observes fractions in a space of whole numbers."""

    observation_space = spaces.Box(-9, 9, (2,), dtype=int)  # type: ignore[arg-type]

    def observe(self) -> Any:
        return np.array([self.place, self.speed])


class ScaledPictures(Sliding):
    """Observes pictures of 0 to 1 in a space of bytes."""

    observation_space = spaces.Box(0, 255, (3, 3, 3), np.uint8)

    def observe(self) -> Any:
        return np.full((3, 3, 3), 0.5 + self.place / 20, np.float32)


class Pictures(Sliding):
    """Observes bytes in a space of bytes."""

    observation_space = spaces.Box(0, 255, (3, 3, 3), np.uint8)

    def observe(self) -> Any:
        return np.full((3, 3, 3), int(128 + 10 * self.place), np.uint8)


class DoublesAsHalves(Sliding):
    """Observes 64-bit numbers in a space of 16-bit ones."""

    observation_space = spaces.Box(-9, 9, (2,), np.float16)

    def observe(self) -> Any:
        return np.array([self.place, self.speed])


class OneArray(Sliding):
    """Returns the same array each time, and overwrites it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.array = np.zeros(2, np.float32)

    def observe(self) -> Any:
        self.array[:] = self.place, self.speed
        return self.array


class Nested(Sliding):
    """Observes boxes in a Dict in a Tuple, and more than its space says."""

    observation_space = spaces.Tuple(
        (spaces.Dict(z=spaces.Box(-9, 9, (2,)), a=spaces.Box(0, 255, (2, 2), np.uint8)), spaces.Box(-9, 9, ()))
    )

    def observe(self) -> Any:
        return {"a": np.full((2, 2), 0.25), "z": super().observe(), "unasked": "x"}, self.place


class Scalars(Sliding):
    """Boxes of no axis."""

    observation_space = spaces.Box(-9, 9, (), np.float32)
    action_space = spaces.Box(-1, 1, (), np.float32)

    def observe(self) -> Any:
        return np.float32(self.place)


class Matrix(Sliding):
    action_space = spaces.Box(-1, 1, (2, 3), np.float32)


class Lopsided(Sliding):
    """Bounds that differ in each dimension, in 64 bits."""

    action_space = spaces.Box(np.array([0.0, -1.0, 10.0]), np.array([1.0, 3.0, 20.0]), dtype=np.float64)


class HalfActions(Sliding):
    action_space = spaces.Box(-1, 1, (1,), np.float16)


class Once(Sliding):
    """Episodes of one step."""

    num_steps = 1


class Endless(Sliding):
    """Episodes without an end."""

    num_steps = 10**12


class TwoEnds(Sliding):
    """Terminated and truncated at once."""

    def change(self, result: Result) -> Any:
        return *result[:2], result[3], result[3], {}


class ArrayResults(Sliding):
    """Reward and flags are arrays of one number."""

    def change(self, result: Result) -> Any:
        return result[0], np.array([result[1]]), np.array([result[2]]), np.array(result[3]), {}


class Beyond(Sliding):
    """Observes numbers outside of its space."""

    def observe(self) -> Any:
        return np.array([100 + self.place, self.speed], np.float32)


class GlobalRandom(Sliding):
    """Draws from numpy's and Python's global generators."""

    def first_place(self) -> float:
        return float(np.random.uniform(-1, 1)) + random.random()


class Large(Sliding):
    """20,000 numbers."""

    observation_space = spaces.Box(-9, 9, (20_000,), np.float32)

    def observe(self) -> Any:
        return np.full(20_000, self.place, np.float32)


class Unclosable(Sliding):
    """Has lost what it would close."""

    def close(self) -> None:
        raise OSError("gone")


# What follows cannot be learned from.


class FourValues(Sliding):
    def change(self, result: Result) -> Any:
        return result[0], result[1], result[3], {}


class OneValue(Sliding):
    def change(self, result: Result) -> Any:
        return None


class OneValueAtReset(Sliding):
    def reset(self, **kwargs: Any) -> Any:
        return super().reset(**kwargs)[0].sum()


class TwoRewards(Sliding):
    def change(self, result: Result) -> Any:
        return result[0], np.zeros(2), *result[2:]


class NoReward(Sliding):
    def change(self, result: Result) -> Any:
        return result[0], None, *result[2:]


class FlagAsText(Sliding):
    def change(self, result: Result) -> Any:
        return *result[:2], "False", *result[3:]


class TwoFlags(Sliding):
    def change(self, result: Result) -> Any:
        return *result[:3], np.array([False, True]), {}


class Huge(Sliding):
    """A finite number that 32 bits cannot hold."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)

    def observe(self) -> Any:
        return np.array([1e300, 0.0])


class Texts(Sliding):
    def observe(self) -> Any:
        return np.array(["1", "2"])


class LacksPart(Sliding):
    observation_space = spaces.Dict(seen=spaces.Box(-9, 9, (2,)), goal=spaces.Box(-9, 9, (1,)))

    def observe(self) -> Any:
        return {"seen": super().observe()}


class NotANumberLater(Sliding):
    """Not a number from the 20th step on."""

    def change(self, result: Result) -> Any:
        return result[0], np.nan if self.step_number >= 20 else result[1], *result[2:]


class RaisesLater(Sliding):
    """Fails at its 20th step, in a library that it calls."""

    def change(self, result: Result) -> Any:
        if self.step_number == 20:
            np.linalg.inv(np.zeros((2, 2)))
        return result


class ExitsLater(Sliding):
    def change(self, result: Result) -> Any:
        return sys.exit(5) if self.step_number == 20 else result


class EndsTheProcess(Sliding):
    """Ends the process without an exception."""

    def change(self, result: Result) -> Any:
        return os._exit(0) if self.step_number == 20 else result


class FailsToBegin(Sliding):
    def __init__(self, **kwargs: Any) -> None:
        assert not "a message"


class ExitsToBegin(Sliding):
    def __init__(self, **kwargs: Any) -> None:
        sys.exit(4)


class Hangs(Sliding):
    """Hangs in its 20th step, in the first process that gets there: the file `hangs_once` in the working folder says so."""

    def change(self, result: Result) -> Any:
        if self.step_number == 20 and not os.path.exists("hangs_once"):
            open("hangs_once", "w").close()
            time.sleep(3600)
        return result


KINDS = {kind.__name__: kind for kind in list(globals().values()) if isinstance(kind, type) and issubclass(kind, Sliding)}
for name in KINDS:
    gym.register(f"{name}-v0", entry_point=f"{__name__}:{name}")
