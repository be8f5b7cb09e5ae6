"""Try a user's code: it may raise anything, and derivatives that it writes out may be wrong."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from metagenrl_pl.common.messages import one_line

_TOLERANCE = 1e-3  # relative error of a derivative; rounding causes up to 1e-5
T = TypeVar("T")


def attempt(name: str, valid: str, function: Callable[[], T]) -> T:
    """The result of `function`.

    Args:
        name: of what is called, as in "its loss".
        valid: what it should return.
        function: that calls it.

    Raises:
        ValueError: if it raises an exception: one line with its message and place, and with what is valid.
    """
    try:
        return function()
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise ValueError(
            f"its {name} raises {type(error).__name__}: {one_line(error)} ({Path(place.filename).name}, line {place.lineno}); "
            f"valid is {valid}"
        ) from error


def compare(name: str, found: Tensor, expected: Tensor, valid: str) -> None:
    """Compare a derivative that is written out with that of autograd.

    Raises:
        ValueError: if they differ by more than rounding.
    """
    if (difference := float((found - expected).norm() / expected.norm())) > _TOLERANCE:
        raise ValueError(f"its {name} differs from what autograd gives by {difference:.2g} of its length; valid is {valid}")
