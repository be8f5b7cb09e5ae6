"""What version 0.1.0 had and this version has not: files of that version are read by it, and keys that are gone are explained.

a run's config.yaml, a checkpoint's configuration -> `update_config`
the card of an objective                          -> `update_card`
the constructor's arguments in an objective file  -> `update_options`
a key, a choice or a class on the command line    -> `removed_key_message`, `removed_choice_message`, `removed_target_message`
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from metagenrl_pl.common.messages import format_value

FORMER_TARGETS = {
    "metagenrl_pl.csv_logger.RunCSVLogger": "metagenrl_pl.training.csv_logger.RunCSVLogger",
    "metagenrl_pl.datamodule.ReplaySettings": "metagenrl_pl.experience.replay.ReplaySettings",
    "metagenrl_pl.envs.EnvironmentSets": "metagenrl_pl.environments.environment.EnvironmentSets",
    "metagenrl_pl.inner.Adam": "metagenrl_pl.learning.inner_step.Adam",
    "metagenrl_pl.inner.SGD": "metagenrl_pl.learning.inner_step.SGD",
    "metagenrl_pl.learner.MetaSettings": "metagenrl_pl.learning.settings.MetaSettings",
    "metagenrl_pl.learning.learner.MetaSettings": "metagenrl_pl.learning.settings.MetaSettings",
    "metagenrl_pl.population.AgentSettings": "metagenrl_pl.agents.population.AgentSettings",
    "metagenrl_pl.population.PopulationSettings": "metagenrl_pl.agents.population.PopulationSettings",
    "metagenrl_pl.training.datamodule.ReplaySettings": "metagenrl_pl.experience.replay.ReplaySettings",
}
"""Where the classes are that configurations of version 0.1.0 name. Those that have not moved are left out."""

_NO_USE = "since it did not help (docs/what-did-not-help.md)"


@dataclass(frozen=True)
class Removed:
    """A setting that version 0.1.0 had.

    Args:
        neutral: values at which it did nothing. A file with one of them is read as if it did not name the setting.
        needs: another setting; without it, this one did nothing at any value.
        why: it was removed.
        valid: what to write instead. `{value}` is its value.
    """

    neutral: Collection[Any] = ()
    needs: str | None = None
    why: str = _NO_USE
    valid: str = "to leave it out"


_SIGNED = Removed(("signed",))
REMOVED: Mapping[str, Mapping[str, Removed]] = {
    "MetaSettings": {
        "critic": Removed(("first",)),
        "half_life_env_steps": Removed((None,)),
        "share_windows": Removed((False,)),
        "average_decay": Removed((None,)),
        "updates_per_cycle": Removed((1,)),
        "advantage_share": Removed((0.0,), why="since a judge replaces it", valid="judge=returns judge.share={value}"),
        "advantage": Removed(("signed",), needs="advantage_share"),
    },
    "LearnedObjective": {
        "use_advantage": Removed((False,)),
        "discount": Removed(needs="use_advantage", why="with use_advantage, without which it had no effect"),
        "gae_lambda": Removed(needs="use_advantage", why="with use_advantage, without which it had no effect"),
    },
    "LearnedMixture": {"advantage": _SIGNED},
    "Reinforce": {"advantage": _SIGNED},
}
"""The settings that were removed, by the class that had them and their name."""

REMOVED_CHOICES = ("objective=ensemble", "objective=learned_with_advantage", "meta=imitating")
REMOVED_CLASSES = ("ObjectiveEnsemble",)

_CRITIC_JUDGE = {"_target_": "metagenrl_pl.learning.judges.CriticJudge"}
_RETURNS_JUDGE = {"_target_": "metagenrl_pl.learning.judges.ReturnsJudge"}
_GAE_LAMBDA = 0.97  # of every judgement by returns in version 0.1.0


def update_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A stored configuration as this version writes it; one of this version as it is.

    Classes have their new names. Removed settings are left out where they did nothing, and stay where they did something, so that runs
    with and without them differ. `meta.advantage_share` becomes the judge by returns.
    """
    updated = {str(name): _update(value) for name, value in config.items()}
    if updated.get("meta") is not None and "judge" not in updated:
        meta = dict(updated["meta"])
        share = meta.pop("advantage_share", 0.0)
        updated |= {"meta": meta, "judge": dict(_CRITIC_JUDGE)}
        if share:
            discount = (updated.get("agent") or {}).get("discount", 0.99)
            updated["judge"] = {**_RETURNS_JUDGE, "share": share, "discount": discount, "gae_lambda": _GAE_LAMBDA}
    return updated


def update_card(card: Mapping[str, Any]) -> dict[str, Any]:
    """The card of an objective, its settings as this version writes them."""
    if "settings" not in card:
        return dict(card)
    groups: dict[str, dict[str, Any]] = defaultdict(dict)
    for key, value in card["settings"].items():
        group, _, name = key.partition(".")
        groups[group][name] = value
    updated = update_config(groups)
    return {**card, "settings": {f"{group}.{name}": value for group, node in updated.items() for name, value in node.items()}}


def update_options(owners: Collection[str], options: Mapping[str, Any], accepted: Collection[str] = ()) -> dict[str, Any]:
    """The settings of a class without those that were removed and did nothing.

    Args:
        owners: names of the class and of its bases.
        options: by name.
        accepted: names that the class itself has given a meaning.
    """
    return {
        name: value
        for name, value in options.items()
        if name in accepted or not any(_is_neutral(owner, name, options) for owner in owners)
    }


def removed_key_message(owners: Iterable[str], key: str, value: Any = ...) -> str | None:
    """The line for a removed key; None for a key that never was.

    Args:
        owners: names of the class that the settings belong to and of its bases.
        key: dotted.
        value: that was given; left out if unknown.
    """
    name = key.rpartition(".")[2]
    removed = next((REMOVED[owner][name] for owner in owners if name in REMOVED.get(owner, {})), None)
    if removed is None:
        return None
    text = "..." if value is ... else format_value(value, "")
    given = key if value is ... else f"{key}={text}"
    return f"{given} was removed after version 0.1.0, {removed.why}; valid is {removed.valid.format(value=text)}"


def removed_choice_message(group: str, choice: str) -> str | None:
    """The line for a removed choice of a group; None for one that never was."""
    given = f"{group}={choice}"
    return f"{given} was removed after version 0.1.0, {_NO_USE}" if given in REMOVED_CHOICES else None


def removed_target_message(target: str) -> str | None:
    """The line for a class that was removed or has moved; None for one that never was."""
    if target in FORMER_TARGETS:
        return f"{target} has moved after version 0.1.0; valid is {FORMER_TARGETS[target]}"
    is_removed = any(part in REMOVED_CLASSES for part in target.split("."))
    return f"{target} was removed after version 0.1.0, {_NO_USE}" if is_removed else None


def _update(value: Any) -> Any:
    if isinstance(value, list):
        return [_update(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    node = {name: _update(item) for name, item in value.items()}
    if "_target_" not in node:
        return node
    target = str(node["_target_"])
    target = FORMER_TARGETS.get(target, target)
    return update_options([target.rpartition(".")[2]], {**node, "_target_": target})


def _is_neutral(owner: str, name: str, options: Mapping[str, Any]) -> bool:
    """Whether a setting was removed from a class and did nothing at its value."""
    removed = REMOVED.get(owner, {}).get(name)
    if removed is None:
        return False
    if options[name] in removed.neutral:
        return True
    return removed.needs is not None and (removed.needs not in options or _is_neutral(owner, removed.needs, options))
