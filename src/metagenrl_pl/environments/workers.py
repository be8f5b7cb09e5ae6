"""Environments in worker processes: the bits of `SerialGroup`, on more cores and while this process does other work.

A worker (`env_worker`) is a fresh interpreter that imports neither PyTorch nor the program that started it: it starts in a fraction
of a second, and CUDA and threads of this process cannot harm it, as they would a fork.
"""

import contextlib
import mmap
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing import Pipe
from typing import Any

import numpy as np

from metagenrl_pl.common.machine import num_cores
from metagenrl_pl.environments.environment import EnvironmentFailure, EnvironmentSpec
from metagenrl_pl.environments.group import EnvironmentGroup, Repeated, SerialGroup, Steps, sizes_of
from metagenrl_pl.environments.worker import DONE, PICKLE, STEP, Failure, Table

MIN_CORES = 4
"""From how many cores on workers are chosen: with fewer they take turns with the training process."""

SECONDS_TO_CLOSE = 5.0
"""How long a worker may take to end what it does before it is killed."""

NOT_ENDED = "the step before has not ended"

# Signals are for the parent, which may want to end its step and save. They get handlers that do nothing, since what is *ignored*
# stays ignored in the programs that an environment starts; and at once, since imports take their time. The search path is the
# parent's to the letter, so that `module:Id` finds the same module.
START = """
import signal, sys
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: None)
num_numbers = int(sys.argv[1])
numbers, sys.path[:] = sys.argv[2 : 2 + num_numbers], sys.argv[2 + num_numbers :]
from metagenrl_pl.environments.worker import work
work(*map(int, numbers))
"""


def choose_num_workers(num_workers: int | None, num_environments: int, num_processes: int = 1) -> int:
    """Worker processes for a training process: as configured, or from the cores that it may use.

    Args:
        num_workers: as configured; None: one core is left to the training process and the others get a worker each, or, with
            fewer than `MIN_CORES`, there are no workers.
        num_environments: of this training process; there are never more workers.
        num_processes: training processes on this machine, which share its cores.

    Raises:
        ValueError: if the number is no whole number from 0, or there are no workers on this platform (Windows) and some are asked for.
    """
    if num_workers is None:
        cores = num_cores() // num_processes
        num_workers = cores - 1 if cores >= MIN_CORES and os.name == "posix" else 0
    elif type(num_workers) is not int or num_workers < 0:
        raise ValueError(f"env_workers must be null, to choose, or a whole number from 0, got {num_workers!r}")
    elif num_workers > 0 and os.name != "posix":
        raise ValueError(f"env_workers={num_workers} cannot serve on {sys.platform}; valid: 0, null")
    return min(num_workers, num_environments)


def make_group(specs: Sequence[EnvironmentSpec], num_workers: int | None, num_processes: int = 1) -> EnvironmentGroup:
    """Environments in as many worker processes as `choose_num_workers` says; 0: in this process.

    Raises:
        ValueError: if an environment cannot serve, or the number is not valid.
    """
    num_workers = choose_num_workers(num_workers, len(specs), num_processes)
    return SerialGroup(specs) if num_workers == 0 else WorkerGroup(specs, num_workers)


class WorkerGroup(EnvironmentGroup):
    """In worker processes.

    What an environment raises in a worker is raised here, with the worker's traceback as a note. The death of a worker is an
    `EnvironmentFailure`, too; then the group can only be closed.

    Args:
        specs: what to make.
        num_workers: processes, from 1; never more than environments.

    Raises:
        ValueError: if an environment cannot serve, here or in a worker, or the number is not valid.
    """

    def __init__(self, specs: Sequence[EnvironmentSpec], num_workers: int) -> None:
        if choose_num_workers(num_workers, len(specs)) == 0:
            raise ValueError(
                f"env_workers must be a whole number from 1 for environments in worker processes, got {num_workers!r}"
            )
        # One of each kind is made here first: mistakes and warnings are told once, and as SerialGroup tells them.
        super().__init__(specs, sizes_of(specs))
        shape = len(specs), self.observation_size, self.action_size
        pickled_specs = [_pickled(spec) for spec in specs]
        self._workers: list[_Worker] = []
        self._asked: list[_Worker] = []  # whose answers are still to be read
        self._finalizer = weakref.finalize(self, _close, self._workers)  # when it is deleted, and at exit
        try:
            with _anonymous_file(Table.num_bytes(*shape)) as file:
                self._table = Table.within(mmap.mmap(file, 0), *shape)
                for indices in deal(specs, min(num_workers, len(specs))):
                    self._workers.append(_Worker({index: specs[index].name for index in indices}, file, shape))
            self._asked = self._workers
            for worker in self._workers:
                worker.ask("make", {index: (name, pickled_specs[index]) for index, name in worker.names.items()})
            self._answers()
        except BaseException:
            self.close()
            raise
        self._worker_of = {index: worker for worker in self._workers for index in worker.names}

    def reset(self, index: int, seed: int) -> np.ndarray:
        """See EnvironmentGroup."""
        return self._answer(index, "reset", seed)

    def begin_step(self, action: np.ndarray, is_open: np.ndarray | None = None) -> None:
        """See EnvironmentGroup."""
        assert not self._asked, NOT_ENDED
        table = self._table
        table.action[:] = action[:, : self.action_size]
        table.is_open[:] = True if is_open is None else is_open
        if is_open is not None:
            for array in table.steps:
                array[~is_open] = 0  # as in SerialGroup
        self._asked = [worker for worker in self._workers if is_open is None or is_open[worker.rows].any()]
        for worker in self._asked:
            worker.wake()

    def end_step(self) -> Steps:
        """See EnvironmentGroup."""
        self._answers()
        return Steps(*(array.copy() for array in self._table.steps))

    def repeat(self, index: int, seed: int, actions: np.ndarray) -> Repeated:
        """See EnvironmentGroup."""
        return self._answer(index, "repeat", seed, actions)

    def close(self) -> None:
        """End the workers, which close their environments; a second time does nothing."""
        self._finalizer()

    def _answer(self, index: int, request: str, *arguments: Any) -> Any:
        assert not self._asked, NOT_ENDED
        self._asked = [self._worker_of[index]]
        self._asked[0].ask(request, index, *arguments)
        return self._answers()[0]

    def _answers(self) -> list[Any]:
        answers = [worker.receive() for worker in self._asked]  # all are taken from the pipes, whatever one of them says
        self._asked = []  # not before: one that Ctrl-C left in its pipe would pass for that to the next question
        failures = [answer for answer in answers if isinstance(answer, Failure)]
        if failures:
            raise min(failures, key=lambda failure: failure.environment).error  # the one that SerialGroup would have met
        return answers


def deal(specs: Sequence[EnvironmentSpec], num_workers: int) -> list[list[int]]:
    """Indices of each worker's environments: a mix of all kinds, since some are slower and a step lasts as long as the slowest worker's."""
    kinds = list(dict.fromkeys(spec.name for spec in specs))
    by_kind = sorted(range(len(specs)), key=lambda index: kinds.index(specs[index].name))
    return [sorted(by_kind[worker::num_workers]) for worker in range(num_workers)]


class _Worker:
    """A worker process as its parent sees it.

    Args:
        names: of its environments, by their index.
        memory_file: holds the table.
        shape: of the table: E, O, A.
    """

    def __init__(self, names: dict[int, str], memory_file: int, shape: tuple[int, int, int]) -> None:
        self.names, self.rows = names, np.array(list(names))
        their_requests, self._requests = Pipe(duplex=False)
        self._answers, their_answers = Pipe(duplex=False)
        files = their_requests.fileno(), their_answers.fileno(), memory_file
        numbers = (*files, *shape)
        warning_options = [f"-W{option}" for option in sys.warnoptions]
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        with their_requests, their_answers:  # held open here, they would hide the worker's death
            self.process = subprocess.Popen(
                [sys.executable, *warning_options, "-P", "-c", START, *map(str, (len(numbers), *numbers)), *sys.path],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **one_thread},
                pass_fds=files,
                start_new_session=True,  # out of reach of Ctrl-C
            )

    def ask(self, request: str, *arguments: Any) -> None:
        """Ask for what the worker has under this name."""
        with contextlib.suppress(BrokenPipeError):  # its death shows when the answer is read
            os.write(self._requests.fileno(), PICKLE)
            self._requests.send((request, *arguments))

    def wake(self) -> None:
        """Ask for a step."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._requests.fileno(), STEP)

    def receive(self) -> Any:
        """The answer; a Failure if an environment raised something or the process died."""
        if os.read(self._answers.fileno(), 1) == DONE:
            return None
        try:
            return self._answers.recv()
        except (EOFError, OSError):
            return Failure(next(iter(self.names)), self._death())

    def hang_up(self) -> None:
        """Tell it to end."""
        self._requests.close()
        self._answers.close()

    def end(self) -> int:
        """Wait for its end, and bring it about if need be; the exit code."""
        try:
            return self.process.wait(SECONDS_TO_CLOSE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def _death(self) -> EnvironmentFailure:
        code = self.end()
        reason = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        hint = ", which the system sends when memory runs out" if -code == signal.SIGKILL else ""
        return EnvironmentFailure(
            f"a worker process died, with the environments {', '.join(self.names.values())}: {reason}{hint}"
        )


def _close(workers: Iterable[_Worker]) -> None:
    """End the workers, all at a time. In a fork of their parent it closes the fork's copies of their pipes, and they go on."""
    for worker in workers:
        worker.hang_up()
    for worker in workers:
        worker.end()


def _pickled(spec: EnvironmentSpec) -> bytes:
    try:
        return pickle.dumps(spec)
    except Exception as error:  # whatever an object in its kwargs raises
        raise ValueError(
            f"environment {spec.name}: its kwargs cannot go to a worker process ({error}); valid: env_workers=0"
        ) from error


@contextlib.contextmanager
def _anonymous_file(num_bytes: int) -> Iterator[int]:
    """A file that has no name and is gone with the last process that holds it; its number."""
    if hasattr(os, "memfd_create"):
        opened = os.fdopen(os.memfd_create("environments"), "r+b")
    else:
        opened = tempfile.TemporaryFile()  # noqa: SIM115
    with opened:
        opened.truncate(num_bytes)
        yield opened.fileno()
