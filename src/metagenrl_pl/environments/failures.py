"""Failures of environments, reported in one line that names the environment and the place in its code."""

import re
import sysconfig
import traceback
from pathlib import Path
from typing import Any

import gymnasium as gym

from metagenrl_pl.common.messages import one_line

_GYMNASIUM = Path(gym.__file__).parent
_NOT_THEIRS = tuple(
    map(str, (Path(__file__).parents[1], *(_GYMNASIUM / name for name in ("wrappers", "core.py", "envs/registration.py"))))
)
_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
_EXPECTED = {
    "reset": "two values from reset: observation, info",
    "step": "five values from step: observation, reward, terminated, truncated, info",
}


class EnvironmentFailure(RuntimeError):
    """An environment failed, and the run cannot continue. The message is one line that names the environment."""


class Unusable(ValueError):
    """What an environment returned cannot be used for learning. The message ends a sentence that begins with the environment."""


def describe_error(error: BaseException) -> str:
    """Type, message and place of an error that an environment raised, in one line. No place if its code has not been reached."""
    what = f"sys.exit({error.code!r}) was called" if isinstance(error, SystemExit) else type(error).__name__
    message = one_line(error).split(" was raised from the environment creator")[0] if isinstance(error, Exception) else what
    text = what if message == what else f"{what}: {message}"
    theirs = [frame for frame in _frames(error) if not frame.filename.startswith(_NOT_THEIRS)]
    own = [frame for frame in theirs if not frame.filename.startswith((*_LIBRARIES, "<"))]  # not a library that it calls
    frame = next(reversed(own or theirs), None)
    return f"{text} ({Path(frame.filename).name}, line {frame.lineno})" if frame else text


def describe_unpacking(error: BaseException, method: str, environment: Any) -> str | None:
    """The message for an environment that returned too few or too many values, which the caller notices; None for other errors.

    Args:
        error: that was raised.
        method: `reset` or `step`.
        environment: without wrappers.
    """
    innermost = _frames(error)[-1].filename
    match = re.match(r"(?:not enough|too many) values to unpack \(expected \d+(?:, got (\d+))?\)", str(error))
    if not (match or str(error).startswith("cannot unpack non-iterable")) or not innermost.startswith(_NOT_THEIRS):
        return None
    kind = type(environment)
    got = f"{match[1]} values" if match and match[1] else "too many values" if match else "a single value"
    return f"{kind.__module__}.{kind.__qualname__}.{method} returned {got}; Gymnasium expects {_EXPECTED[method]}"


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    """All frames down to the first cause. (`gymnasium.make` raises a new error for some errors of a constructor.)"""
    frames = list(traceback.extract_tb(error.__traceback__))
    return frames + _frames(error.__cause__) if error.__cause__ is not None else frames
