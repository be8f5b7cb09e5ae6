"""Where a learned objective comes from: the settings that shaped it, as its run's configuration or its card names them."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from metagenrl_pl.common.messages import format_value, join_key, one_line
from metagenrl_pl.config.dotted_keys import group_settings, ungroup_settings
from metagenrl_pl.config.former import update_card, update_config
from metagenrl_pl.config.schema import ConfigError, defaults_of, import_target, load_config
from metagenrl_pl.config.trust import TRUSTED
from metagenrl_pl.environments.environment import EnvironmentSpec
from metagenrl_pl.objectives.pretrained import trained_in

_TARGET_OF_OLDER_CARDS = "metagenrl_pl.objectives.LearnedObjective"
_GROUPS = ("population", "objective", "agent", "inner", "judge", "meta")

_Kind = tuple[Callable[[Any], bool], str]  # what a value has to be, as a check and in words
_NUMBER: _Kind = (lambda value: type(value) is int, "a whole number")
_NUMBER_OR_NULL: _Kind = (lambda value: value is None or type(value) is int, "a whole number or null")
_TEXT_OR_NULL: _Kind = (lambda value: isinstance(value, str | None), "a text or null")
_LIST: _Kind = (lambda value: isinstance(value, list), "a list")
_NAMES: _Kind = (lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value), "a list of names")
_MAPPING: _Kind = (lambda value: isinstance(value, Mapping), "a mapping")
_MAPPINGS: _Kind = (
    lambda value: isinstance(value, list) and all(isinstance(item, Mapping) for item in value),
    "a list of mappings",
)
_MAPPING_OR_NULL: _Kind = (lambda value: isinstance(value, Mapping | None), "a mapping or null")


class Origin(NamedTuple):
    """How a learned objective was made.

    Args:
        seed: of the meta-training.
        training_environments: their names, sorted, also of earlier runs whose objective it continued.
        settings: what else made it, by dotted key.
        commit: of the code, empty if unknown.
        is_whole: whether the settings are all there were, those that are missing being null; not so in a card that has only some of them.
    """

    seed: int
    training_environments: tuple[str, ...]
    settings: Mapping[str, Any]
    commit: str = ""
    is_whole: bool = False

    def differences(self, other: "Origin") -> list[str]:
        """Keys of the settings in which two differ, as far as both are known."""
        keys = self.settings.keys() | other.settings.keys()  # a key that one of them lacks belongs to a component of another kind
        if not (self.is_whole and other.is_whole):
            keys = {key for key in keys if {key, _group(key)} & self._known and {key, _group(key)} & other._known}
        return [key for key in keys if self.settings.get(key) != other.settings.get(key)]

    @property
    def _known(self) -> set[str]:
        """The keys of the settings, and the group that every card names as a whole, if this one has it: the objective."""
        return {*self.settings, *(group for key in self.settings if (group := _group(key)) == "objective")}


def meta_training_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What shapes an objective beside seed, environments and length, of a run's configuration, by dotted key."""
    settings = ungroup_settings({group: config.get(group) or {} for group in _GROUPS})
    return {key: value for key, value in settings.items() if key != "objective.seed"}


def origin_in_config(path: Path, config: Mapping[str, Any], card: Mapping[str, Any]) -> Origin:
    """The origin of an objective that a run with this configuration meta-trained.

    Args:
        path: of the configuration, for the message.
        config: what it holds.
        card: of the objective, or of the one that the run continued, which names the commit and earlier runs; empty if there is none.

    Raises:
        ValueError: if it is no configuration of a run.
    """
    try:
        seed, names = config["seed"], {EnvironmentSpec.parse(entry).name for entry in config["env"]["train"]}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path} is no config of a run, which has seed, a number, and env.train, a list of environments ({one_line(error)})"
        ) from error
    settings = _complete(meta_training_settings(config))
    return Origin(seed, tuple(sorted(names | trained_in(card))), settings, str(card.get("commit") or ""), is_whole=True)


def origin_in_card(card: Mapping[str, Any]) -> Origin | None:
    """The origin that a card names; None if it names none. Cards of older runs know only some of the settings."""
    if not {"training_environments", "seed"} <= card.keys():
        return None
    settings = card.get("settings")
    is_whole = settings is not None
    if settings is None:  # written before the package had other classes of objectives, or all of this one's options
        architecture = {"_target_": _TARGET_OF_OLDER_CARDS, **card.get("architecture", {})}
        objective = with_defaults(update_config({"objective": architecture})["objective"])
        settings = {f"objective.{key}": value for key, value in objective.items() if key != "seed"}
        for key, name in (("num_agents", "population.size"), ("window_length", "agent.window_length")):
            settings |= {name: card[key]} if key in card else {}
    else:
        settings = _complete(settings)
    return Origin(card["seed"], tuple(sorted(trained_in(card))), settings, str(card.get("commit") or ""), is_whole)


def read_card(path: Path) -> dict[str, Any]:
    """An objective's card, as this version writes it.

    Raises:
        ValueError: if the file is no JSON, or something in it is not what it has to be.
    """
    try:
        card = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable: {one_line(error)}") from error
    if not isinstance(card, dict):
        return {}
    environments = {"training_environments": _NAMES}
    _check(path, card, {**environments, "seed": _NUMBER, "window_length": _NUMBER_OR_NULL})
    _check(path, card, {"architecture": _MAPPING, "settings": _MAPPING, "earlier": _MAPPINGS})
    for number, run in enumerate(card.get("earlier", ())):
        _check(path, run, environments, f"earlier[{number}]")
    return update_card(card)


def read_config(path: Path) -> dict[str, Any]:
    """A run's configuration, as this version writes it, in plain dictionaries.

    Raises:
        ValueError: if the file is missing or no YAML, or something in it is not what it has to be.
    """
    config: Any = OmegaConf.to_container(load_config(path))
    _check(path, config, {"seed": _NUMBER, "env": _MAPPING_OR_NULL, **dict.fromkeys(_GROUPS, _MAPPING_OR_NULL)})
    _check(path, config.get("env") or {}, {"train": _LIST}, "env")
    _check(path, config.get("agent") or {}, {"window_length": _NUMBER_OR_NULL}, "agent")
    _check(path, config.get("objective") or {}, {"path": _TEXT_OR_NULL}, "objective")
    return update_config(config)


def _check(path: Path, values: Mapping[str, Any], kinds: Mapping[str, _Kind], parent: str = "") -> None:
    """Raise a ValueError if one of the values, in the file at `path` and there below the key `parent`, is of another kind."""
    for name, (is_valid, kind) in kinds.items():
        if name in values and not is_valid(values[name]):
            raise ValueError(f"{path} is not readable: {join_key(parent, name)} is {format_value(values[name])}; valid is {kind}")


def with_defaults(node: Mapping[str, Any]) -> dict[str, Any]:
    """A node with the defaults of its class. A run that is older than one of its keys was made with the key's default."""
    try:
        is_trusted = str(node.get("_target_")).partition(".")[0] in (*TRUSTED, *sys.modules)  # a file may not import others
        defaults = defaults_of(import_target(node["_target_"], "")) if is_trusted else {}
    except ConfigError:  # a component that is not here
        defaults = {}
    return {**defaults, **node}


def _group(key: str) -> str:
    return key.partition(".")[0]


def _complete(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted key, each group with the defaults of its class."""
    every = ungroup_settings({group: with_defaults(node) for group, node in group_settings(settings).items()})
    return {key: value for key, value in every.items() if key in settings or key != "objective.seed"}  # its own, not a setting
