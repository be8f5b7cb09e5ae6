"""Gymnasium environments with flat float32 observations, actions in [-1, 1], and separate `terminated` and `truncated` flags."""

import contextlib
import difflib
import pydoc
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from metagenrl_pl.common.messages import one_line
from metagenrl_pl.environments.failures import EnvironmentFailure, Unusable, describe_error, describe_unpacking
from metagenrl_pl.environments.observations import LARGEST, flatten, is_flattenable, outside
from metagenrl_pl.environments.spec import EnvironmentSets, EnvironmentSpec, split_wrapper

__all__ = ["Environment", "EnvironmentSets", "EnvironmentSpec"]


UNBOUNDED = 1e30
"""Bounds of actions from here on count as infinite. Some environments declare the largest float instead of infinity."""


class Environment:
    """One environment.

    An exception in a reset or a step is raised as an `EnvironmentFailure`. So is an observation or a reward that is not finite, and
    anything else that cannot be learned from (see `observations`).

    Args:
        spec: which environment to make.

    Raises:
        ValueError: if the environment does not exist, its actions are not a bounded continuous Box, or its observations cannot be
            flattened into a Box.
    """

    def __init__(self, spec: EnvironmentSpec) -> None:
        self.spec = spec
        self._env = _make(spec)
        try:
            action_space, observation_space = self._env.action_space, self._env.observation_space
        except Exception as error:  # one that it does not set
            raise ValueError(f"environment {spec.name}: {describe_error(error)}; valid is one with both spaces") from error
        if not isinstance(action_space, spaces.Box) or not np.issubdtype(action_space.dtype, np.floating):
            raise ValueError(f"environment {spec.name}: its actions are {action_space}; valid is a continuous Box")
        action_space = _bounded(action_space, spec)
        if not (action_space.low < action_space.high).all():
            raise ValueError(f"environment {spec.name}: low is not below high in its actions, {action_space}")
        if not is_flattenable(observation_space):
            raise ValueError(
                f"environment {spec.name}: its observations are {observation_space}; valid is a Box or Discrete, also in a Dict or Tuple"
            )
        self._action_space, self._observation_space = action_space, observation_space
        low, high = action_space.low.astype(np.float64).ravel(), action_space.high.astype(np.float64).ravel()
        self._middle, self._half_range = (high + low) / 2, (high - low) / 2
        self.observation_size = int(spaces.flatdim(observation_space))
        self.action_size = int(self._middle.size)
        if not self.observation_size or not self.action_size:
            raise ValueError(
                f"environment {spec.name}: has {self.observation_size} observations and {self.action_size} actions; valid is at least "
                "one of each"
            )
        self._num_steps = 0  # steps of the current episode, for error messages

    def reset(self, seed: int) -> np.ndarray:
        """Begin an episode with this seed; return the first observation, [O].

        Raises:
            EnvironmentFailure: see the class.
        """
        self._num_steps = 0
        try:
            observation, _ = self._env.reset(seed=seed)
            self._newest = observation
            return flatten(self._observation_space, observation)
        except (Exception, SystemExit) as error:
            self._fail(error)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool]:
        """Take an action in [-1, 1], [A]; return the next observation [O], reward, terminated, truncated.

        Raises:
            EnvironmentFailure: see the class.
        """
        space = self._action_space
        scaled = (self._middle + self._half_range * action).astype(space.dtype).reshape(space.shape)
        scaled = np.clip(scaled, space.low, space.high)  # rounding may exceed a bound
        self._num_steps += 1
        is_finite = bool(np.isfinite(scaled).all())  # a policy that has diverged gives NaN; then the environment is not at fault
        try:
            observation, reward, terminated, truncated, _ = self._env.step(scaled)
            self._newest = observation
            flat = flatten(self._observation_space, observation, is_finite)
            reward = _to_number(reward)
            if is_finite and not abs(reward) <= LARGEST:  # also true for NaN
                raise Unusable(f"the reward is {reward}")
            return flat, reward, _to_flag("terminated", terminated), _to_flag("truncated", truncated)
        except (Exception, SystemExit) as error:
            self._fail(error)

    def outside_of_space(self) -> str | None:
        """The first number of the newest observation that its space excludes, in words; None if there is none."""
        return outside(self._observation_space, self._newest)

    @property
    def gymnasium(self) -> gym.Env:
        """Gymnasium's environment with its wrappers. It has its own range of actions, and its errors are its own."""
        return self._env

    @property
    def time_limit(self) -> int | None:
        """Env steps after which every episode ends; None if Gymnasium knows of none. Then episodes may go on for ever."""
        return self._env.spec.max_episode_steps if self._env.spec else None

    @property
    def declares_bytes(self) -> bool:
        """Whether the space of observations consists of bytes. The observations themselves need not: see `observations`."""
        return isinstance(self._observation_space, spaces.Box) and self._observation_space.dtype == np.uint8

    @property
    def cameras(self) -> list[str]:
        """Names of a MuJoCo model's cameras; an empty list for other environments."""
        model: Any = getattr(self._env.unwrapped, "model", None)
        return [model.camera(i).name for i in range(model.ncam)] if hasattr(model, "ncam") else []

    @property
    def frames_per_second(self) -> float:
        """Env steps per second of a film at normal speed; 30 if the environment does not specify it."""
        return float(self._env.metadata.get("render_fps") or 30)

    def render(self) -> np.ndarray:
        """An image of the current state, [H, W, 3], uint8. Needs the keyword argument `render_mode: rgb_array`.

        Raises:
            ValueError: if the environment cannot be drawn on this machine.
        """
        try:
            picture = self._env.render()
        except Exception as error:  # without a display, drawing libraries may raise anything
            raise ValueError(
                f"environment {self.spec.name}: cannot be drawn ({one_line(error)}); for MuJoCo set MUJOCO_GL to glfw, egl or osmesa"
            ) from error
        if not isinstance(picture, np.ndarray) or picture.ndim != 3:
            raise ValueError(f"environment {self.spec.name}: cannot be drawn; valid is one with the render mode rgb_array")
        return picture

    def close(self) -> None:
        """Release the environment's resources, such as windows and simulators. An error there is a warning: no result depends on it."""
        try:
            self._env.close()
        except (Exception, SystemExit) as error:
            warnings.warn(f"environment {self.spec.name}: close failed, {describe_error(error)}", stacklevel=2)

    def _fail(self, error: BaseException) -> NoReturn:
        method, when = ("step", f"in step {self._num_steps} of an episode") if self._num_steps else ("reset", "at a reset")
        what = str(error) if isinstance(error, Unusable) else describe_unpacking(error, method, self._env.unwrapped)
        raise EnvironmentFailure(f"environment {self.spec.name}: {when} {what or describe_error(error)}") from error


def _to_number(reward: Any) -> float:
    """A reward as a number: also an array of one number, which careless arithmetic gives."""
    try:
        return float(np.asarray(reward).item())
    except (TypeError, ValueError) as error:
        raise Unusable(f"the reward is {_in_brief(reward)}; valid is one number") from error


def _to_flag(name: str, flag: Any) -> bool:
    """Whether an episode is over. A text or an array of several flags would count as true whatever it says."""
    array = np.asarray(flag)
    if array.size != 1 or array.dtype.kind not in "biuf" or array.item() not in (0, 1):
        raise Unusable(f"{name} is {_in_brief(flag)}; valid is true or false")
    return bool(array.item())


def _in_brief(value: Any) -> str:
    array = np.asarray(value)
    return (
        f"an array of {array.size} numbers" if array.ndim and array.dtype.kind in "biuf" else " ".join(repr(value).split())[:80]
    )


def _make(spec: EnvironmentSpec) -> gym.Env:
    try:
        with _without_mujoco_deprecation():
            environment = gym.make(spec.id, max_episode_steps=spec.max_episode_steps, disable_env_checker=True, **spec.kwargs)
            for wrapper in spec.wrappers:
                environment = _wrap(environment, wrapper)
            return environment
    except (Exception, SystemExit) as error:  # a constructor may raise anything
        name = spec.id.rpartition(":")[2]
        is_unknown = isinstance(error, gym.error.Error) and name not in gym.registry  # not if its module cannot be imported
        near = difflib.get_close_matches(name, list(gym.registry), n=1, cutoff=0.75) if is_unknown else []
        hint = f"; did you mean '{spec.id.removesuffix(name)}{near[0]}'?" if near else ""
        raise ValueError(f"environment {spec.name}: {_explain(error)}{hint}") from error


def _wrap(environment: gym.Env, wrapper: str | Mapping[str, Any]) -> gym.Env:
    path, kwargs = split_wrapper(wrapper)
    kind = pydoc.locate(path)
    if not callable(kind):
        raise gym.error.Error(f"there is no wrapper {path}; valid is module.Class, such as gymnasium.wrappers.NormalizeReward")
    wrapped = kind(environment, **kwargs)
    if not isinstance(wrapped, gym.Env):
        raise gym.error.Error(f"the wrapper {path} gives no environment, but {type(wrapped).__name__}")
    return wrapped


def _bounded(space: spaces.Box, spec: EnvironmentSpec) -> spaces.Box:
    """The space of actions with the bounds of the spec, which must lie in those of the environment."""
    is_finite = (abs(space.low) < UNBOUNDED).all() and (abs(space.high) < UNBOUNDED).all()
    if is_finite and spec.action_low is None and spec.action_high is None:
        return space
    try:
        low, high = (
            np.broadcast_to(own if given is None else np.asarray(given, np.float64), space.shape)
            for own, given in ((space.low, spec.action_low), (space.high, spec.action_high))
        )
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"environment {spec.name}: action_low and action_high must be numbers, or lists of the shape {space.shape}"
        ) from error
    given = [value for value in (spec.action_low, spec.action_high) if value is not None]
    if not all((abs(np.asarray(value, np.float64)) < UNBOUNDED).all() for value in given):  # false for NaN, too
        raise ValueError(f"environment {spec.name}: action_low and action_high must be numbers below {UNBOUNDED:g}")
    if not ((abs(low) < UNBOUNDED).all() and (abs(high) < UNBOUNDED).all()):
        raise ValueError(
            f"environment {spec.name}: its actions are unbounded, {space}; valid is a bounded Box, or action_low, action_high"
        )
    if not (low < high).all():
        raise ValueError(f"environment {spec.name}: action_low={low.tolist()} must be below action_high={high.tolist()}")
    low, high = low.astype(space.dtype), high.astype(space.dtype)  # first, since 0.9 is below the 0.9 of a float32
    if (low < space.low).any() or (high > space.high).any():
        raise ValueError(f"environment {spec.name}: action_low and action_high must lie in its actions, {space}")
    return spaces.Box(low, high, space.shape, space.dtype.type)


def _explain(error: BaseException) -> str:
    """Why an environment could not be made. Gymnasium's own errors name the cause, others also need their type and place."""
    if isinstance(error, gym.error.Error | ModuleNotFoundError):
        return one_line(error).split(" Did you mean")[0].rstrip(".")
    return describe_error(error)


@contextlib.contextmanager
def _without_mujoco_deprecation() -> Iterator[None]:
    """Suppress MuJoCo's deprecation warning for old models, which appears on stderr and in a file in the working folder."""
    try:
        import mujoco
    except ImportError:  # optional
        yield
        return

    def warn(message: str) -> None:
        if "is deprecated" not in message:
            warnings.warn(f"MuJoCo: {message}", stacklevel=2)

    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(warn)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)
