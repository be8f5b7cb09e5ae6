"""Runs of `train.py` side by side, each in a process of its own. They may be stopped, and go on later."""

import argparse
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import RLock
from types import FrameType
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metagenrl_pl.common.commands import hydra_override
from metagenrl_pl.common.locks import lock_folder
from metagenrl_pl.common.messages import format_value
from metagenrl_pl.config.dotted_keys import flatten_settings
from metagenrl_pl.config.run_config import RunConfig
from metagenrl_pl.config.schema import validate
from metagenrl_pl.launch.checks import prepare_config
from metagenrl_pl.launch.command_line import composition_error
from metagenrl_pl.launch.entry import make_importable
from metagenrl_pl.training.checkpoint_io import newest_checkpoint

ROOT = Path(__file__).parents[1]


class PlannedRun(NamedTuple):
    """A run of `train.py`.

    Args:
        folder: of the run.
        overrides: of the default run.
        settings: its configuration, from `compose_run`.
        without: further overrides, which leave out methods that other runs test.
    """

    folder: Path
    overrides: list[str]
    settings: Any = {}
    without: list[str] = []

    @property
    def note(self) -> Path:
        """The file that holds its settings."""
        return note_of(self.folder)

    @property
    def log(self) -> Path:
        """The file that holds its output."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def is_begun(self) -> bool:
        """Whether there is something to go on from, or nothing more to do."""
        return is_begun(self.folder)


def is_begun(folder: Path) -> bool:
    """Whether a run has a checkpoint to go on from, or has ended."""
    return (folder / "ended").exists() or newest_checkpoint(folder) is not None


_INSTEAD = {"seed": "--seeds", "run_dir": "--out", "ckpt_path": "the same command again"}


def refuse_overrides(overrides: Sequence[str]) -> None:
    """Refuse overrides of keys that a command sets itself, and that would make its runs alike or put them elsewhere.

    Raises:
        ValueError: names the override and what is valid.
    """
    for override in overrides:
        if valid := _INSTEAD.get(override.lstrip("+~").partition("=")[0]):
            raise ValueError(f"{override} is set by this command; valid is {valid}")


def positive(text: str) -> int:
    """A command line's number from 1 on."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


class Distinct(argparse.Action):
    """Of a command line's numbers that must differ: two equal ones would be two runs in one folder."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        """Keep them."""
        if len(set(values)) < len(values):
            raise argparse.ArgumentError(self, "valid are numbers that differ")
        setattr(namespace, self.dest, values)


def meta_test_in(config: Any) -> Any:
    """A configuration's meta-test.

    Raises:
        ValueError: if there is none.
    """
    if (test := config.callbacks.get("meta_test")) is None:
        raise ValueError("callbacks.meta_test is null; valid is a meta-test, since this command compares its results")
    if test.seeds is None:
        raise ValueError("callbacks.meta_test.seeds is null; valid is a list of seeds, such as [0,1,2]")
    return test


def compose_run(overrides: Sequence[str]) -> DictConfig:
    """The configuration that `train.py` has with these overrides: checked, without references.

    Its run folder is always called the same, since settings are compared without the folder of their run.

    Raises:
        ValueError: if `train.py` would refuse them.
    """
    make_importable(ROOT)  # the configuration names `callbacks`
    try:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = compose("config", ["run_dir=run", *overrides])
        return validate(prepare_config(config, []), RunConfig)  # the run itself warns of overrides without an effect
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(composition_error(error, ROOT / "conf", RunConfig)) from error


def run_all(runs: Sequence[PlannedRun], out: Path, num_jobs: int) -> None:
    """Run what is planned, some of it side by side. On SIGTERM and SIGINT the running ones save and end.

    Args:
        runs: in folders in `out`.
        out: where no other command may be at work.
        num_jobs: at a time.

    Raises:
        BlockingIOError: if another command is at work in `out`, or a run is under way in a folder.
        ValueError: if a folder holds a run of other settings.
        SystemExit: with a line that names the logs, if some did not end.
    """
    with lock_folder(out):
        check_folders(runs)
        clear_folders(runs)
        runner = Runner()
        before = {number: signal.signal(number, runner.stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            with ThreadPoolExecutor(num_jobs) as pool:
                codes = list(pool.map(runner.run, runs))
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    if failed := [str(plan.log) for plan, code in zip(runs, codes, strict=True) if code]:
        sys.exit(f"error: {len(failed)} of {len(runs)} runs did not end; see {', '.join(failed)}")


def check_folders(runs: Sequence[PlannedRun]) -> None:
    """Refuse to go on with runs of other settings.

    Raises:
        ValueError: if a folder holds a run that was made with other ones.
    """
    for plan in runs:
        if plan.is_begun:
            check_note(plan.folder, plan.settings)


def clear_folders(runs: Sequence[PlannedRun]) -> None:
    """Remove what runs left that were stopped before their first checkpoint.

    Raises:
        BlockingIOError: if a run is under way in a folder. It goes on when the command that began it is killed.
    """
    for plan in runs:
        if not (plan.folder / "ended").exists():
            with lock_folder(plan.folder):
                if not plan.is_begun:
                    shutil.rmtree(plan.folder, ignore_errors=True)


def note_of(folder: Path) -> Path:
    """The file beside a folder that holds the settings of its run."""
    return folder.with_name(f"{folder.name}.settings.yaml")


def check_note(folder: Path, settings: Any) -> None:
    """Refuse to go on with results of other settings.

    Args:
        folder: of the results.
        settings: that they have now.

    Raises:
        ValueError: if they were made with other ones.
    """
    note = note_of(folder)
    configs = (OmegaConf.load(note) if note.exists() else OmegaConf.create(), OmegaConf.create(settings))
    each: list[Any] = [OmegaConf.to_container(config) for config in configs]
    before, now = map(flatten_settings, each)
    different = (key for key in before | now if before.get(key) != now.get(key))
    # Notes had references, `${env.test}`, before they had values. What they refer to is compared under its own key.
    if differing := sorted(key for key in different if "${" not in str(before.get(key))):
        key = differing[0]
        change = f"{key}: {format_value(before.get(key))}, not {format_value(now.get(key))}"
        raise ValueError(f"{folder} holds a run of other settings ({change}); valid is another --out, or to remove it")


class Runner:
    """Runs what is planned, each in a process of its own. After `stop` the running ones save and end, and no other begins."""

    def __init__(self) -> None:
        self._is_stopped = False
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = RLock()  # a second signal may come while the first is handled, in the same thread

    def stop(self, signum: int, frame: FrameType | None) -> None:
        """A signal handler, in a thread that runs nothing itself."""
        with self._lock:
            self._is_stopped = True
            for process in self._running:
                process.terminate()

    def run(self, plan: PlannedRun) -> int:
        """Start a run, go on with it, or leave it if it has ended. Returns its exit code."""
        folder, ended = plan.folder, plan.folder / "ended"
        if ended.exists():
            return 0
        with self._lock:
            if self._is_stopped:
                return 1
            process = self._start(plan)
            self._running.add(process)
        code = process.wait()
        with self._lock:
            self._running.discard(process)
        if code == 0:
            ended.touch()
        print(f"{folder}: exit code {code}", flush=True)
        return code

    def _start(self, plan: PlannedRun) -> "subprocess.Popen[bytes]":
        folder = plan.folder
        if newest := newest_checkpoint(folder):
            arguments = [hydra_override("ckpt_path", str(newest))]
        else:
            arguments = [hydra_override("run_dir", str(folder)), *plan.overrides, *plan.without]
            folder.parent.mkdir(parents=True, exist_ok=True)
            plan.note.write_text(OmegaConf.to_yaml(plan.settings))
        paths = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
        print(f"{folder}: {' '.join(arguments)}", flush=True)
        with plan.log.open("a") as log:
            return subprocess.Popen(
                [sys.executable, str(ROOT / "train.py"), *arguments],
                env={**os.environ, "PYTHONPATH": paths},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C reaches this command alone, which stops the runs once
            )
