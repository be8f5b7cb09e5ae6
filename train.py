"""Meta-train, meta-test or run a baseline: `python train.py [group=choice] [key=value] ...`; see `python train.py --help`."""

import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Checkpoint, ProgressBar

from metagenrl_pl.checkpoint_io import AtomicCheckpointIO, CheckpointError
from metagenrl_pl.command_line import hydra_entry, overridden_keys
from metagenrl_pl.config import ConfigError, build
from metagenrl_pl.datamodule import ReplayDataModule
from metagenrl_pl.module import MetaGenRL
from metagenrl_pl.resume import resumed_config
from metagenrl_pl.run import check_strategy, choose_num_threads, keep_freed_memory, open_run_folder, run_folder
from metagenrl_pl.streams import derive_seed

STOPPED = 3  # exit code of a run that was told to stop and can go on
OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)


@dataclass
class RunConfig:
    """What the root of the configuration may hold; nodes are checked against the classes that they name."""

    env: Any
    agent: Any
    objective: Any
    inner: Any
    population: Any
    replay: Any
    trainer: Any
    env_steps: int
    updates_per_batch: int
    seed: int
    run_dir: str
    meta: Any = None
    compile: bool = False
    num_threads: int | None = None
    ckpt_path: str | None = None
    callbacks: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)


def main(config: DictConfig) -> None:
    """Assemble the run and let Lightning do it."""
    if config.ckpt_path is not None:
        config = resumed_config(config, overridden_keys())
    check_strategy(config.trainer)
    keep_freed_memory()
    torch.set_num_threads(choose_num_threads(config.num_threads))

    agent, num_agents = build(config.agent), build(config.population).size
    train_specs = build(config.env).train_specs
    if num_agents < len(train_specs):
        raise ConfigError(
            f"population.size={num_agents} leaves environments without an agent; valid is {len(train_specs)} or more"
        )
    specs = [train_specs[i % len(train_specs)] for i in range(num_agents)]
    seeds = [derive_seed(config.seed, "agent", i) for i in range(num_agents)]
    inner, meta = build(config.inner), build(config.meta) if config.get("meta") else None
    try:
        datamodule = ReplayDataModule(specs, seeds, agent, build(config.replay), config.env_steps, config.updates_per_batch)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    plain = cast(dict[str, Any], OmegaConf.to_container(config))
    module = MetaGenRL(datamodule.sizes, seeds, build(config.objective), agent, inner, meta, config.compile, plain)
    callbacks = [build(node) for node in config.callbacks.values() if node]
    loggers = [build(node) for node in config.logger.values() if node]
    trainer = build(
        config.trainer,
        callbacks=callbacks,
        logger=loggers,
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),  # Lightning would add its own
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
    )
    open_run_folder(config)
    print(f"Run folder: {config.run_dir} (replay: up to {datamodule.replay_bytes / 1e9:.2f} GB)", flush=True)
    try:
        trainer.fit(module, datamodule, ckpt_path=config.ckpt_path)
    except (CheckpointError, MisconfigurationException) as error:
        raise ConfigError(str(error)) from error
    except FloatingPointError as error:
        raise ConfigError(f"{error}; checkpoints in {config.run_dir}/checkpoints are from before it") from error
    if trainer.should_stop:  # told to by a signal; the checkpoint is saved
        sys.exit(STOPPED)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"  # a line, as mistakes are
    hydra_entry(main, Path(__file__).parent / "conf", "config", RunConfig)
