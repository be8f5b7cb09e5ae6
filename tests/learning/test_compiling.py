"""When updates are compiled, and where the result is kept."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from metagenrl_pl.common.signals import STOP_SIGNALS
from metagenrl_pl.learning.compiling import Compiled, ignore, keep_compiled_in


@pytest.mark.parametrize(("before", "after"), [(None, "own"), (default_cache_dir(), "own"), ("/elsewhere", "/elsewhere")])
def test_compiled_updates_are_kept_in_the_configured_folder(
    before: str | None, after: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch sets the variable to its default when it is imported; only what a user has set is left alone."""
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    if before is not None:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", before)
    keep_compiled_in(tmp_path / "own")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == (str(tmp_path / "own") if after == "own" else after)


def test_eager_updates_do_not_import_the_compiler() -> None:
    code = "import sys, metagenrl_pl.learning.learner; sys.exit('torch._inductor' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_signals_spare_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    blocked: list[set[int | signal.Signals]] = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    see = partial(signal.pthread_sigmask, signal.SIG_BLOCK, [])  # blocks nothing more
    update = Compiled(lambda: blocked.append(see()), "update", ignore, torch.device("cpu"))
    update()  # which compiles
    update()
    assert blocked[0] >= set(STOP_SIGNALS) and not blocked[1] & set(STOP_SIGNALS)
