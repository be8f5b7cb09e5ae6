"""Call a user's code, which may raise anything."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from metagenrl_pl.common.messages import one_line

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
