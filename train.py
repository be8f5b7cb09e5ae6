"""Meta-train, meta-test or run a baseline: `python train.py [group=choice] [key=value] ...`; see `python train.py --help`."""

import os
import signal
import sys
import warnings
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, cast

if __name__ == "__main__":  # the imports take seconds, in which Ctrl-C would print a traceback
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: (print("Stopped", file=sys.stderr, flush=True), os._exit(130)))

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only

from metagenrl_pl.agents.lifetimes import Lifetimes
from metagenrl_pl.config.run_config import RunConfig
from metagenrl_pl.config.schema import ConfigError, build
from metagenrl_pl.launch.assembly import agent_seeds, build_trainer, choose_resources, describe_device
from metagenrl_pl.launch.checks import check_objective, check_population, prepare_config, probe_environments, unlike_meta_training
from metagenrl_pl.launch.command_line import hydra_entry
from metagenrl_pl.launch.endings import fit
from metagenrl_pl.launch.resume import allow_new_keys, with_run_dir
from metagenrl_pl.launch.run_folder import open_run_folder, prepare_process, run_folder
from metagenrl_pl.learning.compiling import choose_compile, estimated_seconds
from metagenrl_pl.learning.cycle import Agents
from metagenrl_pl.learning.inner_step import InnerStep
from metagenrl_pl.learning.judges import Judge
from metagenrl_pl.learning.settings import MetaLearning
from metagenrl_pl.objectives import Objective
from metagenrl_pl.training.datamodule import ReplayDataModule
from metagenrl_pl.training.module import MetaGenRL
from metagenrl_pl.training.processes import agree_on_run_dir, launching

OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)


def main(config: DictConfig) -> int:
    """Build the parts of the run from its configuration and train. Returns the exit code."""
    config = with_run_dir(config, agree_on_run_dir(config.run_dir))
    prepare_process(config)
    agent, population, environments = build(config.agent), build(config.population), build(config.env)
    check_population(config, population, environments)
    specs = environments.assign_round_robin(population.size)
    objective = build(config.objective, Objective)
    if not objective.learns:
        config.meta = None
    check_objective(config, objective, population)
    if differences := unlike_meta_training(config, objective):
        rank_zero_only(warnings.warn)(f"the objective was meta-trained with other agents: {', '.join(differences)}")
    inner, judge = build(config.inner, InnerStep), build(config.judge, Judge)
    meta = MetaLearning(inner, judge, build(config.meta)) if config.meta else None
    trainer = build_trainer(config, population.size)
    notify = rank_zero_only(partial(print, flush=True))
    for warning in probe_environments(config, specs) if trainer.is_global_zero else ():
        warnings.warn(warning, stacklevel=1)
    try:
        eager_seconds = estimated_seconds(agent, population.size, config.env_steps, is_meta_training=meta is not None)
        config.compile, choice = choose_compile(config.compile, eager_seconds)
        lifetimes = Lifetimes.staggered(population, agent)
        resources = choose_resources(config, trainer, specs, notify)
        agents = Agents(specs, agent_seeds(config, specs), agent, objective, meta, lifetimes, resources)
        datamodule = ReplayDataModule(agents, config.env_steps, config.updates_per_batch)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    module = MetaGenRL(agents, cast(dict[str, Any], OmegaConf.to_container(config)))
    with closing(agents), launching(config.run_dir), open_run_folder(config, describe_device(trainer), trainer.is_global_zero):
        notify(f"Run folder: {config.run_dir} (replay: up to {agents.replay.num_bytes / 1e9:.2f} GB), {choice}")
        return fit(trainer, module, datamodule, config)


def run_command_line() -> None:
    """Run `main` for each job that `sys.argv` describes."""
    sys.argv[1:] = allow_new_keys(sys.argv[1:])
    hydra_entry(main, Path(__file__).parent / "conf", "config", RunConfig, prepare_config)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"  # one line, like an error
    run_command_line()
