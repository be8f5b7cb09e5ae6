"""What a result was made with."""

import json
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
