"""The command `metagenrl`."""

import sys
from pathlib import Path

import pytest

from metagenrl_pl.launch import cli


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["metagenrl", *arguments])
    try:
        cli.main()
    except SystemExit as exit:
        assert isinstance(exit.code, int)
        return exit.code
    return 0


def test_it_lists_its_commands_and_the_objectives(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch) == 0
    assert all(f"\n  {name} " in capsys.readouterr().out for name in ("train",))
    assert call(monkeypatch, "list") == 0
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == ["falling", "light", "mixture"]
    assert call(monkeypatch, "tain") == 2
    assert capsys.readouterr().err.startswith("error: there is no command 'tain'; valid: train, test, report, film, list")


@pytest.mark.parametrize(
    ("arguments", "overrides"),
    [
        (["objective=pretrained"], ["experiment=meta_test", "objective=pretrained"]),
        (["light", "seed=1"], ["experiment=meta_test", "objective=pretrained", "objective.name='light'", "seed=1"]),
        (["a b/o.safetensors"], ["experiment=meta_test", "objective.path='a b/o.safetensors'"]),
        (["run", "-m", "seed=1,2"], ["experiment=meta_test", "objective.path='run/objective.safetensors'", "-m", "seed=1,2"]),
        (["experiment=mine", "~callbacks.csv"], ["experiment=mine", "~callbacks.csv"]),
    ],
)
def test_an_argument_of_test_that_is_no_override_is_the_objective(
    arguments: list[str], overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    assert cli.with_objective(arguments) == overrides


@pytest.mark.parametrize(
    ("module", "extra"),
    [("jinja2", "report"), ("hydra.core", "train"), ("pytorch_lightning", "train"), ("stable_baselines3", "sb3")],
)
def test_a_missing_extra_is_one_line_with_the_command(
    module: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(cli, "_run", fail)
    assert call(monkeypatch, "report", "runs") == 2
    assert capsys.readouterr().err == f"error: {module} is not installed; pip install -e '.[{extra}]'\n"
    monkeypatch.setattr(cli, "is_installed", lambda: True)
    assert call(monkeypatch, "report", "runs") == 2
    assert capsys.readouterr().err == f"error: {module} is not installed; pip install 'metagenrl-pl[{extra}]'\n"


def test_modules_without_an_extra_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'mine'", name="mine")

    monkeypatch.setattr(cli, "_run", fail)
    with pytest.raises(ModuleNotFoundError, match="mine"):
        call(monkeypatch, "train")
