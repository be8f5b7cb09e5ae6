"""The parent's side of a worker process: start it, send it requests, wait for its answers, end it."""

import contextlib
import os
import select
import subprocess
import sys
from multiprocessing import Pipe
from typing import Any

import numpy as np

from metagenrl_pl.common.machine import draw_seed
from metagenrl_pl.common.signals import describe_signal
from metagenrl_pl.environments.failures import EnvironmentFailure
from metagenrl_pl.environments.worker import DONE, PICKLE, SECONDS_TO_CLOSE, STEP, Failure

START_SECONDS = 60.0
"""How long a new worker may take at least until its environments are made. On a busy machine its imports take seconds."""

REPEAT_SECONDS = 3600.0
"""How long a worker may take at most to repeat an open episode, if `timeout` is not longer."""

LONGEST_POLL = 2**31 - 1
"""The most milliseconds that the system can wait for, some 25 days."""

# 1. Signals are for the parent, which saves a checkpoint and stops. So the worker installs handlers that do nothing. (Programs
#    that an environment starts would inherit SIG_IGN.)
# 2. The handlers come before the imports, which take time in which a signal could kill the worker.
# 3. The search path is exactly the parent's, so that `module:Id` finds the same module.
START = """
import signal, sys
for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
    signal.signal(getattr(signal, name), lambda *_: None)
num_numbers = int(sys.argv[1])
numbers, sys.path[:] = sys.argv[2 : 2 + num_numbers], sys.argv[2 + num_numbers :]
from metagenrl_pl.environments.worker import work
work(*map(int, numbers))
"""


class WorkerHang(EnvironmentFailure):
    """A worker process does not answer."""


class WorkerProcess:
    """The parent's side of a worker process.

    Args:
        names: names of the worker's environments, by index.
        memory_file: file descriptor of the table's shared memory.
        shape: of the table: E, O, A.
        timeout: as in `WorkerGroup`.
    """

    def __init__(self, names: dict[int, str], memory_file: int, shape: tuple[int, int, int], timeout: float | None) -> None:
        self.names, self.rows, self._timeout = names, np.array(list(names)), timeout
        self._patience = None if timeout is None else max(timeout, START_SECONDS)  # for the next answer
        self.num_restarts = 0  # workers before this one that hung, without a step in between
        worker_requests, self._requests = Pipe(duplex=False)
        self._answers, worker_answers = Pipe(duplex=False)
        self._has_answer = select.poll()
        self._has_answer.register(self._answers.fileno(), select.POLLIN)
        files = worker_requests.fileno(), worker_answers.fileno(), memory_file
        numbers = (os.getpid(), *files, draw_seed(), *shape)
        warning_options = [f"-W{option}" for option in sys.warnoptions]
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        with worker_requests, worker_answers:  # close the parent's copies, or reading would wait forever if the worker dies
            self.process = subprocess.Popen(
                [sys.executable, *warning_options, "-P", "-c", START, *map(str, (len(numbers), *numbers)), *sys.path],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **one_thread},
                pass_fds=files,
                start_new_session=True,  # Ctrl-C does not reach it
            )

    def send(self, request: str, *arguments: Any) -> None:
        """Request a call of a `_Server` method."""
        with contextlib.suppress(BrokenPipeError):  # the worker has died; `receive` reports it
            os.write(self._requests.fileno(), PICKLE)
            self._requests.send((request, *arguments))

    def send_step(self) -> None:
        """Request a step of the open environments."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._requests.fileno(), STEP)

    def allow_steps(self, num_steps: int) -> None:
        """Let the next answer take as long as so many steps, within `REPEAT_SECONDS`."""
        if self._patience is not None and self._timeout is not None:
            self._patience = max(self._patience, min(num_steps * self._timeout, REPEAT_SECONDS))

    def receive(self) -> Any:
        """Wait for the answer. It is a Failure if an environment raised an exception, or the process died or hangs."""
        seconds, self._patience = self._patience, self._timeout
        if not self._has_answer.poll(None if seconds is None else min(1000 * seconds, LONGEST_POLL)):
            self.process.kill()
            return Failure(next(iter(self.names)), self._hang_failure(seconds))
        if os.read(self._answers.fileno(), 1) == DONE:
            return None
        try:
            return self._answers.recv()
        except (EOFError, OSError):
            return Failure(next(iter(self.names)), self._death_failure())

    def close_pipes(self) -> None:
        """Close the parent's ends of both pipes, upon which the worker ends."""
        self._requests.close()
        self._answers.close()

    def wait_or_kill(self) -> int:
        """Wait for the process to end, and kill it after `SECONDS_TO_CLOSE`. Returns the exit code."""
        try:
            return self.process.wait(SECONDS_TO_CLOSE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def _hang_failure(self, seconds: float | None) -> WorkerHang:
        return WorkerHang(
            f"a worker process has not answered for {seconds:g} s, with the environments {', '.join(self.names.values())}; "
            "valid is a larger env_timeout_seconds if they are slow"
        )

    def _death_failure(self) -> EnvironmentFailure:
        code = self.wait_or_kill()
        reason = f"exit code {code}" if code >= 0 else f"signal {describe_signal(code)}"
        return EnvironmentFailure(f"a worker process died, with the environments {', '.join(self.names.values())}: {reason}")
