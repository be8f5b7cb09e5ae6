"""Runs side by side: what a command finds in their folders, and how it starts them."""

import signal
import subprocess
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import side_by_side
from metagenrl_pl.common.locks import lock_folder
from metagenrl_pl.launch.run_folder import open_run_folder
from side_by_side import ROOT, PlannedRun, Runner, check_note, compose_run, note_of, run_all


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines of runs, all of which fail at once."""
    commands: list[list[str]] = []

    class Process:
        def __init__(self, command: list[str], **options: Any) -> None:
            commands.append(command[2:])

        def wait(self) -> int:
            return 1

    monkeypatch.setattr(side_by_side, "subprocess", SimpleNamespace(Popen=Process, STDOUT=subprocess.STDOUT))
    return commands


def test_a_run_that_is_under_way_keeps_its_folder(tmp_path: Path, started: list[list[str]]) -> None:
    """The command that began it was killed, and it has no checkpoint yet."""
    plans = [PlannedRun(tmp_path / name, []) for name in ("new", "run")]
    config = OmegaConf.create({"run_dir": str(plans[1].folder), "ckpt_path": None})
    with open_run_folder(config, "cpu x 1"):
        with pytest.raises(BlockingIOError, match=f"^{plans[1].folder}: process .* runs there now; valid is a new folder"):
            run_all(plans, tmp_path, 1)
        assert (plans[1].folder / "config.yaml").exists() and started == []


def test_folders_may_have_any_name(tmp_path: Path, started: list[list[str]]) -> None:
    out = tmp_path / "runs, a=b ${c} 'd'"
    plans = [PlannedRun(out / name, []) for name in ("new", "saved")]
    checkpoint = plans[1].folder / "checkpoints" / "env_steps_000000020.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    with pytest.raises(SystemExit, match="2 of 2 runs did not end"):
        run_all(plans, out, 1)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        new, saved = (compose("config", command) for command in started)
    assert new.run_dir == str(plans[0].folder) and saved.ckpt_path == str(checkpoint)


def test_what_a_run_left_before_its_first_checkpoint_is_removed(tmp_path: Path, started: list[list[str]]) -> None:
    plans = [PlannedRun(tmp_path / name, []) for name in ("stopped", "saved")]
    for plan in plans:
        (plan.folder / "checkpoints").mkdir(parents=True)
        (plan.folder / "config.yaml").touch()
    checkpoint = plans[1].folder / "checkpoints" / "env_steps_000000020.ckpt"
    checkpoint.touch()
    with pytest.raises(SystemExit, match="2 of 2 runs did not end"):
        run_all(plans, tmp_path, 1)
    assert not plans[0].folder.exists() and checkpoint.exists()
    assert started == [[f"run_dir={plans[0].folder}"], [f"ckpt_path={checkpoint}"]]


def test_two_commands_do_not_share_a_folder(tmp_path: Path) -> None:
    with lock_folder(tmp_path), pytest.raises(BlockingIOError, match=f"{tmp_path}: another process runs there now"):
        run_all([], tmp_path, 1)
    run_all([], tmp_path, 1)


def test_a_second_signal_may_come_while_the_first_is_handled(tmp_path: Path) -> None:
    runner, signals = Runner(), [signal.SIGINT, signal.SIGTERM]

    class Process:
        def terminate(self) -> None:
            if signals:
                runner.stop(signals.pop(), None)

    runner._running.add(Process())  # type: ignore[arg-type]
    thread = Thread(target=runner.stop, args=(signal.SIGTERM, None), daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive() and signals == []
    assert runner.run(PlannedRun(tmp_path / "next", [])) == 1


def test_a_configuration_is_that_of_train_py() -> None:
    one, several = (compose_run([f"env.test={test}", "env_steps=6e3"]) for test in ("Pendulum-v1", "[Pendulum-v1]"))
    assert one == several and type(one.env_steps) is int and one.callbacks.meta_test.environments == ["Pendulum-v1"]
    with pytest.raises(ValueError, match=r"^unknown key 'agent.num_window'; did you mean 'agent.num_windows'\?$"):
        compose_run(["agent.num_window=4"])
    with pytest.raises(ValueError, match=r"^callbacks.meta_test.seeds\[0\]: expected int, got 'x'$"):
        compose_run(["callbacks.meta_test.seeds=[x]"])


def test_a_note_with_references_is_one_of_the_same_settings(tmp_path: Path) -> None:
    note_of(tmp_path).write_text("env: {test: [A]}\ntest: {environments: '${env.test}', number: 1}\n")
    settings = {"env": {"test": ["A"]}, "test": {"environments": ["A"], "number": 1}}
    check_note(tmp_path, settings)
    with pytest.raises(ValueError, match=r"holds a run of other settings \(env.test: \['A'\], not \['B'\]\)"):
        check_note(tmp_path, {"env": {"test": ["B"]}, "test": {"environments": ["B"], "number": 1}})
