"""The program of a worker process, and its protocol with the parent process (`workers.WorkerGroup`).

    parent -> worker   STEP              one byte: step all open environments
                       PICKLE, pickle    the name of a `_Server` method and its arguments: make, reset or repeat
    worker -> parent   DONE              one byte: the method has finished and returns nothing
                       PICKLE, pickle    the result of the method, or a `Failure`

Each request gets exactly one answer. Steps are frequent, so their arrays lie in shared memory (`Table`) and only one byte goes
through each pipe. Other requests come at most once per episode, so they are pickled.
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

from metagenrl_pl.common.machine import seed_global_generators
from metagenrl_pl.common.signals import end_with
from metagenrl_pl.environments.environment import Environment, EnvironmentSpec
from metagenrl_pl.environments.group import RepeatedEpisode, Steps, repeat_episode, step_into

STEP, DONE, PICKLE = b"s", b"d", b"p"
"""The first byte of every message (see the protocol above)."""


class Table(NamedTuple):
    """Inputs and results of a step in shared memory. A worker writes only to the rows of its own environments."""

    action: np.ndarray  # [E, A], float64, which represents narrower floats exactly
    steps: Steps
    is_open: np.ndarray  # [E]

    @staticmethod
    def num_bytes(num_environments: int, observation_size: int, action_size: int) -> int:
        """Size of the shared memory for a table of this shape, in bytes."""
        return num_environments * (8 * action_size + 8 + 4 * observation_size + 3)

    @classmethod
    def within(cls, memory: mmap.mmap, num_environments: int, observation_size: int, action_size: int) -> "Table":
        """A table whose arrays are views of `memory`."""
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
    """The answer to a request that failed: the index of the environment and its error."""

    environment: int
    error: Exception


SECONDS_TO_CLOSE = 5.0
"""How long a worker may take to close its environments before it is killed."""


def work(parent: int, request_file: int, answer_file: int, memory_file: int, seed: int, *shape: int) -> None:
    """Answer requests until the parent closes its end of the request pipe. The system closes it too if the parent dies.

    Args:
        parent: process ID. If the parent has died, so does this process, even in an environment that hangs.
        request_file: file descriptor that requests are read from.
        answer_file: file descriptor that answers are written to.
        memory_file: file descriptor of the table's shared memory.
        seed: of the process's global generators.
        shape: of the table: E, O, A.
    """
    end_with(parent, SECONDS_TO_CLOSE)
    seed_global_generators(seed)
    for file in (request_file, answer_file):
        os.set_inheritable(file, False)  # so that programs that an environment starts do not keep the pipes open
    faulthandler.enable()  # prints a traceback after a crash
    table = Table.within(mmap.mmap(memory_file, 0), *shape)
    os.close(memory_file)
    requests, answers = Connection(request_file, writable=False), Connection(answer_file, readable=False)
    with contextlib.suppress(EOFError, BrokenPipeError), contextlib.closing(_Server(table)) as server:
        while kind := os.read(request_file, 1):
            answer = server.handle(*(("step",) if kind == STEP else requests.recv()))
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
        self._index = 0  # environment in use, for a Failure

    def handle(self, request: str, *arguments: Any) -> Any:
        """Call the method named `request`. Returns its result, or a Failure if it raises."""
        try:
            return getattr(self, request)(*arguments)
        except Exception as error:
            error.add_note("In the worker process:\n" + "".join(traceback.format_exception(error)))
            return Failure(self._index, error)

    def make(self, specs: dict[int, tuple[str, bytes]]) -> None:
        """Make environments from names and pickled specs; the keys are their indices."""
        for self._index, (name, spec) in specs.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the parent has made one of each kind and shown its warnings
                self._environments[self._index] = _make_environment(name, spec)

    def step(self) -> None:
        """Step the environments that are marked as open in the table, and write the results there."""
        table = self._table
        for index, environment in self._environments.items():
            if table.is_open[index]:
                self._index = index
                step_into(table.steps, index, environment, table.action[index])

    def reset(self, index: int, seed: int) -> np.ndarray:
        return self._select(index).reset(seed)

    def repeat(self, index: int, seed: int, actions: np.ndarray) -> RepeatedEpisode:
        return repeat_episode(self._select(index), seed, actions)

    def close(self) -> None:
        for environment in self._environments.values():
            environment.close()

    def _select(self, index: int) -> Environment:
        self._index = index
        return self._environments[index]


def _make_environment(name: str, pickled_spec: bytes) -> Environment:
    """Make an environment.

    Raises a ValueError if only the parent can make it, for example if only the parent has registered it.
    """
    hint = ""
    try:
        spec: EnvironmentSpec = pickle.loads(pickled_spec)
        if ":" not in spec.id:
            hint = f"'module:{spec.id}' with the module that registers it, or "
        return Environment(spec)
    except Exception as error:
        reason = (str(error) or type(error).__name__).removeprefix(f"environment {name}: ").splitlines()[0]
        raise ValueError(
            f"environment {name}: cannot be made in a worker process ({reason}); valid is {hint}env_workers=0"
        ) from error
