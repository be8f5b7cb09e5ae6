"""Meta-tests in a second process, beside meta-training: those of methods that do not depend on it.

    this process    meta-training ............................ | test of the learned objective | collect the rest
    the other one   untrained | REINFORCE | DDPG/TD3

A test draws from random streams of its own only, so its results are the same bits wherever and whenever it is made.
"""

import multiprocessing
import os
import pickle
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing.sharedctypes import Synchronized, SynchronizedArray
from multiprocessing.synchronize import Event
from typing import Any, cast

import torch

from metagenrl_pl.common.machine import draw_seed, keep_freed_memory, num_cores, seed_global_generators
from metagenrl_pl.common.messages import one_line
from metagenrl_pl.common.signals import end_with, install_handler
from metagenrl_pl.environments.environment import Environment
from metagenrl_pl.evaluation.fresh_agents import MetaTestPlan, meta_test
from metagenrl_pl.learning.compiling import ignore
from metagenrl_pl.learning.cycle import Resources
from metagenrl_pl.objectives import Objective
from metagenrl_pl.results.rows import MetaTestRow, mean_returns

MIN_ENV_STEPS = 2000
"""From how many env steps of all tests a second process pays: it takes as long to start as some hundreds of update cycles."""


def can_run_in_background(resources: Resources, num_env_steps: int) -> bool:
    """Whether a second process should make meta-tests of so many env steps: on the CPU, beside a run of one process, on a free core."""
    is_on_cpu = torch.device(resources.device).type == "cpu"
    return is_on_cpu and resources.world_size == 1 and num_cores() > 1 and num_env_steps >= MIN_ENV_STEPS


class CannotTestThere(Exception):
    """The second process cannot make a test that this one can: it lacks an environment or the class of an objective."""


class BackgroundTests:
    """Tests of some objectives, one after the other, in a process that starts at once.

    Args:
        tests: objectives by the name of their method, as for `meta_test`.
        plan: what is tested.
        resources: where; on the CPU of this machine.
    """

    def __init__(
        self, tests: Mapping[str, Objective | Mapping[int, Objective]], plan: MetaTestPlan, resources: Resources
    ) -> None:
        self.num_env_steps = len(tests) * plan.env_steps
        # A fresh interpreter: a fork would copy the threads' locks of this process.
        context = multiprocessing.get_context("spawn")
        self._stop, self._done = context.Event(), context.Value("q", 0)
        self._methods, self._environments = list(tests), [spec.name for spec in plan.specs]
        # For each method the env steps of its newest evaluation, then the mean return in each environment. Shared memory, not a queue:
        # a full queue would stop the other process, also from ending.
        self._newest = context.Array("d", len(tests) * (1 + len(self._environments)))
        of_torch = torch.get_num_threads(), torch.get_float32_matmul_precision()
        shared = (self._stop, self._done, self._newest, draw_seed(), *of_torch)
        self._executor = ProcessPoolExecutor(1, context, _prepare, shared)
        resources = replace(resources, notify=ignore)  # two processes would write over each other's lines
        self._results = {
            method: self._submit((index, method, objective, plan, resources))
            for index, (method, objective) in enumerate(tests.items())
        }

    def _submit(self, arguments: tuple[Any, ...]) -> Future[list[MetaTestRow]]:
        try:
            # Pickled here: the pool's own pickler would hand tensors over as shared memory, which needs both processes to be alive.
            return self._executor.submit(_test, pickle.dumps(arguments))
        except Exception as error:  # an objective's own methods may raise anything
            failed: Future[list[MetaTestRow]] = Future()
            failed.set_exception(CannotTestThere(one_line(error)))
            return failed

    @property
    def env_steps(self) -> int:
        """Env steps of all tests that are done, of `num_env_steps`."""
        return self._done.value

    def newest(self) -> dict[str, tuple[int, dict[str, float]]]:
        """Of each method that has been evaluated: env steps of its newest evaluation, and the mean return in each environment."""
        width = 1 + len(self._environments)
        values = self._newest[:]
        cells = {method: values[index * width : (index + 1) * width] for index, method in enumerate(self._methods)}
        return {
            method: (int(env_steps), dict(zip(self._environments, returns, strict=True)))
            for method, (env_steps, *returns) in cells.items()
            if env_steps
        }

    def __contains__(self, method: str) -> bool:
        return method in self._results

    def is_done(self, method: str, seconds: float) -> bool:
        """Whether a test is done, or has failed, after so many seconds at most."""
        return bool(wait([self._results[method]], seconds).done)

    def check(self) -> None:
        """Raise what a test that has failed raised, unless this process can make it: the other one has died, or lacks something."""
        for future in self._results.values():
            error = future.exception() if future.done() and not future.cancelled() else None
            if error is not None and not isinstance(error, BrokenProcessPool | CannotTestThere):
                raise error

    def finished(self) -> dict[str, list[MetaTestRow]]:
        """The results that are there so far, by method."""
        done = {method: future for method, future in self._results.items() if future.done() and not future.cancelled()}
        return {method: future.result() for method, future in done.items() if future.exception() is None}

    def result(self, method: str) -> list[MetaTestRow]:
        """What `meta_test` returns for a method. Waits for it.

        Raises:
            BrokenProcessPool: if the other process has died.
            CannotTestThere: see the class.
        """
        return self._results[method].result()

    def close(self) -> None:
        """End the process; tests that are not done have no result."""
        self._stop.set()
        self._executor.shutdown(cancel_futures=True)


_stop: Event
_done: "Synchronized[int]"
_newest: "SynchronizedArray[float]"


def _prepare(
    stop: Event,
    done: "Synchronized[int]",
    newest: "SynchronizedArray[float]",
    seed: int,
    num_threads: int,
    matmul_precision: str,
) -> None:
    """What the other process does first."""
    global _stop, _done, _newest
    _stop, _done, _newest = stop, done, newest
    install_handler(lambda *_: None)  # the parent answers signals, and ends this process
    # The parent may be killed: no one is left to take a result, and the pool would wait for more work.
    if parent := multiprocessing.parent_process():
        end_with(cast(int, parent.pid))
    torch.set_num_threads(num_threads)
    # Said even where it is the default, as in the parent: it is part of the key by which compiled updates are found.
    torch.set_float32_matmul_precision(matmul_precision)
    if hasattr(os, "nice"):  # Windows lacks it
        os.nice(10)  # meta-training goes first where both want the same core, as while they compile
    seed_global_generators(seed)
    keep_freed_memory()


def _test(pickled: bytes) -> list[MetaTestRow]:
    try:
        index, method, objective, plan, resources = pickle.loads(pickled)
        for spec in plan.specs:
            Environment(spec).close()
    except Exception as error:
        raise CannotTestThere(one_line(error)) from error
    before = _done.value

    def report(env_steps: int) -> None:
        _done.value = before + env_steps

    def share_returns(rows: Sequence[MetaTestRow]) -> None:
        returns = mean_returns(rows)
        width = 1 + len(plan.specs)
        _newest[index * width : (index + 1) * width] = [rows[0].env_steps, *(returns[spec.name] for spec in plan.specs)]

    return meta_test(method, objective, plan, resources, report, _stop.is_set, share_returns)
