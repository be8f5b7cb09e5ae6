"""Checks before a run begins: reject settings that do not fit together, with one line that names the key."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.utilities import rank_zero_only

from metagenrl_pl.agents.population import PopulationSettings
from metagenrl_pl.common.messages import format_value
from metagenrl_pl.config.schema import ConfigError, build, defaults_of, import_target
from metagenrl_pl.environments.environment import EnvironmentSets, EnvironmentSpec
from metagenrl_pl.environments.failures import EnvironmentFailure
from metagenrl_pl.environments.probing import probe
from metagenrl_pl.experience.memory import available_bytes
from metagenrl_pl.launch.resume import resume_config
from metagenrl_pl.learning.evolution import EvolutionSettings
from metagenrl_pl.objectives import Objective, ParametricObjective
from metagenrl_pl.objectives.trial import check_loss
from metagenrl_pl.results.methods import check_method

_COPIES = 12  # of a network's weights: policy and two critics with their targets, and Adam's two moments


def prepare_config(config: DictConfig, overridden: list[str]) -> DictConfig:
    """The run's configuration: the given one, or for a resume the stored one with changes (see `resume_config`).

    Paths, settings of the agents that were left out, and keys without an effect are seen to.

    Raises:
        ConfigError: if `resume_config` does, `seed` is negative, or `env.test` is set in a run that does not use it.
    """
    _expand_home(config)
    if isinstance(seed := config.get("seed"), int | float) and seed < 0:
        raise ConfigError(f"seed={seed}: valid is a whole number from 0")
    _check_test_environments(config, overridden)
    config = _with_all_agent_settings(resume_config(config, overridden))
    _warn_of_unused_inner_step(config, overridden)
    return config


def _expand_home(config: DictConfig) -> None:
    """Write out `~` in paths: shells leave it as it is in `run_dir=~/run`."""
    plain = OmegaConf.create(OmegaConf.to_container(config, resolve=False))
    for key in ("run_dir", "ckpt_path", "objective.path"):
        value = OmegaConf.select(plain, key, throw_on_resolution_failure=False)
        if isinstance(value, str) and value.startswith("~"):
            OmegaConf.update(config, key, str(Path(value).expanduser()))


def _check_test_environments(config: DictConfig, overridden: list[str]) -> None:
    is_tested = config.get("meta") is not None or OmegaConf.select(config, "callbacks.meta_test.seeds") is not None
    if "env.test" in overridden and "env.train" not in overridden and not is_tested:
        raise ConfigError(
            "env.test has no effect without meta-training (meta=frozen); valid is env.train=..., the environments of this run's "
            "agents"
        )


def _warn_of_unused_inner_step(config: DictConfig, overridden: list[str]) -> None:
    """Warn of `inner` and `judge` in a run without gradients through an inner step."""
    meta = OmegaConf.select(config, "meta._target_")
    if meta is None or str(meta).endswith(f".{EvolutionSettings.__name__}"):
        how = "meta=frozen" if meta is None else "meta=evolution"
        for key in overridden:
            if key.partition(".")[0] in ("inner", "judge"):
                rank_zero_only(warnings.warn)(f"{key} has no effect: {how} has no gradient through an inner step")


def _with_all_agent_settings(config: DictConfig) -> DictConfig:
    """Add the settings that `agent` leaves to the defaults of its class, since other nodes refer to them (`${agent.discount}`)."""
    if isinstance(agent := config.get("agent"), DictConfig) and "_target_" in agent:
        defaults = defaults_of(import_target(agent._target_, "agent"))
        with open_dict(agent):
            agent.update({name: default for name, default in defaults.items() if name not in agent})
    return config


def check_population(config: DictConfig, population: PopulationSettings, environments: EnvironmentSets) -> None:
    """Reject an empty run folder name, a run without a step, networks without memory, and environments without an agent.

    Raises:
        ConfigError: names the key and what is valid.
    """
    if config.run_dir == "":
        raise ConfigError("run_dir is empty; valid is a folder")
    if config.env_steps < 1:  # before the replay is compared with it
        raise ConfigError(f"env_steps must be at least 1, got {config.env_steps}")
    units = config.agent.hidden_units
    needed = 4 * population.size * max(units * (config.agent.num_hidden_layers - 1), 1) * units * _COPIES
    if needed > (available := available_bytes(torch.device("cpu"))):
        raise ConfigError(
            f"population.size={population.size} with agent.hidden_units={units} needs {needed / 1e9:,.0f} GB for its networks, and "
            f"there are {available / 1e9:.1f} GB; choose smaller ones"
        )
    if population.size < (num_environments := len(environments.train_specs)):
        raise ConfigError(
            f"population.size={population.size} leaves environments without an agent; valid is {num_environments} or more"
        )


def check_objective(config: DictConfig, objective: Objective, population: PopulationSettings) -> None:
    """Reject an objective that cannot be used, and settings that need meta-training in a run without it.

    An objective cannot be used if it gives policies no gradient, has parameters that no file can store, cannot be made again from
    its options, or has another method's name.

    Raises:
        ConfigError: names the key and what is valid.
    """
    try:
        check_loss(objective)
    except ValueError as error:
        raise ConfigError(f"objective={config.objective._target_}: {error}") from error
    if objective.learns and not isinstance(objective, ParametricObjective):
        raise ConfigError(
            f"objective={config.objective._target_} has parameters that no file can store; valid is a subclass of "
            "metagenrl_pl.objectives.ParametricObjective"
        )
    if isinstance(objective, ParametricObjective):
        try:
            objective.fresh(seed=0)
        except ValueError as error:
            raise ConfigError(f"objective={config.objective._target_}: {error}") from error
    learning = {name: p.requires_grad for name, p in objective.named_parameters()}
    if objective.learns and not all(learning.values()):
        frozen = next(name for name, learns in learning.items() if not learns)
        raise ConfigError(
            f"objective={config.objective._target_}: {frozen} needs no gradient, but others do; valid is an objective whose parameters "
            "all learn, or none, and buffers for what is constant"
        )
    try:
        check_method(method := OmegaConf.select(config, "callbacks.evaluation.method"), objective)
    except ValueError as error:
        raise ConfigError(f"callbacks.evaluation.method={method}: {error}") from error
    if config.meta is not None and method is not None:
        raise ConfigError(
            f"callbacks.evaluation.method={method} is for a run of fresh agents, and this run meta-trains; valid is null, or meta=frozen"
        )
    if config.meta is None and objective.learns and "frozen" in config.objective:
        raise ConfigError(
            "objective.frozen=false goes on meta-training the objective, and meta=frozen does not; valid is objective.frozen=true, or "
            "meta=small"
        )
    if config.meta is None and objective.learns:
        raise ConfigError(
            f"objective={config.objective._target_} has not been meta-trained, and meta=frozen does not train it; "
            "valid is objective=frozen objective.path=..., objective=pretrained, or meta=small"
        )
    if config.meta is None and population.lifetime_env_steps is not None:
        raise ConfigError(
            f"population.lifetime_env_steps={population.lifetime_env_steps} is for meta-training only; valid is null without it"
        )


def too_short(config: DictConfig, warmup_env_steps: int) -> list[str]:
    """Warnings about a run, or fresh agents of its meta-test, that end before `agent.warmup_env_steps`, and so before any update."""
    learners = {"env_steps": "this run learns nothing", "callbacks.meta_test.env_steps": "its fresh agents learn nothing"}
    lengths = {key: OmegaConf.select(config, key) for key in learners}
    return [
        f"{key}={length} is not above agent.warmup_env_steps={warmup_env_steps}, after which updates begin, so {learners[key]}"
        for key, length in lengths.items()
        if length is not None and length <= warmup_env_steps
    ]


def probe_environments(config: DictConfig, specs: Sequence[EnvironmentSpec]) -> list[str]:
    """Warnings about the environments of a run, from the first steps of an episode (see `probe`).

    Args:
        config: of the run.
        specs: environments of its agents.

    Raises:
        ConfigError: if an environment fails there.
    """
    tested = OmegaConf.select(config, "callbacks.meta_test.environments") or []
    evaluated = {spec.name: spec for spec in map(EnvironmentSpec.parse, tested)}
    if OmegaConf.select(config, "callbacks.evaluation"):
        evaluated |= {spec.name: spec for spec in specs}
    try:
        kinds = {spec.name: spec for spec in specs} | evaluated
        return [warning for name, spec in kinds.items() for warning in probe(spec, is_evaluated=name in evaluated)]
    except (EnvironmentFailure, ValueError) as error:
        raise ConfigError(str(error)) from error


def unlike_meta_training(config: DictConfig, objective: Objective) -> list[str]:
    """Agent settings of this run that differ from those in a finished objective's card, as `key=value, not value`."""
    card = objective.card if config.meta is None and isinstance(objective, ParametricObjective) else {}
    before = {key: value for key, value in card.get("settings", {}).items() if key.startswith("agent.")}
    if "window_length" in card:
        before["agent.window_length"] = card["window_length"]
    now = {key: OmegaConf.select(config, key) for key in before}
    return [
        f"{key}={format_value(now[key])}, not {format_value(value)}" for key, value in sorted(before.items()) if now[key] != value
    ]


def build_callback(name: Any, node: DictConfig) -> pl.Callback:
    """Build the callback of a node below `callbacks`.

    Raises:
        ConfigError: if it is not a callback, or is Lightning's `EarlyStopping`, which would act only after the run's single
            epoch.
    """
    callback = build(node, pl.Callback)
    if isinstance(callback, EarlyStopping):
        raise ConfigError(
            f"callbacks.{name}={node._target_} acts at the end of an epoch, but a run has only one; valid is a callback that sets "
            "trainer.should_stop after a batch (docs/extending.md)"
        )
    return callback
