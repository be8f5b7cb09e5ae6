"""Writing that survives a kill."""

from pathlib import Path

import pytest

from metagenrl_pl.common.files import atomic_write, path_argument


def test_a_failed_write_leaves_the_file_whole_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]

    with atomic_write(path) as file:
        file.write(b"after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_a_tilde_on_a_command_line_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert path_argument("~/runs") == tmp_path / "runs" and path_argument("runs") == Path("runs")
    with pytest.raises(ValueError, match="home"):
        path_argument("~nobody.at.all/runs")
