"""Signals that stop a run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metagenrl_pl.common.exit_codes import INTERRUPTED
from metagenrl_pl.common.signals import (
    LAUNCHER,
    STOP_SIGNALS,
    end_at_once,
    ignore_in_command,
    install_handler,
    restore_handlers,
    sparing_programs,
    stoppable_command,
)

ROOT = Path(__file__).parents[2]

SWALLOWS = """
import time
from metagenrl_pl.common.signals import stoppable_command
with stoppable_command():
    print("ready", flush=True)
    while True:
        try:
            time.sleep(1)
        except BaseException:  # as some libraries do while they are imported
            pass
"""


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_command_is_ended_by_each_whatever_its_libraries_catch(number: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SWALLOWS],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # under `nohup` SIGHUP is ignored, and stays so
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (INTERRUPTED, "", "Stopped\n")


def test_once_it_has_begun_a_run_is_interrupted() -> None:
    former = install_handler(end_at_once(lambda: ("", 1), is_over=lambda: True))
    try:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
    finally:
        restore_handlers(former)


def test_a_launched_process_ends_with_the_one_that_launched_it() -> None:
    """Here that one has ended before. The run would wait for it, in the rendezvous of processes for a week."""
    launcher = subprocess.Popen([sys.executable, "-c", ""])
    launcher.wait()
    environment = {**os.environ, LAUNCHER: str(launcher.pid)}
    process = subprocess.run(
        [sys.executable, str(ROOT / "train.py")], env=environment, capture_output=True, text=True, timeout=60
    )
    assert process.returncode == INTERRUPTED and not process.stderr


def test_programs_can_be_spared_from_signals() -> None:
    came: list[int] = []
    former = install_handler(lambda number, frame: came.append(number))
    try:
        with sparing_programs():
            program = subprocess.Popen(
                [sys.executable, "-c", "import time; print(flush=True); time.sleep(1)"], stdout=subprocess.PIPE
            )
            with program:
                assert program.stdout is not None and program.stdout.readline()
                program.send_signal(signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)
            assert program.returncode == 0
        assert came == [signal.SIGTERM]
    finally:
        restore_handlers(former)


def test_a_command_that_ends_is_not_ended_otherwise() -> None:
    with pytest.raises(SystemExit), stoppable_command():
        sys.exit(3)
    for number in STOP_SIGNALS:
        os.kill(os.getpid(), number)


def test_outside_of_a_command_nothing_is_ignored() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    ignore_in_command()
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_a_closed_terminal_does_not_stop_a_run_under_nohup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    former = install_handler(lambda *_: None)
    assert signal.SIGHUP not in former and signal.SIGINT in former
    restore_handlers(former)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux only")
def test_ctrl_c_during_the_imports_is_one_line() -> None:
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py")], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    status = Path(f"/proc/{process.pid}/status")
    while not int(status.read_text().partition("SigCgt:")[2].split()[0], 16) >> (signal.SIGTERM - 1) & 1:  # Linux: handled so far
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (130, "", "Stopped\n")
