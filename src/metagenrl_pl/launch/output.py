"""Output that may go away: a pipe whose reader ends, a full disk, a closed terminal. It costs lines, not the run."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any


class _Surviving:
    """A stream that goes to nowhere once writing has failed."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError:
            self._give_up()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        """Replace the file behind the stream. So what is in the stream's buffer, and the interpreter's last flush, raise nothing."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def surviving_closed_output() -> Iterator[None]:
    """In the body, what is printed is lost where it cannot be written, and nothing else happens."""
    before = sys.stdout, sys.stderr
    for name, stream in zip(("stdout", "stderr"), before, strict=True):
        if stream is None:  # closed before the start
            stream = open(os.devnull, "w")  # noqa: SIM115 (for the rest of the process)
        setattr(sys, name, _Surviving(stream))
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before
