"""Environments in worker processes: the same results as `SerialGroup`, on more cores and in parallel with updates.

A worker is a new Python interpreter, not a fork, so CUDA and threads of this process cannot break it. It imports neither PyTorch nor
the main program, so it starts in a fraction of a second. `worker.py` is what it runs, `worker_process.py` the side of this process.
"""

import mmap
import os
import pickle
import sys
import tempfile
import warnings
import weakref
from collections.abc import Iterable, Sequence
from typing import IO, Any

import numpy as np

from metagenrl_pl.common.machine import num_cores
from metagenrl_pl.environments.environment import EnvironmentSpec
from metagenrl_pl.environments.group import EnvironmentGroup, RepeatedEpisode, SerialGroup, Steps, sizes_of
from metagenrl_pl.environments.worker import Failure, Table
from metagenrl_pl.environments.worker_process import WorkerHang, WorkerProcess

MIN_CORES = 4
"""Workers are used by default if there are at least this many cores. With fewer, workers and training would share cores."""

MAX_RESTARTS = 3
"""How often in a row a worker is replaced that hangs in a step, before the environment counts as broken."""

NOT_ENDED = "the previous step has not ended"


def choose_num_workers(num_workers: int | None, num_environments: int, num_processes: int = 1) -> int:
    """The number of worker processes for one training process.

    Args:
        num_workers: as configured. None chooses by the available cores: one worker per core except one core, which is left to the
            training process; no workers with fewer than `MIN_CORES` cores.
        num_environments: of this training process; there are never more workers than environments.
        num_processes: training processes on this machine, which share its cores.

    Raises:
        ValueError: if the number is not a whole number from 0, or is above 0 on a platform without workers (Windows).
    """
    if num_workers is None:
        cores = num_cores() // num_processes
        num_workers = cores - 1 if cores >= MIN_CORES and os.name == "posix" else 0
    elif type(num_workers) is not int or num_workers < 0:
        raise ValueError(f"env_workers must be null, to choose, or a whole number from 0, got {num_workers!r}")
    elif num_workers > 0 and os.name != "posix":
        raise ValueError(f"env_workers={num_workers}: workers are not supported on {sys.platform}; valid: 0, null")
    return min(num_workers, num_environments)


def make_group(
    specs: Sequence[EnvironmentSpec], num_workers: int | None, num_processes: int = 1, timeout: float | None = None
) -> EnvironmentGroup:
    """Environments in `choose_num_workers` worker processes, or in this process if that number is 0. `timeout` as in `WorkerGroup`.

    Raises:
        ValueError: if an environment is not usable, or the number is not valid.
    """
    if timeout is not None and not timeout > 0:
        raise ValueError(f"env_timeout_seconds must be positive, or null to wait for ever, got {timeout}")
    num_workers = choose_num_workers(num_workers, len(specs), num_processes)
    return SerialGroup(specs) if num_workers == 0 else WorkerGroup(specs, num_workers, timeout)


class WorkerGroup(EnvironmentGroup):
    """Environments in worker processes.

    An exception in a worker is raised here, with the worker's traceback as a note. If a worker dies, or hangs outside of a step, this
    raises an `EnvironmentFailure`; after that the group can only be closed.

    A worker that hangs in a step is replaced by a new one, with a warning. The episodes of its environments are then lost: `lost` is
    set for them, and they take no step until the caller has reset them, with other seeds. If the step after that hangs as well, and
    again up to `MAX_RESTARTS` times, this raises an `EnvironmentFailure`.

    Args:
        specs: which environments to make.
        num_workers: number of processes, at least 1. There are never more than environments.
        timeout: seconds after which a worker that has not answered counts as hung; None to wait for ever. A worker that starts has at
            least `START_SECONDS`.

    Raises:
        ValueError: if an environment is not usable, here or in a worker, or the number is not valid.
    """

    def __init__(self, specs: Sequence[EnvironmentSpec], num_workers: int, timeout: float | None = None) -> None:
        if choose_num_workers(num_workers, len(specs)) == 0:
            raise ValueError(
                f"env_workers must be a whole number from 1 for environments in worker processes, got {num_workers!r}"
            )
        # Make one environment of each kind here first. So errors and warnings appear once, and are the same as in SerialGroup.
        super().__init__(specs, sizes_of(specs))
        self._shape, self._timeout = (len(specs), self.observation_size, self.action_size), timeout
        self._pickled_specs = [_pickle_spec(spec) for spec in specs]
        self._workers: list[WorkerProcess] = []
        self._pending: list[WorkerProcess] = []  # workers whose answers have not been read yet
        self._num_replaced = 0
        self._memory_file = _anonymous_file(Table.num_bytes(*self._shape))  # kept open for workers that replace others
        self._finalizer = weakref.finalize(self, _close, self._workers, self._memory_file)  # at its deletion, and at exit
        try:
            self._table = Table.within(mmap.mmap(self._memory_file.fileno(), 0), *self._shape)
            for indices in assign_to_workers(specs, min(num_workers, len(specs))):
                self._workers.append(self._start({index: specs[index].name for index in indices}))
            self._pending = list(self._workers)
            self._receive_all()
        except BaseException:
            self.close()
            raise

    def reset(self, index: int, seed: int) -> np.ndarray:
        first: np.ndarray = self._call(index, "reset", seed)
        self.lost[index] = False
        return first

    def begin_step(self, action: np.ndarray, is_open: np.ndarray | None = None) -> None:
        assert not self._pending, NOT_ENDED
        table = self._table
        table.action[:] = action[:, : self.action_size]
        table.is_open[:] = ~self.lost if is_open is None else is_open & ~self.lost
        for array in table.steps:
            array[~table.is_open] = 0  # as in SerialGroup
        self._pending = [worker for worker in self._workers if table.is_open[worker.rows].any()]
        for worker in self._pending:
            worker.send_step()

    def end_step(self) -> Steps:
        answers = self._read_all()
        hung = [worker for worker, answer in answers.items() if _is_hang(answer) and worker.num_restarts < MAX_RESTARTS]
        _raise_failure(answer for worker, answer in answers.items() if worker not in hung)
        for worker in answers:
            if worker in hung:
                self._replace(worker)
            else:
                worker.num_restarts = 0
        return Steps(*(array.copy() for array in self._table.steps))

    def repeat(self, index: int, seed: int, actions: np.ndarray) -> RepeatedEpisode:
        return self._call(index, "repeat", seed, actions, num_steps=1 + len(actions))

    def close(self) -> None:
        """Stop the workers, which close their environments. A second call does nothing."""
        self._finalizer()

    def _call(self, index: int, request: str, *arguments: Any, num_steps: int = 1) -> Any:
        """A method of the worker of an environment, which resets it or takes this many steps, each of which may last `timeout`."""
        assert not self._pending, NOT_ENDED
        self._pending = [worker for worker in self._workers if index in worker.names]
        self._pending[0].send(request, index, *arguments)
        self._pending[0].allow_steps(num_steps)
        return self._receive_all()[0]

    def _receive_all(self) -> list[Any]:
        answers = list(self._read_all().values())
        _raise_failure(answers)
        return answers

    def _read_all(self) -> dict[WorkerProcess, Any]:
        # 1. Read every pending answer, also after a Failure: an answer that stays in a pipe would be read for the next request.
        answers = {worker: worker.receive() for worker in self._pending}
        # 2. Clear `_pending` only now. If Ctrl-C interrupts the reading, it stays set, and the next request fails its assert.
        self._pending = []
        return answers

    def _start(self, names: dict[int, str]) -> WorkerProcess:
        """A new worker that has been asked to make these environments."""
        worker = WorkerProcess(names, self._memory_file.fileno(), self._shape, self._timeout)
        worker.send("make", {index: (name, self._pickled_specs[index]) for index, name in names.items()})
        return worker

    def _replace(self, worker: WorkerProcess) -> None:
        """Start a new worker in place of one that has been killed."""
        worker.close_pipes()
        worker.wait_or_kill()
        new = self._start(worker.names)
        new.num_restarts = worker.num_restarts + 1
        self._workers[self._workers.index(worker)] = new
        self._pending = [new]
        self._receive_all()
        self.lost[new.rows] = True
        self._num_replaced += 1
        warnings.warn(
            f"a worker process has not answered for {self._timeout:g} s and was replaced; the open episodes of its environments "
            f"({', '.join(worker.names.values())}) are lost. Workers replaced so far: {self._num_replaced}",
            stacklevel=3,
        )


def _is_hang(answer: Any) -> bool:
    return isinstance(answer, Failure) and isinstance(answer.error, WorkerHang)


def _raise_failure(answers: Iterable[Any]) -> None:
    """Raise the failure of the lowest environment, if there is one. It is the one that `SerialGroup` would raise."""
    failures = [answer for answer in answers if isinstance(answer, Failure)]
    if failures:
        raise min(failures, key=lambda failure: failure.environment).error


def assign_to_workers(specs: Sequence[EnvironmentSpec], num_workers: int) -> list[list[int]]:
    """Indices of each worker's environments.

    Each worker gets a mix of all kinds, since a step takes as long as the slowest worker.
    """
    kinds = list(dict.fromkeys(spec.name for spec in specs))
    by_kind = sorted(range(len(specs)), key=lambda index: kinds.index(specs[index].name))
    return [sorted(by_kind[worker::num_workers]) for worker in range(num_workers)]


def _close(workers: Iterable[WorkerProcess], memory_file: IO[bytes]) -> None:
    """End all workers in parallel.

    In a fork of the parent this closes only the fork's copies of the pipes, and the workers go on.
    """
    memory_file.close()
    for worker in workers:
        worker.close_pipes()
    for worker in workers:
        worker.wait_or_kill()


def _pickle_spec(spec: EnvironmentSpec) -> bytes:
    try:
        return pickle.dumps(spec)
    except Exception as error:  # whatever an object in its kwargs raises
        raise ValueError(
            f"environment {spec.name}: its kwargs cannot be sent to a worker process ({error}); valid: env_workers=0"
        ) from error


def _anonymous_file(num_bytes: int) -> IO[bytes]:
    """A file without a name. The system deletes it when the last process closes it."""
    if hasattr(os, "memfd_create"):
        file: IO[bytes] = os.fdopen(os.memfd_create("environments"), "r+b")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115 (for the life of the group)
    file.truncate(num_bytes)
    return file
