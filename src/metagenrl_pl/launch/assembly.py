"""Make the parts of a run from its configuration: trainer, seeds, devices and memory."""

from functools import partial

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Checkpoint, ProgressBar
from pytorch_lightning.loggers import Logger

from metagenrl_pl.common.placement import Placement
from metagenrl_pl.common.streams import derive_seed
from metagenrl_pl.config.schema import ConfigError, build
from metagenrl_pl.environments.environment import EnvironmentSpec
from metagenrl_pl.environments.workers import make_group
from metagenrl_pl.evaluation.fresh_agents import agent_numbers, fresh_seed
from metagenrl_pl.experience.memory import check_memory, replay_bytes
from metagenrl_pl.experience.replay import ReplaySettings
from metagenrl_pl.launch.checks import build_callback
from metagenrl_pl.launch.endings import FirstBatch
from metagenrl_pl.learning.compiling import Notify
from metagenrl_pl.learning.cycle import Resources
from metagenrl_pl.learning.evolution import Evolution, EvolutionSettings
from metagenrl_pl.learning.inner_step import InnerStep
from metagenrl_pl.learning.judges import Judge
from metagenrl_pl.learning.meta_trial import check_inner_step, check_judge
from metagenrl_pl.learning.settings import MetaLearning, MetaSettings
from metagenrl_pl.training.checkpoint_io import AtomicCheckpointIO
from metagenrl_pl.training.processes import (
    check_accelerator,
    check_trainer,
    check_world_size,
    keep_signal_handlers,
    make_strategy,
)


def build_trainer(config: DictConfig, num_agents: int) -> pl.Trainer:
    """Lightning's trainer with the run's callbacks and loggers.

    Raises:
        ConfigError: if a trainer setting does not work (see `check_trainer`), or a callback or logger cannot be built.
    """
    check_trainer(config.trainer)
    callbacks = [build_callback(name, node) for name, node in config.callbacks.items() if node]
    trainer = build(
        config.trainer,
        pl.Trainer,
        strategy=make_strategy(config.trainer),
        callbacks=[FirstBatch(), *callbacks],
        logger=[build(node, Logger) for node in config.logger.values() if node],
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),  # otherwise Lightning adds its own
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
    )
    if any(getattr(callback, "save_weights_only", False) for callback in trainer.checkpoint_callbacks):
        raise ConfigError(
            "callbacks: save_weights_only=true leaves out what a resume needs; valid is false (objective.safetensors has the weights of "
            "the objective alone)"
        )
    keep_signal_handlers(trainer)
    check_accelerator(trainer)
    check_world_size(trainer.world_size, num_agents)
    return trainer


def agent_seeds(config: DictConfig, specs: list[EnvironmentSpec], meta: MetaLearning | Evolution | None) -> list[int]:
    """The seed of each agent.

    Without meta-training, agents get the same seeds as the fresh agents of a meta-test. In evolution, both agents of a pair have the same
    one: they begin with the same weights and meet the same episodes, so their returns differ by their objectives alone.
    """
    if meta is None:
        numbers = agent_numbers(specs, config.seed)
        return [fresh_seed(spec, number) for spec, number in zip(specs, numbers, strict=True)]
    agents = meta.pairs if isinstance(meta, Evolution) else range(len(specs))
    return [derive_seed(config.seed, "agent", agent) for agent in agents]


def build_meta(config: DictConfig, specs: list[EnvironmentSpec], placement: Placement) -> MetaLearning | Evolution | None:
    """How the objective is meta-learned; None if it is frozen.

    Raises:
        ConfigError: if inner step or judge does not do what the meta update needs of it.
        ValueError: if evolution has no length of lives, or one longer than the run, or an environment an odd number of agents, which
            it cannot pair.
    """
    inner, judge = build(config.inner, InnerStep), build(config.judge, Judge)  # also where they are not used: a mistake is one
    if config.meta is None:
        return None
    settings = build(config.meta, (MetaSettings, EvolutionSettings))
    if isinstance(settings, EvolutionSettings):
        length = config.population.lifetime_env_steps
        if length is None:
            raise ValueError("population.lifetime_env_steps=null: meta=evolution needs the length of a generation's lives")
        if length > config.env_steps:
            raise ValueError(
                f"population.lifetime_env_steps={length}: no generation of meta=evolution would end within env_steps={config.env_steps}; "
                f"valid is {config.env_steps} or less"
            )
        return Evolution(settings, [spec.name for spec in specs], length, config.seed, placement)
    for node, check in ((config.inner, partial(check_inner_step, inner)), (config.judge, partial(check_judge, judge))):
        try:
            check()
        except ValueError as error:
            raise ConfigError(f"{node._get_full_key(None)}={node._target_}: {error}") from error
    return MetaLearning(inner, judge, settings)


def choose_resources(config: DictConfig, trainer: pl.Trainer, specs: list[EnvironmentSpec], notify: Notify) -> Resources:
    """Devices, memory and processes of the agents of this process.

    Raises:
        ValueError: if this machine has too little memory for the replays of all its processes.
    """
    settings = build(config.replay, ReplaySettings)
    device = trainer.strategy.root_device
    is_with_agents = settings.device in ("auto", device.type)  # `cuda` is the GPU of this process
    replay_device = device if is_with_agents else torch.device(settings.device)
    num_processes = getattr(trainer.strategy, "num_processes", 1)  # on this machine, which share its cores and its memory
    resources = Resources(
        device=device,
        replay_device=replay_device,
        replay_capacity=settings.capacity,
        make_group=partial(
            make_group, num_workers=config.env_workers, num_processes=num_processes, timeout=config.env_timeout_seconds
        ),
        compile=config.compile,
        rank=trainer.global_rank,
        world_size=trainer.world_size,
        num_processes=num_processes,
        notify=notify,
    )
    if replay_device.type == "cpu" and num_processes > 1:  # with one process, the replay itself checks this
        local = resources.placement(len(specs)).local(specs)
        needed = replay_bytes(local, config.env_steps, config.agent.window_length, settings.capacity)
        check_memory(num_processes * needed, replay_device)
    return resources


def describe_device(trainer: pl.Trainer) -> str:
    """Device and number of processes in words: `cpu x 1`, or the GPU's name instead of `cpu`."""
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{name} x {trainer.world_size}"
