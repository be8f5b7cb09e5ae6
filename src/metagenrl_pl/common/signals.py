"""Signals that stop a run: Ctrl-C, a closed terminal, a cluster's warning before the time limit, and its end."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

STOP_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)  # Windows lacks two
)
"""SLURM sends SIGUSR1 if a job asks for it (`--signal=USR1@120`)."""

Handler = Callable[[int, FrameType | None], object]

_is_command = False  # whether this is in the body of `interrupting`


def install_handler(handler: Handler) -> dict[int, object]:
    """Handle all `STOP_SIGNALS`, and return the former handlers. Does nothing outside of the main thread, where Python forbids it.

    A signal that the parent of this process has chosen to ignore stays so (`nohup`), except Ctrl-C: shells let their background jobs
    ignore it, but who sends it to one means it.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    numbers = [n for n in STOP_SIGNALS if n == signal.SIGINT or signal.getsignal(n) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in numbers}


def restore_handlers(former: dict[int, object]) -> None:
    """Undo `install_handler`."""
    for number, handler in former.items():
        signal.signal(number, handler)  # type: ignore[arg-type]


@contextlib.contextmanager
def sparing_programs() -> Iterator[None]:
    """Programs that the body starts are not ended by `STOP_SIGNALS`. This process gets them, in or after the body."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_in_command() -> None:
    """Ignore `STOP_SIGNALS` from now on, if this is in the body of `interrupting`.

    For a command that has saved and is ending: a signal that comes twice may not change its exit code. In a notebook, which goes on,
    this does nothing.
    """
    if _is_command:
        install_handler(lambda *_: None)


@contextlib.contextmanager
def interrupting() -> Iterator[None]:
    """For the body of a command: raise a KeyboardInterrupt for `STOP_SIGNALS`, unless something in it handles them.

    Once it raises SystemExit, signals are ignored: the process ends.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    global _is_command
    former, _is_command = install_handler(interrupt), True
    try:
        yield
    except SystemExit:
        ignore_in_command()
        raise
    except BaseException:
        restore_handlers(former)
        raise
    else:
        restore_handlers(former)
    finally:
        _is_command = False
