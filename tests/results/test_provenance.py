"""What a result was made with."""

import json
import re
import subprocess
from functools import partial
from pathlib import Path

import pytest
import torch

from metagenrl_pl.results import provenance


def test_every_start_of_a_run_is_an_entry(tmp_path: Path) -> None:
    provenance.add_provenance(tmp_path, device="cpu x 1")
    provenance.add_provenance(tmp_path, device="cpu x 2")
    entries = json.loads((tmp_path / provenance.FILE).read_text())
    assert [entry["device"] for entry in entries] == ["cpu x 1", "cpu x 2"]
    assert entries[0]["torch"] == torch.__version__ and entries[0]["gymnasium"].startswith("1.")


def test_what_is_not_there_is_null(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_PACKAGES", ("no-such-package",))
    assert provenance.provenance()["no-such-package"] is None


def test_an_installed_package_does_not_name_the_repository_around_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the virtual environment of somebody's project."""
    git = partial(subprocess.run, cwd=tmp_path, check=True, capture_output=True)
    git(["git", "init", "-q"])
    git(["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "theirs"])
    file = tmp_path / "site-packages" / "provenance.py"
    file.parent.mkdir()
    file.touch()
    monkeypatch.setattr(provenance, "__file__", str(file))
    provenance.commit.cache_clear()
    try:
        assert provenance.commit() is None
        git(["git", "add", "-f", str(file)])
        provenance.commit.cache_clear()
        assert re.fullmatch("[0-9a-f]{40}-dirty", provenance.commit() or "")  # a checkout of the project itself
    finally:
        provenance.commit.cache_clear()
