"""`train.py`, run in this process."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from metagenrl_pl.launch import entry

Train = Callable[..., tuple[int, str, str]]


@pytest.fixture
def in_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Train:
    """Runs train.py in this process, in a folder of its own: the exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(entry, "_print_first_line", lambda: None)  # a process prints it once, whichever test comes first

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        code = 0
        try:
            entry.run_command_line(Path(__file__).parents[2] / "conf")
        except SystemExit as exit:
            assert isinstance(exit.code, int)
            code = exit.code
        return code, *capsys.readouterr()

    return run
