"""The processes of a run: Lightning's strategy, checks of the trainer, a common run folder, and clean-up after a run."""

import contextlib
import inspect
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, cast

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from pytorch_lightning.accelerators import MPSAccelerator
from pytorch_lightning.strategies import DDPStrategy, Strategy

from metagenrl_pl.common.exit_codes import MISTAKE
from metagenrl_pl.common.signals import LAUNCHER, describe_signal
from metagenrl_pl.config.schema import ConfigError

STRATEGIES = ("auto", "ddp")
"""Valid values of `trainer.strategy`."""

_SET_BY_THE_RUN = {
    "callbacks": "an entry below callbacks",
    "logger": "logger=... or an entry below logger",
    "enable_checkpointing": "callbacks.checkpoint=null for none",
    "enable_progress_bar": "callbacks.display=null for none",
    "plugins": "trainer.strategy and trainer.devices",
}
"""Arguments of Lightning's Trainer that the run sets itself, and what users configure instead."""
SECONDS_TO_REPORT = 4.0
"""How long a failed process waits for other processes to report their errors.

Lightning looks for dead ones every five seconds.
"""
_RUN_DIR = "METAGENRL_RUN_DIR"
_THREADS = "OMP_NUM_THREADS"
_LAUNCH_VARIABLES = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", _THREADS, _RUN_DIR, LAUNCHER)


class PopulationStrategy(DDPStrategy):
    """Lightning's DDP without `DistributedDataParallel`: only launching, devices and the process group.

    Agents differ between processes, and `DistributedDataParallel` would make them equal. The objective is the same in all
    processes, because each steps it with the same gradient, which is gathered from all agents (`Placement.gather`).
    """

    def __init__(self, **kwargs: Any) -> None:
        # A process may wait for hours while another one meta-tests its agents. If a process dies, the launcher ends the others.
        super().__init__(timeout=timedelta(days=7), **kwargs)

    def configure_ddp(self) -> None:
        """Do not wrap the module in `DistributedDataParallel`."""


def make_strategy(trainer: DictConfig) -> Strategy | str:
    """The strategy for Lightning's Trainer: `auto` for one process on one device, otherwise `PopulationStrategy`.

    Raises:
        ConfigError: for a strategy that is not one of `STRATEGIES`.
    """
    strategy = trainer.get("strategy", "auto")
    if strategy not in STRATEGIES:
        raise ConfigError(
            f"trainer.strategy={strategy} is not a choice, since processes share the objective but not their agents; "
            f"valid: {', '.join(STRATEGIES)}"
        )
    devices = trainer.get("devices", "auto")
    is_one_device = devices in (1, "1") or (isinstance(devices, ListConfig) and len(devices) == 1)
    if strategy == "auto" and is_one_device and trainer.get("num_nodes", 1) == 1:
        return "auto"
    return PopulationStrategy()


def check_trainer(trainer: DictConfig) -> None:
    """Reject trainer settings that do not work here: unsaved ends, several epochs, other precisions, arguments that the run sets.

    Raises:
        ConfigError: names the key and what is valid.
    """
    defaults = inspect.signature(pl.Trainer).parameters
    for key in ("max_time", "max_steps", "limit_train_batches", "overfit_batches", "fast_dev_run"):
        if trainer.get(key) not in (None, defaults[key].default):
            raise ConfigError(f"trainer.{key}={trainer[key]} would end the run unsaved; valid is env_steps=... for its length")
    if trainer.get("max_epochs", 1) != 1:
        raise ConfigError(f"trainer.max_epochs={trainer.max_epochs}: a run is one epoch, as long as env_steps; valid is 1")
    for key, unset, valid in (
        ("gradient_clip_val", None, "agent.policy_max_gradient_norm=..."),
        ("accumulate_grad_batches", 1, "agent.num_windows=..."),
    ):
        if trainer.get(key, unset) != unset:
            raise ConfigError(f"trainer.{key}={trainer[key]} does not work with manual optimization; valid is {valid}")
    for key, valid in _SET_BY_THE_RUN.items():
        if key in trainer:
            raise ConfigError(f"trainer.{key}={trainer[key]} is set by the run; valid is {valid}")
    devices = trainer.get("devices", "auto")
    if isinstance(devices, str) and devices != "auto" and not re.fullmatch(r"\s*-?\d+(\s*,\s*\d+)*\s*,?\s*", devices):
        raise ConfigError(f"trainer.devices={devices}: valid are auto, a number of devices, or a list of their indices")
    is_on_cpu = trainer.get("accelerator", "auto") == "cpu" or not torch.accelerator.is_available()
    if is_on_cpu and (isinstance(devices, ListConfig) or (isinstance(devices, str) and "," in devices)):
        raise ConfigError(f"trainer.devices={devices}: the CPU has no indices; valid is a number of processes, such as 2")
    if isinstance(devices, int) and devices != -1 and devices < 1:
        raise ConfigError(f"trainer.devices={devices}: valid are auto, -1 (all), a number of devices, or a list of their indices")
    if trainer.get("precision") not in (None, 32, "32", "32-true"):
        raise ConfigError(
            f"trainer.precision={trainer.precision}: agents compute in 32 bits; valid is 32-true, and float32_matmul_precision=high"
        )


def check_accelerator(trainer: pl.Trainer) -> None:
    """Reject devices without 64-bit floats, with which windows are drawn.

    Raises:
        ConfigError: on Apple's GPUs.
    """
    if isinstance(trainer.accelerator, MPSAccelerator):
        raise ConfigError(
            "trainer.accelerator: Apple's GPUs (mps) have no 64-bit floats, which replay needs; valid is trainer.accelerator=cpu"
        )


def keep_signal_handlers(trainer: pl.Trainer) -> None:
    """Keep Lightning from handling signals. Its handler for SIGTERM talks to other processes, whatever they are doing, and may wait
    for ever; its handlers under SLURM save to the working folder."""
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


def check_world_size(world_size: int, num_agents: int) -> None:
    """Reject more processes than agents, since a process without an agent has nothing to do.

    Raises:
        ConfigError: names the keys.
    """
    if world_size > num_agents:
        raise ConfigError(
            f"trainer.devices and trainer.num_nodes ask for {world_size} processes, population.size={num_agents} agents can be "
            f"spread over at most {num_agents}"
        )


def reported_by_another(trainer: pl.Trainer) -> bool:
    """Whether a process that this one started has already reported the error in one line. Call it after an error.

    If a process fails, its connections break, and the other processes get errors too. So we wait until the processes have ended,
    and look for one that ended with a reported error.
    """
    processes: list[subprocess.Popen] = getattr(trainer.strategy.launcher, "procs", [])
    until = time.monotonic() + SECONDS_TO_REPORT
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, until - time.monotonic()))
    return any(process.returncode == MISTAKE for process in processes)


def name_dead(trainer: pl.Trainer) -> str | None:
    """The process that a signal has ended, of those that this one started, in words. Call it after `reported_by_another`."""
    for rank, process in enumerate(getattr(trainer.strategy.launcher, "procs", []), start=1):
        if process.returncode is not None and process.returncode < 0:
            return f"process {rank} of this run (pid {process.pid}) was ended by {describe_signal(process.returncode)}"
    return None


def agree_on_run_dir(run_dir: str) -> str:
    """The run folder that the first process has chosen. Every process has to call it.

    The default folder is named after the start time, which differs between processes.
    """
    if _RUN_DIR in os.environ:  # the first process has started this one
        return os.environ[_RUN_DIR]
    if not dist.is_torchelastic_launched():
        return run_dir
    store, rank, _ = next(dist.rendezvous("env://"))
    job = OmegaConf.select(cast(DictConfig, HydraConfig.get()), "job.num", default=0) if HydraConfig.initialized() else 0
    key = f"{_RUN_DIR}/{job}"  # each job of a sweep has its own folder
    if rank == 0:
        store.set(key, run_dir)
    return str(store.get(key).decode())


@contextlib.contextmanager
def launching(run_dir: str) -> Iterator[None]:
    """Set what the processes that Lightning launches inherit, and restore everything afterwards for the next job of a sweep.

    Args:
        run_dir: the run's folder.
    """
    arguments, before = sys.argv, {name: os.environ.get(name) for name in _LAUNCH_VARIABLES}
    os.environ[_RUN_DIR], os.environ[LAUNCHER] = run_dir, str(os.getpid())
    os.environ.setdefault(_THREADS, str(torch.get_num_threads()))  # without it, Lightning would give every process many threads
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        # A launched process runs this job, not the sweep.
        overrides = get_args_parser().parse_args(arguments[1:]).overrides  # the rest are flags and their values
        flags = [argument for argument in arguments[1:] if argument not in (*overrides, "-m", "--multirun")]
        sys.argv = [arguments[0], *flags, *HydraConfig.get().overrides.task]
    try:
        yield
    finally:
        sys.argv = arguments
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        if dist.is_initialized():
            dist.destroy_process_group()
