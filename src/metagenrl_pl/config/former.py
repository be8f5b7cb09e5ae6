"""Read files of version 0.1.0.

a run's config.yaml                               -> `update_config`
the card of an objective                          -> `update_card`
the constructor's arguments in an objective file  -> `update_options`
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from metagenrl_pl.config.dotted_keys import group_settings, ungroup_settings

FORMER_TARGETS = {
    "metagenrl_pl.csv_logger.RunCSVLogger": "metagenrl_pl.training.csv_logger.RunCSVLogger",
    "metagenrl_pl.datamodule.ReplaySettings": "metagenrl_pl.experience.replay.ReplaySettings",
    "metagenrl_pl.envs.EnvironmentSets": "metagenrl_pl.environments.environment.EnvironmentSets",
    "metagenrl_pl.inner.Adam": "metagenrl_pl.learning.inner_step.Adam",
    "metagenrl_pl.inner.SGD": "metagenrl_pl.learning.inner_step.SGD",
    "metagenrl_pl.learner.MetaSettings": "metagenrl_pl.learning.settings.MetaSettings",
    "metagenrl_pl.population.AgentSettings": "metagenrl_pl.agents.population.AgentSettings",
    "metagenrl_pl.population.PopulationSettings": "metagenrl_pl.agents.population.PopulationSettings",
}
"""The new names of classes that configurations of version 0.1.0 name. Classes that have not moved are left out."""


@dataclass(frozen=True)
class Removed:
    """A setting that version 0.1.0 had.

    Args:
        neutral: values at which it had no effect. A file with such a value is read as if the setting were absent.
        needs: another setting, without which this one had no effect.
    """

    neutral: Collection[Any] = ()
    needs: str | None = None


_SIGNED = Removed(("signed",))
REMOVED: Mapping[str, Mapping[str, Removed]] = {
    "MetaSettings": {
        "critic": Removed(("first",)),
        "half_life_env_steps": Removed((None,)),
        "share_windows": Removed((False,)),
        "average_decay": Removed((None,)),
        "updates_per_cycle": Removed((1,)),
        "advantage_share": Removed((0.0,)),
        "advantage": Removed(("signed",), needs="advantage_share"),
    },
    "Adam": {
        "beta1": Removed((0.9,)),
        "beta2": Removed((0.999,)),
        "eps": Removed((1e-8,)),
    },
    "LearnedObjective": {
        "use_advantage": Removed((False,)),
        "gae_lambda": Removed(needs="use_advantage"),
    },
    "LearnedMixture": {"advantage": _SIGNED},
    "Reinforce": {"advantage": _SIGNED},
}
"""The settings that were removed, by class and name."""

_CRITIC_JUDGE = {"_target_": "metagenrl_pl.learning.judges.CriticJudge"}
_RETURNS_JUDGE = {"_target_": "metagenrl_pl.learning.judges.ReturnsJudge"}
_GAE_LAMBDA = 0.97  # version 0.1.0 always used this value in its judge by returns


def update_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a stored configuration of version 0.1.0 to this version. A configuration of this version is returned unchanged.

    Classes get their new names. Removed settings are dropped if they had no effect, and kept otherwise, so that runs with and
    without them stay distinguishable. `meta.advantage_share` becomes the judge by returns.
    """
    updated = {str(name): _update(value) for name, value in config.items()}
    if isinstance(updated.get("meta"), Mapping) and "judge" not in updated:
        meta = dict(updated["meta"])
        share = meta.pop("advantage_share", 0.0)
        updated |= {"meta": meta, "judge": dict(_CRITIC_JUDGE)}
        if share:
            discount = (updated.get("agent") or {}).get("discount", 0.99)
            updated["judge"] = {**_RETURNS_JUDGE, "share": share, "discount": discount, "gae_lambda": _GAE_LAMBDA}
    return updated


def update_card(card: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the settings in an objective's card to this version."""
    if "settings" not in card:
        return dict(card)
    return {**card, "settings": ungroup_settings(update_config(group_settings(card["settings"])))}


def update_options(owners: Collection[str], options: Mapping[str, Any], accepted: Collection[str] = ()) -> dict[str, Any]:
    """Drop the removed settings of a class that had no effect.

    Args:
        owners: names of the class and of its bases.
        options: settings by name.
        accepted: names that the class's own constructor accepts; they are never dropped.
    """
    return {
        name: value
        for name, value in options.items()
        if name in accepted or not any(_is_neutral(owner, name, options) for owner in owners)
    }


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
    """Whether a setting was removed from a class and had no effect at its value."""
    removed = REMOVED.get(owner, {}).get(name)
    if removed is None:
        return False
    if options[name] in removed.neutral:
        return True
    return removed.needs is not None and (removed.needs not in options or _is_neutral(owner, removed.needs, options))
