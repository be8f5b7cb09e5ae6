"""Checkpoint files that survive a kill or a full disk, and clear messages for damaged ones.

A file ends with a checksum of all that comes before it (`torch.load` ignores this end), and it holds the checksums of its replay's
files, which are written before it. So the file is the manifest of the whole checkpoint: if it is intact, everything can be checked.
"""

import itertools
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.utilities.types import _PATH
from pytorch_lightning.plugins.io import TorchCheckpointIO

from metagenrl_pl.common.files import atomic_write, checksum

PROJECT_KEY = "metagenrl"
"""Top-level key of every checkpoint of this project."""

FORMAT = 4
"""Version of the data below that key and of the optimizers' states."""

_END = b"\nsha256:"  # and 32 bytes
_LENGTH_OF_END = len(_END) + 32


class CheckpointError(ValueError):
    """A checkpoint cannot be resumed. The message is one line."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Saves each checkpoint as a whole or not at all, and loads only this project's checkpoints. For local paths only.

    Lightning's own class writes to the system's temporary folder and moves the file from there, without waiting for the disk. If
    that folder is on another filesystem and the disk is full, the previous checkpoint is lost.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Write a temporary file in the folder of `path`, wait for the disk, and rename it to `path`.

        If saving fails, the previous file is unchanged and the temporary file is removed.

        Args:
            checkpoint: plain containers, numbers and tensors. Other objects cannot be loaded again.
            path: of the file; missing folders are made.
            storage_options: not supported.

        Raises:
            TypeError: `storage_options` is given.
        """
        if storage_options is not None:
            raise TypeError(f"storage_options={storage_options!r}: valid is None, a local file has no options")
        with atomic_write(Path(path)) as file:
            torch.save(checkpoint, file)
            file.flush()
            file.write(_END + checksum(Path(file.name)))

    def load_checkpoint(
        self,
        path: _PATH,
        map_location: Any = "cpu",
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint of this project.

        Args:
            path: of a local file.
            map_location: where tensors go, as in `torch.load`.
            weights_only: ignored. Only plain containers and tensors are loaded, so a file cannot run code.

        Raises:
            CheckpointError: the file does not exist, is damaged (even by a single bit), or is not a checkpoint of this project.
        """
        path = Path(path)
        if not path.is_file():
            nearby = ", ".join(sorted(file.name for file in path.parent.glob("*.ckpt") if file.is_file()))
            hint = f" (in that folder: {nearby})" if nearby else ""
            raise CheckpointError(
                f"ckpt_path={path}: there is no such file or folder; valid is a run folder, or a .ckpt file of a run{hint}"
            )
        has_checksum = _has_checksum(path)
        with path.open("rb") as file:
            try:
                if has_checksum and not is_intact(path):
                    raise zipfile.BadZipFile("the checksum of the file is wrong")
                checkpoint = torch.load(file, map_location=map_location, weights_only=True)
            except torch.OutOfMemoryError:
                raise  # the file is not at fault
            except Exception as error:  # a damaged file may raise anything, also OSError
                raise CheckpointError(_damaged(path, type(error).__name__)) from error
        if not isinstance(checkpoint, dict) or PROJECT_KEY not in checkpoint:
            raise CheckpointError(
                f"ckpt_path={path}: the file was saved by torch but not by a run of this project (it has no key {PROJECT_KEY!r});"
                " valid is a .ckpt file that a run of this project saved"
            )
        content = checkpoint[PROJECT_KEY]
        saved = content.get("format") if isinstance(content, dict) else None
        if saved == FORMAT and not has_checksum:
            raise CheckpointError(_damaged(path, "its end is missing"))
        if saved != FORMAT:
            raise CheckpointError(
                f"ckpt_path={path}: saved by another version of this project (format {saved}; this one reads {FORMAT}); valid is a"
                " checkpoint of this version, or that version of the project"
            )
        return checkpoint


def _damaged(path: Path, reason: str) -> str:
    return (
        f"ckpt_path={path}: the file is truncated, corrupt or not a checkpoint ({reason}); valid is a .ckpt file that a run of this "
        "project saved"
    )


def _has_checksum(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - _LENGTH_OF_END, 0))
        return file.read(len(_END)) == _END


def is_intact(path: Path) -> bool:
    """Whether a checkpoint file is as it was saved. False for one without a checksum."""
    with path.open("rb") as file:
        size = path.stat().st_size - _LENGTH_OF_END
        if size < 0:
            return False
        file.seek(size)
        return file.read() == _END + checksum(path, size)


def replay_folders(checkpoint: Path) -> list[Path]:
    """Folders with a replay of this checkpoint, or of a save at the same env steps that was not finished. The file names its own."""
    return [*checkpoint.parent.glob(f"{checkpoint.stem}.replay"), *checkpoint.parent.glob(f"{checkpoint.stem}.*.replay")]


def unused_replay_folder(checkpoint: Path) -> Path:
    """The name of a folder for a checkpoint's replay that does not exist yet: an older one may belong to the file that is there."""
    names = itertools.chain([f"{checkpoint.stem}.replay"], (f"{checkpoint.stem}.{n}.replay" for n in itertools.count(1)))
    return next(folder for name in names if not (folder := checkpoint.parent / name).exists())


def folder_of(checkpoint: Path) -> Path:
    """The run folder of a checkpoint, which lies in `<run_dir>/checkpoints`. A folder is returned as it is."""
    folder, here = checkpoint.absolute() if checkpoint.is_dir() else checkpoint.absolute().parent.parent, Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def newest_checkpoint(run_dir: Path | str) -> Path | None:
    """The first of `checkpoints_of`; None if there is none."""
    return next(iter(checkpoints_of(run_dir)), None)


def checkpoints_of(run_dir: Path | str) -> list[Path]:
    """The checkpoints from which a run may resume: first one with a replay if there is any, then those that were saved last.

    Only `RunCheckpoint`'s files count, since others have no replay. The replay comes before the time of the file, which copying
    changes.
    """

    def order(path: Path) -> tuple[bool, int, str]:
        return bool(replay_folders(path)), path.stat().st_mtime_ns, path.name

    files = [path for path in (Path(run_dir) / "checkpoints").glob("env_steps_*.ckpt") if path.is_file()]
    return sorted(files, key=order, reverse=True)
