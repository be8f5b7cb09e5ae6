"""What is refused before a run begins: settings that do not fit each other, in one line that names the key."""

from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import EarlyStopping

from metagenrl_pl.agents.population import PopulationSettings
from metagenrl_pl.common.messages import format_value
from metagenrl_pl.config.schema import ConfigError, build
from metagenrl_pl.environments.environment import EnvironmentSets
from metagenrl_pl.launch.resume import resume_config
from metagenrl_pl.objectives import Objective, ParametricObjective
from metagenrl_pl.objectives.contract import check_loss
from metagenrl_pl.results.methods import check_method


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


def check_population(config: DictConfig, population: PopulationSettings, environments: EnvironmentSets) -> None:
    """Refuse a population that leaves training environments without an agent.

    Raises:
        ConfigError: names the key.
    """
    if config.run_dir == "":
        raise ConfigError("run_dir is empty; valid is a folder")
    if population.size < (num_environments := len(environments.train_specs)):
        raise ConfigError(
            f"population.size={population.size} leaves environments without an agent; valid is {num_environments} or more"
        )


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
