"""Settings by dotted key, such as `agent.hidden_units`."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from metagenrl_pl.common.messages import join_key


def flatten_settings(settings: Mapping[Any, Any], parent: str = "") -> dict[str, Any]:
    """Nested settings by dotted key, at any depth. Lists are values."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        key = join_key(parent, name)
        flat |= flatten_settings(value, key) if isinstance(value, Mapping) else {key: value}
    return flat


def group_settings(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings by dotted key, by the first part of their keys: `{"agent.hidden_units": 64}` -> `{"agent": {"hidden_units": 64}}`."""
    groups: dict[str, dict[str, Any]] = defaultdict(dict)
    for key, value in flat.items():
        group, _, name = key.partition(".")
        groups[group][name] = value
    return dict(groups)


def ungroup_settings(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The reverse of `group_settings`. What is nested deeper stays a value."""
    return {join_key(group, name): value for group, node in groups.items() for name, value in node.items()}
