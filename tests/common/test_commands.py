"""Commands that are printed can be pasted."""

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from metagenrl_pl.common.commands import override, resume_command

ODD = [
    "runs/2026-11-28_20-13/checkpoints/env_steps_000000040.ckpt",
    "my runs/a.ckpt",
    "a=b/c.ckpt",
    "runs/[1,2]/{x}/(y).ckpt",
    'it\'s/a "quote".ckpt',
    "back\\slash/end\\",
    "back\\'quote",
    "~/home",
    "Läufe/模型/é.ckpt",
    "$HOME/`x`/!y;z&w|v*?.ckpt",
    "${seed}/x",
    "123",
    "null",
    "a,b",
    " spaces at both ends ",
    "tab\tand#hash%percent@at:colon",
]


@pytest.mark.parametrize("value", ODD)
def test_the_shell_and_hydra_give_back_the_value(value: str) -> None:
    (argument,) = shlex.split(override("ckpt_path", value))
    (parsed,) = OverridesParser.create().parse_overrides([argument])
    assert parsed.key_or_group == "ckpt_path" and not parsed.is_sweep_override()
    assert OmegaConf.create({"ckpt_path": parsed.value()}).ckpt_path == value


def test_a_resume_names_what_the_user_has_to_confirm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py"])
    assert resume_command("runs/a.ckpt") == "python train.py ckpt_path=runs/a.ckpt"
    command = resume_command("~a/b.ckpt", ["trusted_packages=[own,two]", "logger.a.notes='a b'"])
    assert shlex.split(command)[2:] == ["ckpt_path='./~a/b.ckpt'", "trusted_packages=[own,two]", "logger.a.notes='a b'"]
    monkeypatch.setattr("sys.argv", ["/usr/bin/metagenrl"])
    assert resume_command("runs/a.ckpt") == "metagenrl train ckpt_path=runs/a.ckpt"
