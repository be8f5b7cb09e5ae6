"""Settings by dotted key."""

from metagenrl_pl.config.dotted_keys import flatten_settings, group_settings, ungroup_settings


def test_flatten_settings_at_any_depth_and_keeps_lists():
    assert flatten_settings({"seed": 3, "agent": {"x": {"y": [1, 2]}, 5: None}}) == {
        "seed": 3,
        "agent.x.y": [1, 2],
        "agent.5": None,
    }


def test_group_settings_by_the_first_part_and_back():
    flat = {"agent.x": 1, "meta.gradient": "clip", "agent.y.z": {"a": 2}}
    groups = group_settings(flat)
    assert groups == {"agent": {"x": 1, "y.z": {"a": 2}}, "meta": {"gradient": "clip"}}
    assert ungroup_settings(groups) == flat
