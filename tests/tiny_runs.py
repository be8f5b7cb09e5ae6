"""Whole training runs with tiny networks, made in this process, and all that they leave behind as one nested dictionary."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import toy_environments  # noqa: F401  (registers them)
from pytorch_lightning.callbacks import Checkpoint, ProgressBar

from metagenrl_pl.agents.population import AgentSettings
from metagenrl_pl.common.streams import derive_seed
from metagenrl_pl.environments.environment import EnvironmentSpec
from metagenrl_pl.learning.cycle import Agents, Resources
from metagenrl_pl.learning.inner_step import SGD
from metagenrl_pl.learning.judges import CriticJudge
from metagenrl_pl.learning.settings import MetaLearning, MetaSettings
from metagenrl_pl.objectives import LearnedObjective, Objective
from metagenrl_pl.training.checkpoint_io import AtomicCheckpointIO
from metagenrl_pl.training.csv_logger import RunCSVLogger
from metagenrl_pl.training.datamodule import ReplayDataModule
from metagenrl_pl.training.module import MetaGenRL

TOYS = [
    EnvironmentSpec("Counting-v0", {"ends_after": 10}),
    EnvironmentSpec("Counting-v0", {"num_actions": 2}, max_episode_steps=5),
    EnvironmentSpec("Counting-v0", {"ends_after": 7}),
]


def tiny_settings(**changes: Any) -> AgentSettings:
    return AgentSettings(
        **{"hidden_units": 6, "window_length": 4, "num_windows": 3, "random_env_steps": 15, "warmup_env_steps": 10, **changes}
    )


def tiny_objective(seed: int = 0) -> LearnedObjective:
    return LearnedObjective(hidden_units=4, context_units=2, seed=seed)


def tiny_trainer(callbacks: Sequence[pl.Callback] = (), run_dir: Path | None = None) -> pl.Trainer:
    """A trainer as train.py makes it; results go to `run_dir`."""
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        enable_model_summary=False,
        log_every_n_steps=1,
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        callbacks=list(callbacks),
        logger=[RunCSVLogger(run_dir)] if run_dir else False,
        plugins=[AtomicCheckpointIO()],
    )


def tiny_run(
    specs: Sequence[EnvironmentSpec] = TOYS,
    env_steps: int = 40,
    updates_per_batch: int = 10,
    callbacks: Sequence[pl.Callback] = (),
    run_dir: Path | None = None,
    ckpt_path: Path | None = None,
    seed: int = 0,
    objective: Objective | None = None,
    settings: AgentSettings | None = None,
    frozen: bool = False,
    num_processes: int = 1,
) -> pl.Trainer:
    """Train; the trainer knows the rest."""
    settings = settings or tiny_settings()
    seeds = [derive_seed(seed, "agent", agent) for agent in range(len(specs))]
    meta = None if frozen else MetaLearning(SGD(1e-2), CriticJudge(), MetaSettings(gradient="normalize", annealing_env_steps=30))
    resources = Resources(replay_capacity=500, num_processes=num_processes)
    agents = Agents(specs, seeds, settings, objective or tiny_objective(seed), meta, resources=resources)
    datamodule, module = ReplayDataModule(agents, env_steps, updates_per_batch), MetaGenRL(agents)
    trainer = tiny_trainer(callbacks, run_dir)
    trainer.fit(module, datamodule, ckpt_path=ckpt_path)
    return trainer


def everything(trainer: pl.Trainer) -> dict[str, Any]:
    """All that training has made, copied: what learns, what remembers, what draws."""
    module: Any = trainer.lightning_module
    collector = module.agents.collector
    state = {
        "global_step": trainer.global_step,
        "learner": module.learner.state_dict(),
        "objective": module.objective.state_dict(),
        "optimizers": [optimizer.state_dict()["state"] for optimizer in module.learner.optimizers.values()],
        "collector": collector.state_dict(),
        "replay": [collector.replay.agent_state(agent) for agent in range(len(collector.environments))],
    }
    return {path: value.clone() if isinstance(value, torch.Tensor) else value for path, value in leaves(state)}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every number and tensor inside of dictionaries and lists, with its place; None where an empty one stands."""
    if isinstance(value, (Mapping, list, tuple)):
        if not value:
            yield path, None
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from leaves(item, f"{path}/{key}")
    else:
        yield path, value


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Where two results of `everything` are not the same bits."""
    return [path for path in {**one, **other} if not _is_same(one.get(path), other.get(path))]


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()
    return type(one) is type(other) and bool(one == other)
