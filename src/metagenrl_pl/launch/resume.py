"""Going on from a checkpoint: its own configuration, in its own folder, with the few changes that leave the experiment the same."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from metagenrl_pl.common.messages import key_message
from metagenrl_pl.config.schema import ConfigError
from metagenrl_pl.training.checkpoint_io import PROJECT_KEY, AtomicCheckpointIO, CheckpointError, folder_of, newest_checkpoint

OVERRIDABLE = (
    "ckpt_path",
    "env_steps",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.accelerator",
    "num_threads",
    "env_workers",
    "compile",
    "compile_cache",
    "logger",
    "callbacks",
)
"""What a resume may change: the length, the machine and how it is used, loggers and callbacks. Compiled updates round differently."""


def _newest_in(folder: Path) -> Path | None:
    """The same of a run's folder, or of the folder of its checkpoints."""
    newest = newest_checkpoint(folder)
    if newest is None and folder.absolute().name == "checkpoints":
        return newest_checkpoint(folder_of(folder / "any.ckpt"))
    return newest


def resume_config(config: DictConfig, overridden: Sequence[str]) -> DictConfig:
    """The configuration of the run that `config.ckpt_path` was saved by, with what the command line may change; without one, `config`.

    A run's folder as `ckpt_path`, or that of its checkpoints, stands for its newest checkpoint.

    Raises:
        ConfigError: if the checkpoint cannot be read or the command line sets anything else.
    """
    if config.get("ckpt_path") is None:
        return config
    if not config.ckpt_path:
        raise ConfigError("ckpt_path is empty; valid is a checkpoint, the folder of a run, or null")
    path = Path(config.ckpt_path)
    if path.is_dir():
        newest = _newest_in(path)
        if newest is None:
            raise ConfigError(
                f"ckpt_path={path}: this folder holds no checkpoints/env_steps_*.ckpt; valid is a .ckpt file, or the folder of a run"
            )
        path = newest
        config.ckpt_path = str(path)
    refused = [key for key in overridden if not any(key == name or key.startswith(name + ".") for name in OVERRIDABLE)]
    if refused:
        raise ConfigError(
            f"{refused[0]} cannot be changed on a resume with ckpt_path; what can be is {', '.join(OVERRIDABLE[1:])}"
        )
    try:
        checkpoint = AtomicCheckpointIO().load_checkpoint(path)
    except CheckpointError as error:
        raise ConfigError(str(error)) from error
    stored = checkpoint[PROJECT_KEY]["config"]
    if not stored:
        raise ConfigError(f"ckpt_path={path}: was saved without a configuration; valid is a checkpoint that train.py saved")
    if path.absolute().parent.name != "checkpoints":  # its run would go on in a folder that is another's
        raise ConfigError(f"ckpt_path={path}: lies in no run's folder; valid is <run folder>/checkpoints/{path.name}")
    resumed = with_run_dir(OmegaConf.create(stored), str(folder_of(path)))
    for key in overridden:
        value, (parent, _, name) = OmegaConf.select(config, key), key.rpartition(".")
        siblings = OmegaConf.select(resumed, parent) if parent else resumed
        if value is None and (siblings is None or name not in siblings):  # nothing to switch off
            raise ConfigError(key_message(parent, name, siblings or ()))
        OmegaConf.update(resumed, key, value, merge=False, force_add=True)
    taken = checkpoint.get("ReplayDataModule", {}).get("collector", {}).get("env_steps", 0)
    if isinstance(resumed.env_steps, int) and resumed.env_steps < taken:
        raise ConfigError(
            f"env_steps={resumed.env_steps} is less than the {taken} that ckpt_path={path} has; valid is that or more"
        )
    return resumed


def allow_new_keys(arguments: Sequence[str]) -> list[str]:
    """The command line of a resume, on which a key need not be one of the default experiment's: the run's own may have others."""
    if not any(argument.startswith("ckpt_path=") for argument in arguments):
        return list(arguments)
    return [f"++{argument}" if re.match(r"[a-z_]+\.[\w.]+=", argument) else argument for argument in arguments]


def with_run_dir(config: DictConfig, run_dir: str) -> DictConfig:
    """The configuration with another run folder, wherever it is named."""
    return OmegaConf.create(_moved(OmegaConf.to_container(config), config.run_dir, run_dir))


def _moved(value: Any, old: str, new: str, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _moved(item, old, new, str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [_moved(item, old, new) for item in value]
    # A folder may be called like a choice (`run_dir=light`), so a bare name counts where a folder is meant.
    if isinstance(value, str) and (value.startswith(old + "/") or (value == old and key.endswith("dir"))):
        return new + value[len(old) :]
    return value
