"""Prepare a run's folder, and the threads, memory and cache of its process."""

import contextlib
import os
import socket
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO

import torch
from omegaconf import DictConfig

from metagenrl_pl.common.commands import override
from metagenrl_pl.common.files import atomic_write
from metagenrl_pl.common.locks import lock_folder
from metagenrl_pl.common.machine import keep_freed_memory, seed_global_generators
from metagenrl_pl.common.streams import derive_seed
from metagenrl_pl.config.schema import ConfigError, load_config, resolved_yaml
from metagenrl_pl.learning.compiling import keep_compiled_in
from metagenrl_pl.results.provenance import add_provenance
from metagenrl_pl.training.checkpoint_io import newest_checkpoint

_RESULTS = ("metrics.csv", "meta_test.csv", "objectives/*", "checkpoints/*.ckpt")


def prepare_process(config: DictConfig) -> None:
    """Set threads, memory, precision, cache and global generators. Call it before anything is computed.

    Raises:
        ConfigError: if the number of threads is not positive.
    """
    keep_freed_memory()
    seed_global_generators(derive_seed(config.seed, "global generators", *process_numbers()))
    torch.set_num_threads(choose_num_threads(config.num_threads))
    torch.set_float32_matmul_precision(config.float32_matmul_precision)
    keep_compiled_in(Path(config.compile_cache))


def process_numbers() -> list[str]:
    """What distinguishes this process from the others of its run, whichever launcher has started them."""
    if "RANK" in os.environ:
        return [os.environ["RANK"]]
    others = [os.environ.get(name, "0") for name in ("NODE_RANK", "SLURM_PROCID")]  # of several nodes; of `srun`
    return [os.environ.get("LOCAL_RANK", "0"), *(others if any(number != "0" for number in others) else [])]


def choose_num_threads(num_threads: int | None) -> int:
    """PyTorch's threads on the CPU: as configured, or by default one, since tensors of small networks are too small for more.

    Raises:
        ConfigError: if the number is not positive.
    """
    if num_threads is None:
        return 1
    cores = os.cpu_count() or 1
    if num_threads < 1:
        raise ConfigError(f"num_threads must be at least 1, or null to choose, got {num_threads}")
    if num_threads > max(cores, 64):  # far too many crash the process
        raise ConfigError(f"num_threads={num_threads} is too large; this machine has {cores} cores")
    return num_threads


@contextlib.contextmanager
def open_run_folder(config: DictConfig, device: str, is_first: bool = True) -> Iterator[None]:
    """Make the run's folder, lock it during the body, and write its configuration and its provenance (versions, commit, device).

    Args:
        config: of the run.
        device: of the run, in words.
        is_first: whether this is the first process of the run. The others do nothing.

    Raises:
        ConfigError: if the folder has another run, another process runs in it, or it cannot be made or written.
    """
    if not is_first:
        yield
        return
    folder = Path(config.run_dir)
    try:
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"run_dir={folder} is not a folder; valid is a new one")
        lock = lock_folder(folder)
    except BlockingIOError as error:
        raise ConfigError(f"run_dir={error}") from error
    except OSError as error:  # also a name that is too long
        raise ConfigError(f"run_dir={str(folder)[:200]} cannot be written: {error.strerror}") from error
    with lock:
        if config.ckpt_path is None and has_run(folder):
            newest = newest_checkpoint(folder)
            go_on, delete = (
                f"or {override('ckpt_path', str(newest))} to go on",
                "or to delete it first, since it has saved no checkpoint",
            )
            other = go_on if newest else delete
            raise ConfigError(
                f"run_dir={folder} already has a run; valid is a new folder (in a sweep one for each job, "
                f"{override('run_dir', f'{folder}/')}'${{seed}}'), {other}"
            )
        try:
            _name_owner(lock)
            with atomic_write(folder / "config.yaml") as output:
                output.write(resolved_yaml(config).encode())
            add_provenance(folder, device=device)
        except ValueError as error:
            raise ConfigError(f"run_dir={folder}: {error}") from error
        except OSError as error:
            raise ConfigError(f"run_dir={folder} cannot be written: {error.strerror}") from error
        yield


def has_run(folder: Path) -> bool:
    """Whether a folder has results of a run. One with a configuration alone is of a run that was stopped before it began."""
    file = folder / "config.yaml"
    if not file.exists():
        return False
    if any(next(folder.glob(pattern), None) for pattern in _RESULTS):
        return True
    try:
        is_meta_trained = load_config(file).get("meta") is not None
    except ConfigError:
        return True  # not by this version; leave it alone
    return is_meta_trained and (folder / "objective.safetensors").exists()  # a frozen one is a copy, written at the start


def _name_owner(lock: IO[str]) -> None:
    """Write who holds the lock into its file."""
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now():%Y-%m-%d %H:%M:%S}\n")
    lock.flush()
