"""Commands that are printed for users to paste: quoted for Hydra and for the shell."""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException


def train_command() -> str:
    """How the user starts a run: in a clone, or installed."""
    return "python train.py" if Path(sys.argv[0]).name == "train.py" else "metagenrl train"


def override(key: str, value: str) -> str:
    """`key=value` for the command line, such that Hydra reads this very text, and the shell passes it on."""
    return shlex.quote(hydra_override(key, value))


def hydra_override(key: str, value: str) -> str:
    """`key=value`, such that Hydra reads this very text."""
    plain = f"{key}={value}"
    if _is_read_as(plain, value):
        return plain
    text = value.replace("${", "\\${")
    text = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text)
    return f"{key}='{text}'"


def resume_command(checkpoint: Path | str, overrides: Sequence[str] = ()) -> str:
    """The command that goes on from a checkpoint, with overrides as Hydra reads them."""
    path = str(checkpoint)
    path = f"./{path}" if path.startswith("~") else path  # the folder of this name, not a user's home
    return " ".join([train_command(), override("ckpt_path", path), *map(shlex.quote, overrides)])


def _is_read_as(argument: str, value: str) -> bool:
    """Whether Hydra reads an unquoted argument as this text. It reads some as numbers, lists or sweeps, and rejects others."""
    if "${" in value or not value.isascii():
        return False
    try:
        (parsed,) = OverridesParser.create().parse_overrides([argument])
        return not parsed.is_sweep_override() and parsed.value() == value
    except HydraException:
        return False
