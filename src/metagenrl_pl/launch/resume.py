"""Resume from a checkpoint, with its stored configuration and in its run folder. A resume may not change the experiment."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger

from metagenrl_pl.agents.population import AgentSettings, PopulationSettings
from metagenrl_pl.common.files import ForeignFileError
from metagenrl_pl.common.messages import key_message
from metagenrl_pl.config.schema import ConfigError
from metagenrl_pl.config.trust import check_foreign
from metagenrl_pl.environments.environment import EnvironmentSets
from metagenrl_pl.experience.replay import ReplaySettings
from metagenrl_pl.learning.evolution import EvolutionSettings
from metagenrl_pl.learning.inner_step import InnerStep
from metagenrl_pl.learning.judges import Judge
from metagenrl_pl.learning.settings import MetaSettings
from metagenrl_pl.objectives import Objective
from metagenrl_pl.results.rows import read_rows
from metagenrl_pl.training.checkpoint_io import PROJECT_KEY, AtomicCheckpointIO, CheckpointError, checkpoints_of, folder_of

OVERRIDABLE = (
    "ckpt_path",
    "env_steps",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.accelerator",
    "trainer.default_root_dir",
    "num_threads",
    "env_workers",
    "env_timeout_seconds",
    "compile",
    "compile_cache",
    "trusted_packages",
    "logger",
    "callbacks",
)
"""Keys that a resume may change: length, hardware, loggers and callbacks. (`compile` changes the rounding of updates.)"""

KINDS: dict[str, type | tuple[type, ...]] = {
    "env": EnvironmentSets,
    "agent": AgentSettings,
    "objective": Objective,
    "inner": InnerStep,
    "judge": Judge,
    "meta": (MetaSettings, EvolutionSettings),
    "population": PopulationSettings,
    "replay": ReplaySettings,
    "trainer": pl.Trainer,
    "callbacks": pl.Callback,
    "logger": Logger,
}
"""What the object at each key of a configuration has to be."""


def _load_newest_in(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The newest intact checkpoint of a run, given its run folder or the folder of its checkpoints. Warns of damaged ones.

    Raises:
        ConfigError: if there is none.
    """
    candidates = checkpoints_of(folder)
    if not candidates and folder.absolute().name == "checkpoints":
        candidates = checkpoints_of(folder_of(folder / "any.ckpt"))
    if not candidates:
        raise ConfigError(
            f"ckpt_path={folder}: this folder has no checkpoints/env_steps_*.ckpt; valid is a .ckpt file, or the folder of a run"
        )
    errors: list[CheckpointError] = []
    for path in candidates:
        try:
            checkpoint = AtomicCheckpointIO().load_checkpoint(path)
        except CheckpointError as error:
            errors.append(error)
            continue
        if errors:
            warnings.warn(f"{errors[0]}; the run goes on from the newest intact one, {path}", stacklevel=2)
        return path, checkpoint
    raise ConfigError(str(errors[0])) from errors[0]


def resume_config(config: DictConfig, overridden: Sequence[str]) -> DictConfig:
    """The configuration that is stored in the checkpoint `config.ckpt_path`, with the changes of the command line.

    `ckpt_path` may also be a run folder or the folder of its checkpoints. Then the newest checkpoint is used, and
    `config.ckpt_path` is set to it. If `ckpt_path` is None, `config` itself is returned.

    Args:
        config: as composed from the command line.
        overridden: keys that the command line sets.

    Raises:
        ConfigError: if the checkpoint cannot be read, or the command line sets a key that is not in `OVERRIDABLE` or that results
            of the run were measured with.
    """
    if config.get("ckpt_path") is None:
        return config
    if not config.ckpt_path:
        raise ConfigError("ckpt_path is empty; valid is a checkpoint, the folder of a run, or null")
    path = Path(config.ckpt_path)
    invalid = [key for key in overridden if not any(key == name or key.startswith(name + ".") for name in OVERRIDABLE)]
    if invalid:
        raise ConfigError(f"{invalid[0]} cannot be changed on a resume with ckpt_path; valid is {', '.join(OVERRIDABLE[1:])}")
    if path.is_dir():
        path, checkpoint = _load_newest_in(path)
        config.ckpt_path = str(path)
    else:
        try:
            checkpoint = AtomicCheckpointIO().load_checkpoint(path)
        except CheckpointError as error:
            raise ConfigError(str(error)) from error
    stored_config = checkpoint[PROJECT_KEY].get("config")
    if not stored_config:
        raise ConfigError(f"ckpt_path={path}: was saved without a configuration; valid is a checkpoint that train.py saved")
    if path.absolute().parent.name != "checkpoints":  # the run would continue in a folder that is not its own
        raise ConfigError(f"ckpt_path={path}: is not in a run folder; valid is <run folder>/checkpoints/{path.name}")
    new_config = _foreign_config(stored_config, path, config, overridden)
    former = new_config.copy()
    if "env_steps" in overridden:
        _lengthen_comparison(new_config, config.env_steps)
    for key in overridden:
        value, (parent, _, name) = OmegaConf.select(config, key), key.rpartition(".")
        siblings = OmegaConf.select(new_config, parent) if parent else new_config
        if value is None and (siblings is None or name not in siblings):  # null for an entry that does not exist: a typo
            raise ConfigError(key_message(parent, name, siblings or ()))
        OmegaConf.update(new_config, key, value, merge=False, force_add=True)
    _check_measurements(former, new_config, folder_of(path) / "meta_test.csv")
    num_done = checkpoint[PROJECT_KEY].get("env_steps")
    env_steps = new_config.get("env_steps")  # not yet of its type: 8e3 is a float
    if isinstance(env_steps, int | float) and isinstance(num_done, int) and env_steps < num_done:
        raise ConfigError(f"env_steps={env_steps} is less than the {num_done} that ckpt_path={path} has; valid is that or more")
    return new_config


def _check_measurements(former: DictConfig, config: DictConfig, path: Path) -> None:
    """Refuse to measure otherwise than before where results are in the file: they would stay, among others or under a wrong name.

    Raises:
        ConfigError: names the first such key, and the file.
    """
    try:
        methods = {row.method for row in read_rows(path)}
    except ForeignFileError as error:
        raise ConfigError(str(error)) from error
    own = OmegaConf.select(former, "callbacks.evaluation.method")
    keys = ["callbacks.evaluation.num_episodes"] if own in methods else []
    if tested := methods - {own}:
        keys += [f"callbacks.meta_test.{name}" for name in ("num_episodes", "evaluate_every_env_steps")]
        baselines = OmegaConf.select(former, "callbacks.meta_test.baselines") or ()
        keys += [f"callbacks.meta_test.baselines.{method}" for method in baselines if method in tested]
    for key in keys:
        before, now = OmegaConf.select(former, key), OmegaConf.select(config, key)
        if None not in (before, now) and before != now:
            raise ConfigError(
                f"{key} cannot be changed on a resume: {path} has results with {before}; valid is that, or a new run"
            )


def _lengthen_comparison(config: DictConfig, env_steps: Any) -> None:
    """Test other methods as long as the run's own fresh agents, if they were as long before (`experiment=meta_test`)."""
    test = OmegaConf.select(config, "callbacks.meta_test")
    if test is not None and test.get("seeds") is None and test.get("env_steps") == config.get("env_steps"):
        test.env_steps = env_steps


def _foreign_config(stored: Any, path: Path, config: DictConfig, overridden: Sequence[str]) -> DictConfig:
    """The configuration in a checkpoint, with the run folder in which the checkpoint lies, after `check_foreign`.

    What the command line sets is the user's, and not checked. The cache of compiled code and the trusted packages are always those
    of the command line.

    Raises:
        ConfigError: if it names what a file may not name.
    """
    folder = folder_of(path)
    try:
        if not isinstance(stored, dict) or not isinstance(stored.get("run_dir"), str):
            raise ConfigError("its configuration has no run_dir; valid is a checkpoint that train.py saved")
        new = _replace_prefix(stored, stored["run_dir"], str(folder))
        trusted = config.get("trusted_packages") or ()
        check_foreign(_without(new, overridden), KINDS, [trusted] if isinstance(trusted, str) else trusted, folder)
    except ConfigError as error:
        raise ConfigError(f"ckpt_path={path}: {error}") from error
    here = {key: config[key] for key in ("compile_cache", "trusted_packages") if key in config}
    return OmegaConf.create({**new, **here})


def _without(value: Any, keys: Sequence[str]) -> Any:
    """A configuration without what lies at these dotted keys."""
    if not isinstance(value, dict):
        return value
    parts = [key.partition(".") for key in keys]  # so no key means a name with a dot in it
    gone = {name for name, dot, _ in parts if not dot}
    return {
        name: _without(item, [rest for own, _, rest in parts if own == name]) for name, item in value.items() if name not in gone
    }


def objective_config(config: DictConfig) -> DictConfig:
    """The node of a run's objective. On a resume, an objective from a file is that of the run folder, whatever became of the file.

    The weights are those of the checkpoint in any case. But the file may have been moved, or be of a longer meta-training by now.
    """
    own = Path(config.run_dir) / "objective.safetensors"
    is_from_file = str(config.objective.get("_target_")).endswith(".load") and "path" in config.objective
    if config.ckpt_path is None or not is_from_file or not own.is_file():
        return config.objective
    changed = config.copy()
    changed.objective.path = str(own)
    return changed.objective


def with_run_dir(config: DictConfig, run_dir: str) -> DictConfig:
    """Replace the run folder by `run_dir` in every value of the configuration."""
    return OmegaConf.create(_replace_prefix(OmegaConf.to_container(config), config.run_dir, run_dir))


def _replace_prefix(value: Any, old: str, new: str, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _replace_prefix(item, old, new, str(name)) for name, item in value.items()}
    if isinstance(value, list):  # texts in lists, and `id`, name environments, whose namespace may be called like the folder
        return [item if isinstance(item, str) else _replace_prefix(item, old, new) for item in value]
    if key == "id":
        return value
    # A folder may have the same name as a choice (`run_dir=light`). So replace a bare name only in keys that end in `dir`.
    if isinstance(value, str) and value.startswith(database := f"sqlite:///{old}/"):
        return f"sqlite:///{new}/{value[len(database) :]}"
    if isinstance(value, str) and (value.startswith(old + "/") or (value == old and key.endswith("dir"))):
        return new + value[len(old) :]
    return value
