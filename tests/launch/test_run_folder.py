"""One run in a folder at a time, and what counts as a run."""

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from metagenrl_pl.config.schema import ConfigError
from metagenrl_pl.launch.run_folder import has_run, open_run_folder, process_numbers

HOLD = """
import sys, time
from omegaconf import OmegaConf
from metagenrl_pl.launch.run_folder import open_run_folder
with open_run_folder(OmegaConf.create({"run_dir": sys.argv[1], "ckpt_path": None}), "cpu x 1"):
    print("locked", flush=True)
    time.sleep(60)
"""


def config(folder: Path, ckpt_path: str | None = None) -> OmegaConf:
    return OmegaConf.create({"run_dir": str(folder), "ckpt_path": ckpt_path, "meta": {"learning_rate": 1}})


def test_a_second_run_in_a_folder_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
        for ckpt_path in (None, "a checkpoint there"):
            with pytest.raises(ConfigError) as caught, open_run_folder(config(tmp_path, ckpt_path), "cpu x 1"):
                pass
            assert str(caught.value).startswith(f"run_dir={tmp_path}: process {holder.pid} on ")
            assert str(caught.value).endswith(" runs there now; valid is a new folder, or to wait for its end")
    finally:
        holder.kill()
        holder.wait()
    with open_run_folder(config(tmp_path), "cpu x 1"), pytest.raises(ConfigError), open_run_folder(config(tmp_path), "cpu x 1"):
        pass
    with open_run_folder(config(tmp_path), "cpu x 1"):
        pass  # the lock can be taken again


def test_a_folder_with_a_configuration_alone_is_begun_again(tmp_path: Path) -> None:
    for _ in range(2):
        with open_run_folder(config(tmp_path), "cpu x 1"):
            assert not has_run(tmp_path)
    for name in ("metrics.csv", "meta_test.csv", "objective.safetensors", "checkpoints/env_steps_000000010.ckpt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        with (
            pytest.raises(ConfigError, match="already has a run; valid is a new folder"),
            open_run_folder(config(tmp_path), "cpu"),
        ):
            pass
        path.unlink()


@pytest.mark.parametrize(
    ("variables", "numbers"),
    [
        ({}, ["0"]),
        ({"LOCAL_RANK": "1"}, ["1"]),
        ({"RANK": "5", "LOCAL_RANK": "1", "NODE_RANK": "1", "SLURM_PROCID": "0"}, ["5"]),
        ({"NODE_RANK": "1", "LOCAL_RANK": "1"}, ["1", "1", "0"]),
        ({"SLURM_PROCID": "3"}, ["0", "0", "3"]),
    ],
)
def test_every_process_of_a_run_has_numbers_of_its_own(
    variables: dict[str, str], numbers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert process_numbers() == numbers
