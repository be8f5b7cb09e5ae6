"""The command `metagenrl`."""

import re
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import pytest
import toy_environments  # noqa: F401  (registers them)

import metagenrl_pl
from metagenrl_pl.common.messages import format_warning
from metagenrl_pl.launch import check_command, cli


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["metagenrl", *arguments])
    try:
        cli.main()
    except SystemExit as exit:
        assert isinstance(exit.code, int)
        return exit.code
    return 0


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_it_lists_its_commands(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, *arguments) == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {name:<8}{text}" in printed for name, text in cli.COMMANDS.items())


def test_it_prints_its_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"{metagenrl_pl.__version__}\n"


def test_list_prints_the_pretrained_objectives(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "list") == 0
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == ["falling", "light", "mixture"]
    assert call(monkeypatch, "list", "--help") == 0
    assert capsys.readouterr().out == "metagenrl list: list the pretrained objectives with their scores\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "x"], "list takes no argument, got x\n"),
        (["test", "env.train=[Pendulum-v1]"], "test needs an objective; valid is a name as in metagenrl list, "),
        (["test", "light", "mixture"], "test takes one objective, got light, mixture\n"),
        (["tain"], "there is no command 'tain'; valid: train, test, report, film, check, list"),
    ],
)
def test_a_mistyped_command_is_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {message}") and told.count("\n") == 1


def test_films_find_environments_of_the_current_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A console script does not have it on its path, unlike `python train.py`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(tmp_path))])
    assert call(monkeypatch, "film", "nothing.ckpt") == 2 and str(tmp_path) in sys.path


def test_check_tries_environments(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check_command, "_SECONDS", 0.02)
    sets = "env.test=[]", "env.train=[Pendulum-v1,{id: Counting-v0, kwargs: {ends_after: 7}}]"
    assert call(monkeypatch, "check", *sets) == 0
    printed = capsys.readouterr().out
    assert re.search(r"Pendulum-v1 +│ 3 +│ 1 +│ 200 +│ [\d,]+ ", printed)
    assert "warning: environment Counting-v0[ends_after=7]: declares no time limit" in printed


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ("CartPole-v1,Pendulum-v1", ["error: environment CartPole-v1: its actions are Discrete(2)", "│ 200 "]),  # tries the rest
        ("{id: Pendulum-v1, evaluation_kwargs: {foo: 1}}", ["got an unexpected keyword argument 'foo'"]),
        ("':x:/Own-v0'", ["error: environment :x:/Own-v0: "]),
    ],
)
def test_check_names_what_does_not_work(
    train: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check_command, "_SECONDS", 0.02)
    assert call(monkeypatch, "check", "env.test=[]", f"env.train=[{train}]") == 2
    printed = capsys.readouterr().out
    assert all(word in printed for word in words)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["Pendulum-v1", "env.test=[]", "Hopper-v5"],
            "check takes overrides, got Pendulum-v1, Hopper-v5; valid is env.train=[Pendulum-v1,Hopper-v5]\n",
        ),
        (["env.tain=[x]"], "unknown key 'env.tain'; did you mean 'env.train'?"),
    ],
)
def test_check_refuses_what_is_no_override(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "check", *arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_a_warning_of_gymnasium_is_plain() -> None:
    with pytest.warns(match="is out of date") as told, pytest.raises(gym.error.Error):
        gym.make("Pendulum-v0")
    assert str(told[0].message).startswith("\x1b[33mWARN: ")
    assert format_warning(told[0].message).startswith("warning: The environment Pendulum-v0 is out of date. You should ")
    assert format_warning(told[0].message).isascii() and "\x1b" not in format_warning(told[0].message)


@pytest.mark.parametrize(
    ("arguments", "overrides"),
    [
        (["objective=pretrained"], ["experiment=meta_test", "objective=pretrained"]),
        (["light", "seed=1"], ["experiment=meta_test", "objective=pretrained", "objective.name=light", "seed=1"]),
        (["a b/o.safetensors"], ["experiment=meta_test", "objective.path=a b/o.safetensors"]),
        (["run", "-m", "seed=1,2"], ["experiment=meta_test", "objective.path=run/objective.safetensors", "-m", "seed=1,2"]),
        (["light", "--cfg", "job"], ["experiment=meta_test", "objective=pretrained", "objective.name=light", "--cfg", "job"]),
        (
            ["seed=1", "--config-dir", "run", "light"],
            ["experiment=meta_test", "objective=pretrained", "objective.name=light", "seed=1", "--config-dir", "run"],
        ),
        (["it's"], ["experiment=meta_test", "objective=pretrained", r"objective.name='it\'s'"]),
        (["${seed}.safetensors"], ["experiment=meta_test", r"objective.path='\${seed}.safetensors'"]),
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
    [("jinja2", "report"), ("hydra.core", "train"), ("pytorch_lightning", "train")],
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


@pytest.mark.parametrize("command", ["report", "film", "list"])
def test_ctrl_c_ends_every_command_in_one_line(command: str) -> None:
    code = f"import os, sys; from metagenrl_pl.launch import cli; sys.argv = ['metagenrl', '{command}']; "
    code += "cli._run = lambda *_: os.kill(os.getpid(), 2); cli.main()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (130, "Stopped\n")


def test_modules_without_an_extra_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'mine'", name="mine")

    monkeypatch.setattr(cli, "_run", fail)
    with pytest.raises(ModuleNotFoundError, match="mine"):
        call(monkeypatch, "train")


def test_every_command_prints_warnings_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    assert call(monkeypatch, "list") == 0
    assert warnings.formatwarning is format_warning
