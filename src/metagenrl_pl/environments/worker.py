"""A worker process that holds environments, and what it shares with the process that started it (`env_workers.WorkerGroup`).

What a step needs lies in shared memory; a byte through a pipe wakes the worker, and a byte goes back when its environments have
stepped. Everything else, once an episode or less, is pickled.
"""

import contextlib
import faulthandler
import mmap
import os
import pickle
import traceback
import warnings
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

from metagenrl_pl.environments.environment import Environment, EnvironmentSpec
from metagenrl_pl.environments.group import Repeated, Steps, repeated, step_into

STEP, DONE, PICKLE = b"s", b"d", b"p"
"""The byte that begins what is said through a pipe: take a step, it is done, a pickle follows."""


class Table(NamedTuple):
    """What a step needs, in shared memory. A worker writes to the rows of its own environments only."""

    action: np.ndarray  # [E, A], float64, which holds the bits of narrower floats
    steps: Steps
    is_open: np.ndarray  # [E]

    @staticmethod
    def num_bytes(num_environments: int, observation_size: int, action_size: int) -> int:
        """Memory that it takes."""
        return num_environments * (8 * action_size + 8 + 4 * observation_size + 3)

    @classmethod
    def within(cls, memory: mmap.mmap, num_environments: int, observation_size: int, action_size: int) -> "Table":
        """The one that lies in `memory`."""
        num_taken = 0

        def take(dtype: type, *shape: int) -> np.ndarray:
            nonlocal num_taken
            array: np.ndarray = np.ndarray(shape, dtype, memory, num_taken)
            num_taken += array.nbytes
            return array

        action = take(np.float64, num_environments, action_size)  # wide types first, so that all are aligned
        reward = take(np.float64, num_environments)
        observation = take(np.float32, num_environments, observation_size)
        terminated, truncated, is_open = (take(np.bool_, num_environments) for _ in range(3))
        return cls(action, Steps(observation, reward, terminated, truncated), is_open)


class Failure(NamedTuple):
    """An answer: what went wrong, and the index of the environment."""

    environment: int
    error: Exception


def work(request_file: int, answer_file: int, memory_file: int, *shape: int) -> None:
    """Answer requests until the other end of their pipe is closed, as it is too when the parent dies, however it dies.

    Args:
        request_file: number of the file that requests are read from.
        answer_file: number of the file that answers are written to.
        memory_file: number of the file that holds the table.
        shape: of the table: E, O, A.
    """
    for file in (request_file, answer_file):
        os.set_inheritable(file, False)  # what an environment starts must not keep the pipes open
    faulthandler.enable()  # says where a crash was
    table = Table.within(mmap.mmap(memory_file, 0), *shape)
    os.close(memory_file)
    requests, answers = Connection(request_file, writable=False), Connection(answer_file, readable=False)
    with contextlib.suppress(EOFError, BrokenPipeError), contextlib.closing(_Server(table)) as server:
        while kind := os.read(request_file, 1):
            answer = server.answer(*(("step",) if kind == STEP else requests.recv()))
            if answer is None:
                os.write(answer_file, DONE)
            else:
                os.write(answer_file, PICKLE)
                answers.send(answer)


class _Server:
    """A worker's environments.

    Args:
        table: shared with the parent.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self._environments: dict[int, Environment] = {}
        self._index = 0  # of the environment that is at work

    def answer(self, request: str, *arguments: Any) -> Any:
        """What the method of this name gives, or a Failure."""
        try:
            return getattr(self, request)(*arguments)
        except Exception as error:
            error.add_note("In the worker process:\n" + "".join(traceback.format_exception(error)))
            return Failure(self._index, error)

    def make(self, specs: dict[int, tuple[str, bytes]]) -> None:
        """Make environments from their names and pickled specs, by index."""
        for self._index, (name, spec) in specs.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the parent has made one of this kind, and told them
                self._environments[self._index] = _made(name, spec)

    def step(self) -> None:
        """Take a step with the environments that are open."""
        table = self._table
        for index, environment in self._environments.items():
            if table.is_open[index]:
                self._index = index
                step_into(table.steps, index, environment, table.action[index])

    def reset(self, index: int, seed: int) -> np.ndarray:
        """See EnvironmentGroup."""
        return self._at_work(index).reset(seed)

    def repeat(self, index: int, seed: int, actions: np.ndarray) -> Repeated:
        """See EnvironmentGroup."""
        return repeated(self._at_work(index), seed, actions)

    def close(self) -> None:
        """Close the environments."""
        for environment in self._environments.values():
            environment.close()

    def _at_work(self, index: int) -> Environment:
        self._index = index
        return self._environments[index]


def _made(name: str, pickled_spec: bytes) -> Environment:
    """The environment; a ValueError if it cannot be made here, although its like was made in the parent."""
    hint = ""
    try:
        spec: EnvironmentSpec = pickle.loads(pickled_spec)
        if ":" not in spec.id:
            hint = f"'module:{spec.id}' with the module that registers it, or "
        return Environment(spec)
    except Exception as error:
        told = (str(error) or type(error).__name__).removeprefix(f"environment {name}: ").splitlines()[0]
        raise ValueError(
            f"environment {name}: cannot be made in a worker process ({told}); valid is {hint}env_workers=0"
        ) from error
