"""Prepare a run's folder, and the threads, memory and cache of its process."""

from pathlib import Path

import torch
from omegaconf import DictConfig

from metagenrl_pl.common.files import atomic_write
from metagenrl_pl.common.machine import keep_freed_memory
from metagenrl_pl.config.schema import ConfigError, resolved_yaml
from metagenrl_pl.learning.compiling import keep_compiled_in
from metagenrl_pl.results.provenance import add_provenance
from metagenrl_pl.training.checkpoint_io import newest_checkpoint


def prepare_process(config: DictConfig) -> None:
    """Set threads, memory, precision and cache. Call it before anything is computed.

    Raises:
        ConfigError: if the number of threads is not positive.
    """
    keep_freed_memory()
    torch.set_num_threads(choose_num_threads(config.num_threads))
    torch.set_float32_matmul_precision(config.float32_matmul_precision)
    keep_compiled_in(Path(config.compile_cache))


def choose_num_threads(num_threads: int | None) -> int:
    """PyTorch's threads on the CPU: as configured, or by default one, since tensors of small networks are too small for more.

    Raises:
        ConfigError: if the number is not positive.
    """
    if num_threads is None:
        return 1
    if num_threads < 1:
        raise ConfigError(f"num_threads must be at least 1, or null to choose, got {num_threads}")
    return num_threads


def open_run_folder(config: DictConfig, device: str) -> None:
    """Make the run's folder and write its configuration and its provenance (versions, commit, device).

    Args:
        config: of the run.
        device: of the run, in words.

    Raises:
        ConfigError: if the folder has another run, or cannot be made or written.
    """
    folder = Path(config.run_dir)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"run_dir={folder} is not a folder; valid is a new one")
    file = folder / "config.yaml"
    if config.ckpt_path is None and file.exists():
        newest = newest_checkpoint(folder)
        other = f"or ckpt_path={newest} to go on" if newest else "or to delete it first, since it has saved no checkpoint"
        raise ConfigError(
            f"run_dir={folder} already has a run; valid is a new folder (in a sweep one for each job, run_dir={folder}/'${{seed}}'), "
            f"{other}"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if config.ckpt_path is None:
            file.touch(exist_ok=False)  # if two runs start at the same time, this fails for one of them
        with atomic_write(file) as output:
            output.write(resolved_yaml(config).encode())
        add_provenance(folder, device=device)
    except FileExistsError as error:
        raise ConfigError(f"run_dir={folder}: another run is starting there; valid is a new folder") from error
    except ValueError as error:
        raise ConfigError(f"run_dir={folder}: {error}") from error
    except OSError as error:
        raise ConfigError(f"run_dir={folder} cannot be written: {error.strerror}") from error
