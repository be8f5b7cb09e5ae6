"""One run: from its validated configuration to trained agents."""

import logging
import warnings
from contextlib import closing
from functools import partial
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only

from metagenrl_pl.agents.lifetimes import Lifetimes
from metagenrl_pl.agents.population import AgentSettings, PopulationSettings
from metagenrl_pl.config.schema import ConfigError, build
from metagenrl_pl.environments.environment import EnvironmentSets
from metagenrl_pl.environments.failures import EnvironmentFailure
from metagenrl_pl.launch.assembly import agent_seeds, build_meta, build_trainer, choose_resources, describe_device
from metagenrl_pl.launch.checks import check_objective, check_population, probe_environments, too_short, unlike_meta_training
from metagenrl_pl.launch.endings import fit
from metagenrl_pl.launch.resume import objective_config, with_run_dir
from metagenrl_pl.launch.run_folder import open_run_folder, prepare_process
from metagenrl_pl.learning.compiling import choose_compile, estimated_seconds
from metagenrl_pl.learning.cycle import Agents
from metagenrl_pl.learning.evolution import Evolution
from metagenrl_pl.objectives import Objective
from metagenrl_pl.training.datamodule import ReplayDataModule
from metagenrl_pl.training.module import MetaGenRL
from metagenrl_pl.training.processes import agree_on_run_dir, launching


def train(config: DictConfig) -> int:
    """Build the parts of the run from its configuration and train. Returns the exit code."""
    for name in ("pytorch_lightning", "lightning_fabric"):  # their lines about devices and products say nothing of this run
        logging.getLogger(name).setLevel(logging.WARNING)
    config = with_run_dir(config, agree_on_run_dir(config.run_dir))
    prepare_process(config)
    agent, population = build(config.agent, AgentSettings), build(config.population, PopulationSettings)
    environments = build(config.env, EnvironmentSets)
    check_population(config, population, environments)
    specs = environments.assign_round_robin(population.size)
    objective = build(objective_config(config), Objective)
    if config.meta is not None and not objective.learns:
        hint = "; objective.frozen=false goes on meta-training it" if "frozen" in config.objective else ""
        rank_zero_only(warnings.warn)(f"no meta-training: the objective has nothing to learn, so meta=... has no effect{hint}")
        config.meta = None
    check_objective(config, objective, population)
    if differences := unlike_meta_training(config, objective):
        rank_zero_only(warnings.warn)(f"the objective was meta-trained with other agents: {', '.join(differences)}")
    trainer = build_trainer(config, population.size)
    notify = rank_zero_only(partial(print, flush=True))
    short = too_short(config, agent.warmup_env_steps)
    for warning in [*short, *probe_environments(config, specs)] if trainer.is_global_zero else ():
        warnings.warn(warning, stacklevel=1)
    try:
        eager_seconds = estimated_seconds(agent, population.size, config.env_steps, is_meta_training=config.meta is not None)
        config.compile, choice = choose_compile(config.compile, eager_seconds)
        resources = choose_resources(config, trainer, specs, notify)
        meta = build_meta(config, specs, resources.placement(len(specs)))
        lifetimes = Lifetimes.of_population(population, agent, in_generations=isinstance(meta, Evolution))
        agents = Agents(specs, agent_seeds(config, specs, meta), agent, objective, meta, lifetimes, resources, config.env_steps)
        datamodule = ReplayDataModule(agents, config.env_steps, config.updates_per_batch)
    except (ValueError, EnvironmentFailure) as error:  # a worker may hang or die while it makes its environments
        raise ConfigError(str(error)) from error
    module = MetaGenRL(agents, cast(dict[str, Any], OmegaConf.to_container(config)))
    with closing(agents), launching(config.run_dir), open_run_folder(config, describe_device(trainer), trainer.is_global_zero):
        notify(f"Run folder: {config.run_dir} (replay: up to {agents.replay.num_bytes / 1e9:.2f} GB), {choice}")
        return fit(trainer, module, datamodule, config)
