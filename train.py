"""Meta-train, meta-test or run a baseline: `python train.py [group=choice] [key=value] ...`; see `python train.py --help`."""

import errno
import signal
import sys
import traceback
import warnings
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping, ProgressBar
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException

from callbacks.checkpointing import stopped_by_signal
from callbacks.stopping import FirstBatch, stopped_before_it_began, stopper_message
from metagenrl_pl.agents.lifetimes import Lifetimes
from metagenrl_pl.agents.population import PopulationSettings
from metagenrl_pl.common.exit_codes import INTERRUPTED, MISTAKE, STOPPED
from metagenrl_pl.common.messages import choice_message, format_value, one_line
from metagenrl_pl.common.placement import Placement
from metagenrl_pl.common.streams import derive_seed
from metagenrl_pl.config.schema import ConfigError, build
from metagenrl_pl.environments.environment import EnvironmentFailure
from metagenrl_pl.evaluation.fresh_agents import agent_numbers, fresh_seed
from metagenrl_pl.launch.command_line import hydra_entry
from metagenrl_pl.launch.resume import allow_new_keys, resume_config, with_run_dir
from metagenrl_pl.launch.run_folder import open_run_folder, prepare_process, run_folder
from metagenrl_pl.learning.compiling import choose_compile, estimated_seconds
from metagenrl_pl.learning.inner_step import InnerStep
from metagenrl_pl.objectives import Objective, ParametricObjective
from metagenrl_pl.objectives.contract import check_loss
from metagenrl_pl.results.methods import check_method
from metagenrl_pl.training.checkpoint_io import AtomicCheckpointIO, CheckpointError, newest_checkpoint
from metagenrl_pl.training.datamodule import ReplayDataModule
from metagenrl_pl.training.module import MetaGenRL
from metagenrl_pl.training.processes import (
    agree_on_run_dir,
    check_accelerator,
    check_trainer,
    check_world_size,
    launching,
    make_strategy,
    reported_by_another,
)

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
    compile: bool | None = None
    compile_cache: str = "~/.cache/metagenrl_pl/compiled"
    float32_matmul_precision: Literal["highest", "high", "medium"] = "highest"
    num_threads: int | None = None
    env_workers: int | None = None
    ckpt_path: str | None = None
    callbacks: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)


def main(config: DictConfig) -> int:
    """Assemble the run and let Lightning do it; the exit code."""
    if not config.run_dir:
        raise ConfigError("run_dir is empty; valid is a folder")
    config = with_run_dir(config, agree_on_run_dir(config.run_dir))
    prepare_process(config)

    agent, population = build(config.agent), build(config.population)
    num_agents = population.size
    environments = build(config.env)
    if num_agents < (num_environments := len(environments.train_specs)):
        raise ConfigError(
            f"population.size={num_agents} leaves environments without an agent; valid is {num_environments} or more"
        )
    specs = environments.assign_round_robin(num_agents)
    objective = build(config.objective, Objective)
    if not objective.learns:
        config.meta = None
    check_objective(config, objective, population)
    if differing := unlike_meta_training(config, objective):
        rank_zero_only(warnings.warn)(f"the objective was meta-trained with other agents: {', '.join(differing)}")
    check_trainer(config.trainer)
    inner, meta = build(config.inner, InnerStep), build(config.meta) if config.meta else None
    if meta is None:  # the agents are tested themselves
        seeds = [fresh_seed(spec, number) for spec, number in zip(specs, agent_numbers(specs, config.seed), strict=True)]
    else:
        seeds = [derive_seed(config.seed, "agent", i) for i in range(num_agents)]
    eager_seconds = estimated_seconds(agent, num_agents, config.env_steps, is_meta_training=meta is not None)
    callbacks = [build_callback(name, node) for name, node in config.callbacks.items() if node]
    trainer = build(
        config.trainer,
        strategy=make_strategy(config.trainer),
        callbacks=[FirstBatch(), *callbacks],
        logger=[build(node, Logger) for node in config.logger.values() if node],
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),  # Lightning would add its own
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
    )
    check_accelerator(trainer)
    check_world_size(trainer.world_size, num_agents)
    placement = Placement(num_agents, trainer.global_rank, trainer.world_size)
    notify = rank_zero_only(partial(print, flush=True))
    try:
        lifetimes = Lifetimes.staggered(population, agent, num_environments)
        config.compile, chosen = choose_compile(config.compile, eager_seconds)
        datamodule = ReplayDataModule(
            specs,
            seeds,
            agent,
            build(config.replay),
            config.env_steps,
            config.updates_per_batch,
            config.env_workers,
            placement,
            lifetimes,
        )
        plain = cast(dict[str, Any], OmegaConf.to_container(config))
        module = MetaGenRL(
            datamodule.sizes, seeds, objective, agent, inner, meta, config.compile, plain, placement, notify, lifetimes
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if trainer.is_global_zero:
        open_run_folder(config, device_of(trainer))
    notify(f"Run folder: {config.run_dir} (replay: up to {datamodule.replay_bytes / 1e9:.2f} GB), {chosen}")
    with launching(config.run_dir):
        return fit(trainer, module, datamodule, config)


def device_of(trainer: pl.Trainer) -> str:
    """What the run computes on: `cpu`, or the GPU's name, and the number of processes."""
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{name} x {trainer.world_size}"


def build_callback(name: Any, node: DictConfig) -> pl.Callback:
    """The callback that a node below `callbacks` names.

    Raises:
        ConfigError: if it is none, or one that would end every run at its end, as if it had been stopped.
    """
    callback = build(node, pl.Callback)
    if isinstance(callback, EarlyStopping):
        raise ConfigError(
            f"callbacks.{name}={node._target_} looks at the end of an epoch, and a run is a single one; valid is a callback that sets "
            "trainer.should_stop after a batch (docs/extending.md)"
        )
    return callback


def check_objective(config: DictConfig, objective: Objective, population: PopulationSettings) -> None:
    """Refuse an objective that teaches nothing, cannot be kept or goes by the name of another, and what belongs to meta-training in a
    run without.

    Raises:
        ConfigError: names the key.
    """
    try:
        check_loss(objective)
    except ValueError as error:
        raise ConfigError(f"objective={config.objective._target_}: {error}") from error
    if objective.learns and not isinstance(objective, ParametricObjective):
        raise ConfigError(
            f"objective={config.objective._target_} has parameters that no file could keep; valid is a subclass of "
            "metagenrl_pl.objectives.ParametricObjective"
        )
    try:
        check_method(method := OmegaConf.select(config, "callbacks.evaluation.method"), objective)
    except ValueError as error:
        raise ConfigError(f"callbacks.evaluation.method={method}: {error}") from error
    if config.meta is None and objective.learns:
        raise ConfigError(
            f"objective={config.objective._target_} has not been meta-trained, and meta=frozen does not do so; "
            "valid is objective=frozen objective.path=..., objective=pretrained, or meta=small"
        )
    if config.meta is None and population.lifetime_env_steps is not None:
        raise ConfigError(
            f"population.lifetime_env_steps={population.lifetime_env_steps} belongs to meta-training; valid is null where meta=frozen"
        )


def unlike_meta_training(config: DictConfig, objective: Objective) -> list[str]:
    """Settings of the agents that are not those with which a finished objective was meta-trained, as its card tells."""
    card = objective.card if config.meta is None and isinstance(objective, ParametricObjective) else {}
    before = {key: value for key, value in card.get("settings", {}).items() if key.startswith("agent.")}
    if "window_length" in card:
        before["agent.window_length"] = card["window_length"]
    now = {key: OmegaConf.select(config, key) for key in before}
    return [
        f"{key}={format_value(now[key])}, not {format_value(value)}" for key, value in sorted(before.items()) if now[key] != value
    ]


def fit(trainer: pl.Trainer, module: MetaGenRL, datamodule: ReplayDataModule, config: DictConfig) -> int:
    """Run it; all processes agree how it ends, and the first one tells. The exit code, after a stop that leaves a sweep to go on."""
    try:
        trainer.fit(module, datamodule, ckpt_path=config.ckpt_path)
    except (CheckpointError, MisconfigurationException, FloatingPointError) as error:
        if not trainer.is_global_zero:
            sys.exit(0)  # anything else and Lightning would kill the first process before it has told
        raise ConfigError(f"{error}{saved_before(config)}" if isinstance(error, FloatingPointError) else str(error)) from error
    except SIGTERMException:  # nobody listens to signals without callbacks.checkpoint
        sys.exit("error: told to stop; nothing is saved where callbacks.checkpoint=null" if trainer.is_global_zero else 0)
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            end_failed(trainer, error, config)
        if trainer.is_global_zero:  # Lightning's answer to KeyboardInterrupt: a signal that did not wait for the end of a batch
            if newest := newest_checkpoint(config.run_dir):
                print(f"Stopped at once. To go on: python train.py ckpt_path={newest}", flush=True)
            sys.exit(exit_code_after_stop(config))
        raise
    except Exception as error:
        end_failed(trainer, error, config)
    for message in unlogged_monitors(trainer, config):
        rank_zero_only(warnings.warn)(message)
    if not (trainer.should_stop and trainer.is_global_zero):
        return 0
    if stopped_before_it_began(trainer):
        raise ConfigError(stopper_message(config.callbacks))
    code = exit_code_after_stop(config)  # callbacks.checkpoint has saved and said how to go on
    if stopped_by_signal(trainer):
        sys.exit(code)  # a sweep, too
    return code


def unlogged_monitors(trainer: pl.Trainer, config: DictConfig) -> list[str]:
    """What callbacks have watched that nothing has logged, which Lightning does not tell in the middle of an epoch."""
    if not trainer.callback_metrics:  # no batch was taken: a resume at the run's end
        return []
    watched = {f"callbacks.{name}.monitor": node.get("monitor") for name, node in config.callbacks.items() if node}
    logged = trainer.callback_metrics
    return [choice_message(key, metric, logged) for key, metric in watched.items() if metric is not None and metric not in logged]


def end_failed(trainer: pl.Trainer, error: Exception | SystemExit, config: DictConfig) -> NoReturn:
    """End all processes after an error of this one, told in a line unless it is a bug; called while the error is handled."""
    is_told = reported_by_another(trainer)
    if trainer.strategy.launcher is not None:
        trainer.strategy.launcher.kill(signal.SIGKILL)  # the others may wait for this process
    if is_told:
        sys.exit(MISTAKE)
    if isinstance(error, EnvironmentFailure):
        raise ConfigError(f"{error}{saved_before(config)}") from error
    if isinstance(error, SystemExit):  # of an environment or a callback: nobody has asked the run to stop
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}, line {place.lineno}"
        raise ConfigError(f"sys.exit({error.code!r}) was called in the run ({where}){saved_before(config)}") from error
    if is_disk_full(error):
        raise ConfigError(f"run_dir={config.run_dir} cannot be written: {one_line(error)}{saved_before(config)}") from error
    raise error


def exit_code_after_stop(config: DictConfig) -> int:
    """The exit code that tells whether a run that was stopped can go on."""
    if newest_checkpoint(config.run_dir) is None:
        print("Stopped; nothing was saved yet", flush=True)
        return INTERRUPTED
    return STOPPED


def saved_before(config: DictConfig) -> str:
    """What is left of a run that a failure has ended."""
    newest = newest_checkpoint(config.run_dir)
    return f"; the newest checkpoint is {newest}, from before it" if newest else "; no checkpoint was saved before it"


def is_disk_full(error: Exception) -> bool:
    """Whether a file could not be written for want of room, whichever library tells it."""
    return (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or "No space left on device" in str(error)


def prepare_config(config: DictConfig, overridden: list[str]) -> DictConfig:
    """The configuration that counts: of a resume, its run's.

    Raises:
        ConfigError: what `resumed_config` refuses, and environments that nothing is tested in.
    """
    is_tested = config.get("meta") is not None or OmegaConf.select(config, "callbacks.meta_test") is not None
    if "env.test" in overridden and "env.train" not in overridden and not is_tested:
        raise ConfigError(
            "env.test is where a meta-training tests its objective, and this is none (meta=frozen); valid is env.train=..., where "
            "this run's agents are trained"
        )
    return resume_config(config, overridden)


def run_command_line() -> None:
    """Whatever `sys.argv` asks for."""
    sys.argv[1:] = allow_new_keys(sys.argv[1:])
    try:
        hydra_entry(main, Path(__file__).parent / "conf", "config", RunConfig, prepare_config)
    except KeyboardInterrupt:  # before or after training, which has an answer of its own
        print("Stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"  # a line, as mistakes are
    run_command_line()
