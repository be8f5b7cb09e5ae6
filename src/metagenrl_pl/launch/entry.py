"""The program behind `python train.py` and `metagenrl train`.

It answers `--help`, `--cfg job` and mistyped keys without importing PyTorch, which takes seconds. Everything heavy is imported by
the functions that need it, after the first line is on the screen.
"""

import importlib
import os
import sys
import warnings
from datetime import datetime
from functools import cache
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

import metagenrl_pl
from metagenrl_pl.common.messages import format_warning
from metagenrl_pl.common.signals import LAUNCHER, STOP_COMMAND, end_with, install_handler
from metagenrl_pl.config.run_config import RunConfig
from metagenrl_pl.launch.cli import default_folder
from metagenrl_pl.launch.command_line import allow_new_keys, hydra_entry

_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
"""Environment variables of launchers that number the processes of a run."""


def start(folder: Path) -> None:
    """Run `run_command_line` as the program of this process, which prints a warning in one line, like an error.

    Args:
        folder: of `conf` and `callbacks`.
    """
    install_handler(STOP_COMMAND)
    if LAUNCHER in os.environ:
        end_with(int(os.environ[LAUNCHER]))
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    warnings.formatwarning = format_warning
    make_importable(folder)
    run_command_line(folder / "conf")


def make_importable(folder: Path) -> None:
    """Make the module `callbacks`, which the configuration names, that of `folder`, and find modules of the current folder.

    In a wheel it is the package `metagenrl_pl.callbacks`, so that no module named `callbacks` is installed.
    """
    if folder == Path(metagenrl_pl.__file__).parent:
        sys.modules["callbacks"] = importlib.import_module("metagenrl_pl.callbacks")
    elif str(folder) not in sys.path:
        sys.path.append(str(folder))
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())


def run_command_line(conf: Path) -> None:
    """Train once for each job that `sys.argv` describes.

    Args:
        conf: the folder of the configuration.

    Raises:
        SystemExit: with the exit code, unless it is 0 (see `hydra_entry`).
    """
    sys.argv[1:] = allow_new_keys(sys.argv[1:])
    hydra_entry(main, conf, "config", RunConfig, prepare)


def prepare(config: DictConfig, overridden: list[str]) -> DictConfig:
    """Print the first line, import everything, and complete the configuration (see `prepare_config`)."""
    _print_first_line()
    form = warnings.formatwarning
    from metagenrl_pl.launch.checks import prepare_config

    warnings.formatwarning = form  # Lightning, which this has imported, sets its own
    return prepare_config(config, overridden)


def main(config: DictConfig) -> int:
    """Train with a validated configuration. Returns the exit code."""
    from metagenrl_pl.launch.run import train

    return train(config)


@cache  # once in a sweep
def _print_first_line() -> None:
    if all(os.environ.get(name, "0") == "0" for name in _RANKS):
        print(f"metagenrl-pl {metagenrl_pl.__version__}: loading PyTorch and Lightning", flush=True)


def run_folder(ckpt_path: str | None) -> str:
    """The default run folder: for a resume the checkpoint's run folder, in a sweep the job's folder, otherwise a new folder."""
    if ckpt_path is not None:
        from metagenrl_pl.training.checkpoint_io import folder_of

        return str(folder_of(Path(ckpt_path)))
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return str(HydraConfig.get().runtime.output_dir)
    if "SLURM_JOB_ID" in os.environ and int(os.environ.get("SLURM_NTASKS", 1)) > 1:  # tasks start at different times
        return f"runs/slurm_{os.environ['SLURM_JOB_ID']}"
    return f"runs/{_process_start()}"


@cache
def _process_start() -> str:
    """The time of the first call with milliseconds, since a script may start several runs at once."""
    return datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")[:-3]


OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)

if __name__ == "__main__":  # a process that Lightning has launched for `metagenrl train`
    sys.path.pop(0)  # this folder, whose modules are not meant to be found without their package
    start(default_folder())
