"""Settings of meta-learning."""

from typing import Any

import pytest

from metagenrl_pl.learning.settings import MetaSettings


@pytest.mark.parametrize(
    ("name", "value", "valid"),
    [
        ("learning_rate", 0.0, "be positive and finite"),
        ("learning_rate", float("inf"), "be positive and finite"),
        ("gradient", "sum", "be clip or normalize"),
        ("annealing_env_steps", -1, "not be negative"),
    ],
)
def test_meta_settings_refuse(name: str, value: Any, valid: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must {valid}, got {value!r}"):
        MetaSettings(**{name: value})
