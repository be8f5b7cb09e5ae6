"""Where a learned objective comes from: the settings that shaped it, as its run's configuration or its card names them."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from metagenrl_pl.common.messages import one_line
from metagenrl_pl.config.dotted_keys import group_settings, ungroup_settings
from metagenrl_pl.config.former import update_card, update_config
from metagenrl_pl.config.schema import ConfigError, defaults_of, import_target
from metagenrl_pl.config.trust import TRUSTED
from metagenrl_pl.environments.environment import EnvironmentSpec
from metagenrl_pl.objectives.pretrained import trained_in

_TARGET_OF_OLDER_CARDS = "metagenrl_pl.objectives.LearnedObjective"


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
    groups = ("population", "objective", "agent", "inner", "judge", "meta")
    settings = ungroup_settings({group: config.get(group) or {} for group in groups})
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
        seed, entries = config["seed"], config["env"]["train"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is no config of a run: it lacks seed or env.train") from error
    names = {EnvironmentSpec.parse(entry).name for entry in entries} | trained_in(card)
    settings = _complete(meta_training_settings(config))
    return Origin(seed, tuple(sorted(names)), settings, str(card.get("commit") or ""), is_whole=True)


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
        ValueError: if the file is no JSON.
    """
    try:
        card = json.loads(path.read_text())
        return update_card(card) if isinstance(card, dict) else {}
    except (ValueError, RecursionError, TypeError, AttributeError) as error:  # also settings that are no mapping
        raise ValueError(f"{path} is not readable: {one_line(error)}") from error


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
