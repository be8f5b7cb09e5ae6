"""Commands in forks of this process: a fork has imported everything, so that one can be killed every second."""

import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import gymnasium.envs.mujoco.inverted_pendulum_v5  # noqa: F401  (so that forks need not import it, which takes seconds)
import pytorch_lightning.loggers  # noqa: F401
import tensorboard  # noqa: F401

import callbacks.display
import callbacks.meta_testing  # noqa: F401
import metagenrl_pl.launch.checks
import metagenrl_pl.launch.run  # noqa: F401
from metagenrl_pl.common.signals import STOP_SIGNALS
from metagenrl_pl.launch import entry

CONF = Path(__file__).parents[1] / "conf"


class Ended(NamedTuple):
    """How a command has ended; a negative code is the signal that has killed it."""

    code: int
    output: str
    errors: str


class Fork:
    """`train.py` with these arguments in a folder.

    Args:
        folder: to work in.
        arguments: of the command line.
        before: called first in the fork.
    """

    def __init__(self, folder: Path, *arguments: str, before: Callable[[], object] = lambda: None) -> None:
        self._files = [folder / f".{name}" for name in ("stdout", "stderr")]
        self.start = time.monotonic()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(folder, arguments, before)

    def _run(self, folder: Path, arguments: tuple[str, ...], before: Callable[[], object]) -> None:
        code = 1
        try:
            os.chdir(folder)
            for number in STOP_SIGNALS:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            for descriptor, path in zip((1, 2), self._files, strict=True):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
            sys.stdout, sys.stderr = (os.fdopen(os.dup(n), "w", buffering=1) for n in (1, 2))
            warnings.resetwarnings()
            warnings.filterwarnings("ignore", module="pytorch_lightning")
            warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
            sys.argv[:] = ["train.py", *arguments]
            before()
            entry.run_command_line(CONF)
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def kill_after(self, seconds: float, number: int = signal.SIGKILL) -> None:
        """Send a signal, unless the command has ended before."""
        time.sleep(max(0.0, self.start + seconds - time.monotonic()))
        if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            os.kill(self.pid, number)

    def wait(self) -> Ended:
        _, status = os.waitpid(self.pid, 0)
        return Ended(os.waitstatus_to_exitcode(status), *(path.read_text() for path in self._files))
