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
    plain = f"{key}={value}"
    if not _is_read_as(plain, value):
        text = value.replace("${", "\\${")
        text = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text)
        plain = f"{key}='{text}'"
    return shlex.quote(plain)


def resume_command(checkpoint: Path | str, trusted_packages: Sequence[str] = ()) -> str:
    """The command that goes on from a checkpoint."""
    path = str(checkpoint)
    path = f"./{path}" if path.startswith("~") else path  # the folder of this name, not a user's home
    trust = [shlex.quote(f"trusted_packages=[{','.join(trusted_packages)}]")] if trusted_packages else []
    return " ".join([train_command(), override("ckpt_path", path), *trust])


def _is_read_as(argument: str, value: str) -> bool:
    """Whether Hydra reads an unquoted argument as this text. It reads some as numbers, lists or sweeps, and rejects others."""
    if "${" in value or not value.isascii():
        return False
    try:
        (parsed,) = OverridesParser.create().parse_overrides([argument])
        return not parsed.is_sweep_override() and parsed.value() == value
    except HydraException:
        return False
