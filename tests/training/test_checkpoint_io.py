"""Checkpoints: whole or not at all, and a clear word about a file that is none."""

import io
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from metagenrl_pl.training.checkpoint_io import FORMAT, AtomicCheckpointIO

CHECKPOINT = {"metagenrl": {"format": FORMAT, "env_steps": 7}, "state_dict": {"w": torch.arange(1000.0)}}


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _error(path: Path) -> str:
    with pytest.raises(ValueError) as caught:
        AtomicCheckpointIO().load_checkpoint(path)
    message = str(caught.value)
    assert f"ckpt_path={path}" in message and "valid is" in message
    assert "\n" not in message
    return message


def test_comes_back_as_it_went(tmp_path: Path) -> None:
    path = tmp_path / "new_folder" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(CHECKPOINT, str(path))
    loaded = AtomicCheckpointIO().load_checkpoint(str(path))
    assert loaded["metagenrl"]["env_steps"] == 7
    assert torch.equal(loaded["state_dict"]["w"], torch.arange(1000.0))
    assert _names(path.parent) == ["last.ckpt"]


def test_a_failed_save_leaves_the_previous_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(CHECKPOINT, path)
    before = path.read_bytes()
    with pytest.raises((AttributeError, TypeError), match=r"pickle|local"):
        AtomicCheckpointIO().save_checkpoint({"metagenrl": lambda: None}, path)  # cannot be pickled
    assert path.read_bytes() == before
    assert _names(tmp_path) == ["last.ckpt"]


def test_a_full_disk_leaves_the_previous_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(CHECKPOINT, path)
    before = path.read_bytes()

    def save(checkpoint: Any, file: io.BufferedWriter) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(OSError, match="No space"):
        AtomicCheckpointIO().save_checkpoint(CHECKPOINT, path)
    assert path.read_bytes() == before
    assert _names(tmp_path) == ["last.ckpt"]


def test_the_file_is_on_the_disk_before_it_takes_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("replace"), replace(*paths)))
    AtomicCheckpointIO().save_checkpoint(CHECKPOINT, tmp_path / "last.ckpt")
    assert calls == ["fsync", "replace", "fsync"]  # the file, the name, the folder


def test_storage_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="storage_options"):
        AtomicCheckpointIO().save_checkpoint(CHECKPOINT, tmp_path / "last.ckpt", storage_options={"a": 1})


def test_a_missing_file_names_those_that_are_there(tmp_path: Path) -> None:
    assert "no such file" in _error(tmp_path / "nowhere" / "last.ckpt")
    AtomicCheckpointIO().save_checkpoint(CHECKPOINT, tmp_path / "last.ckpt")
    assert "last.ckpt" in _error(tmp_path / "lost.ckpt").split("in that folder:")[1]


@pytest.mark.parametrize("kept", [0, 1, 100, 2000, -1])
def test_a_truncated_file(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(CHECKPOINT, path)
    path.write_bytes(path.read_bytes()[:kept])
    assert "truncated, corrupt" in _error(path)


def test_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(CHECKPOINT, path)
    content = bytearray(path.read_bytes())
    content[content.index(struct.pack("<ff", 500, 501))] ^= 1  # one bit of one weight
    path.write_bytes(content)
    assert "truncated, corrupt" in _error(path)


@pytest.mark.parametrize("content", [b"seed: 1\n", b"environment,method\n"])
def test_another_kind_of_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    assert "corrupt or not a checkpoint" in _error(path)


@pytest.mark.parametrize("saved", [None, 1, FORMAT + 1])
def test_another_versions_file(saved: int | None, tmp_path: Path) -> None:
    torch.save({"metagenrl": {} if saved is None else {"format": saved}}, tmp_path / "other.ckpt")
    assert f"saved by another version of this project (format {saved}; this one reads {FORMAT})" in _error(
        tmp_path / "other.ckpt"
    )


@pytest.mark.parametrize("content", [{"state_dict": {}}, torch.zeros(3), ["metagenrl"]])
def test_a_torch_file_of_another_project(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "other.ckpt"
    torch.save(content, path)
    assert "has no key 'metagenrl'" in _error(path)


class _RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code ran",)


def test_code_in_a_file_is_never_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "evil.ckpt"
    torch.save({"metagenrl": _RunsCode()}, path)
    with pytest.raises(ValueError, match="UnpicklingError"):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=False)
    assert "code ran" not in capsys.readouterr().out
    torch.load(path, weights_only=False)  # it would have
    assert "code ran" in capsys.readouterr().out


class _Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self.loaded: Any = None

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        return (self.weight - batch).square().sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["metagenrl"] = {"format": FORMAT, "env_steps": 3}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.loaded = checkpoint["metagenrl"]


def test_lightning_saves_and_resumes_with_it(tmp_path: Path) -> None:
    def fit(max_steps: int, ckpt_path: Path | None) -> tuple[Trainer, _Module]:
        module = _Module()
        trainer = Trainer(
            max_steps=max_steps,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            plugins=[AtomicCheckpointIO()],
            default_root_dir=tmp_path,
        )
        trainer.fit(module, DataLoader(torch.ones(4, 2), batch_size=1), ckpt_path=ckpt_path)
        return trainer, module

    trainer, first = fit(2, None)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    trainer, second = fit(3, tmp_path / "last.ckpt")
    assert second.loaded["env_steps"] == 3
    assert trainer.global_step == 3
    assert first.weight[0].item() == pytest.approx(1 - 0.8**2)
    assert second.weight[0].item() == pytest.approx(1 - 0.8**3)  # one step of lr 0.1 on (w - 1)^2 keeps 0.8 of the gap
    with pytest.raises(ValueError, match="ckpt_path="):
        fit(3, tmp_path / "lost.ckpt")
