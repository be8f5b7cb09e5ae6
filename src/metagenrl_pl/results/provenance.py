"""What a result was made with: the commit of the code and the versions of packages."""

import json
import platform
import subprocess
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import metagenrl_pl
from metagenrl_pl.common.files import atomic_write

_PACKAGES = ("pytorch-lightning", "gymnasium", "mujoco", "numpy")
FILE = "provenance.json"


@cache
def commit() -> str | None:
    """The checkout's commit, with a mark if there are changes on top; None outside of a checkout."""
    file = Path(__file__)
    git = partial(subprocess.run, cwd=file.parent, capture_output=True, text=True, check=True)
    try:
        git(["git", "ls-files", "--error-unmatch", file.name])  # or an installed package would name the repository around it
        return str(git(["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]).stdout.strip())
    except (OSError, subprocess.CalledProcessError):
        return None


def provenance(**more: Any) -> dict[str, Any]:
    """Commit and version of the code, versions of packages (null for a package that is not there), and whatever else is given."""
    return {
        "commit": commit(),
        "metagenrl-pl": metagenrl_pl.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{package: _version(package) for package in _PACKAGES},
        **more,
    }


def add_provenance(folder: Path, **more: Any) -> None:
    """Append the present versions to the list in a folder's `provenance.json`: an entry for each start of its run.

    Raises:
        ValueError: if the file is there and holds no list.
    """
    path = folder / FILE
    try:
        entries = json.loads(path.read_text()) if path.exists() else []
    except ValueError:  # no JSON, no text
        entries = None
    if not isinstance(entries, list):
        raise ValueError(f"{FILE} is damaged; valid is a list of entries, or no file")
    with atomic_write(path) as file:
        file.write(f"{json.dumps([*entries, provenance(**more)], indent=2)}\n".encode())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
