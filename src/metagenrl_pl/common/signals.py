"""What stops a process from outside: Ctrl-C, a closed terminal, a cluster's signals before the time limit, and its parent's end."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from os import _exit as end_process  # a run replaces `os._exit`, to report who calls it
from types import FrameType

from metagenrl_pl.common.exit_codes import INTERRUPTED

STOP_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)  # Windows lacks two
)
"""SLURM sends SIGUSR1 if a job asks for it (`--signal=USR1@120`)."""

LAUNCHER = "METAGENRL_LAUNCHER"
"""Environment variable with the process ID of the first process, in those that it launches."""

Handler = Callable[[int, FrameType | None], object]

_is_command = False  # whether this is in the body of `stoppable_command`
_is_ending = False  # whether `ignore_in_command` has been called there


def describe_signal(exit_code: int) -> str:
    """The signal that ended a process, in words, by the negative exit code of its Popen."""
    ended_by = signal.Signals(-exit_code).name
    return f"{ended_by}, which the system sends when memory runs out" if ended_by == "SIGKILL" else ended_by


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
    """Undo `install_handler`, unless the command is ending (see `ignore_in_command`)."""
    if _is_ending:
        return
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
    """Ignore `STOP_SIGNALS` from now on, if this is in the body of `stoppable_command`.

    For a command that has saved and is ending: a signal that comes twice may not change its exit code. In a notebook, which goes on,
    this does nothing.
    """
    global _is_ending
    if _is_command:
        install_handler(lambda *_: None)
        _is_ending = True


def end_at_once(outcome: Callable[[], tuple[str, int]], is_over: Callable[[], bool] = lambda: False) -> Handler:
    """A handler that ends this process, for a time in which nothing can be lost.

    A KeyboardInterrupt would not do. It is raised in whatever line is running, and a library may catch it there: numpy makes a
    RecursionError of one that is raised while its modules are imported.

    Args:
        outcome: called after the signal; returns a line for standard error (empty for none) and the exit code.
        is_over: whether that time is over. Then a signal raises a KeyboardInterrupt.
    """

    def end(number: int, frame: FrameType | None) -> None:
        if is_over():
            raise KeyboardInterrupt
        line, code = outcome()
        if line:
            os.write(2, f"{line}\n".encode())  # `print` fails if the signal came in the middle of another one
        end_process(code)

    return end


STOP_COMMAND = end_at_once(lambda: ("Stopped", INTERRUPTED))


@contextlib.contextmanager
def stoppable_command() -> Iterator[None]:
    """For the body of a command: `STOP_SIGNALS` print `Stopped` and end the process, unless something in the body handles them.

    Once it raises SystemExit, signals are ignored: the process ends.
    """
    global _is_command, _is_ending
    former, _is_command, _is_ending = install_handler(STOP_COMMAND), True, False
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


def end_with(parent: int, grace_seconds: float = 0.0) -> None:
    """From now on, end this process within a second after its parent, in whatever way that one has ended.

    Does nothing on Windows, where an interpreter of a virtual environment runs in a child of the process that was started.

    Args:
        parent: its process ID. If it has ended already, so does this process.
        grace_seconds: that this process has to end by itself first.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        time.sleep(grace_seconds)
        end_process(INTERRUPTED)

    if os.name == "posix":
        threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
