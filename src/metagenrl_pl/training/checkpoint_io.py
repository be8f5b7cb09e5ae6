"""Checkpoint files that survive a kill or a full disk, and clear messages for damaged ones."""

import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.utilities.types import _PATH
from pytorch_lightning.plugins.io import TorchCheckpointIO

from metagenrl_pl.common.files import atomic_write

PROJECT_KEY = "metagenrl"
"""Top-level key of every checkpoint of this project."""

FORMAT = 3
"""Version of the data below that key and of the optimizers' states."""


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
            nearby = ", ".join(sorted(file.name for file in path.parent.glob("*.ckpt") if file.is_file())) or "none"
            raise CheckpointError(
                f"ckpt_path={path}: there is no such file; valid is a .ckpt file of a run, in that folder: {nearby}"
            )
        with path.open("rb") as file:
            try:
                if damaged := zipfile.ZipFile(file).testzip():  # compares checksums, which torch.load does not
                    raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
                file.seek(0)
                checkpoint = torch.load(file, map_location=map_location, weights_only=True)
            except torch.OutOfMemoryError:
                raise  # the file is not at fault
            except Exception as error:  # a damaged file may raise anything, also OSError
                raise CheckpointError(
                    f"ckpt_path={path}: the file is truncated, corrupt or not a checkpoint ({type(error).__name__});"
                    " valid is a .ckpt file that a run of this project saved"
                ) from error
        if not isinstance(checkpoint, dict) or PROJECT_KEY not in checkpoint:
            raise CheckpointError(
                f"ckpt_path={path}: the file was saved by torch but not by a run of this project (it has no key {PROJECT_KEY!r});"
                " valid is a .ckpt file that a run of this project saved"
            )
        if (saved := checkpoint[PROJECT_KEY].get("format")) != FORMAT:
            raise CheckpointError(
                f"ckpt_path={path}: saved by another version of this project (format {saved}; this one reads {FORMAT}); valid is a"
                " checkpoint of this version, or that version of the project"
            )
        return checkpoint


def replay_folder(checkpoint: Path) -> Path:
    """The folder of a checkpoint's replay. It exists if the replay was saved."""
    return checkpoint.with_suffix(".replay")


def folder_of(checkpoint: Path) -> Path:
    """The run folder of a checkpoint, which lies in `<run_dir>/checkpoints`. A folder is returned as it is."""
    folder, here = checkpoint.absolute() if checkpoint.is_dir() else checkpoint.absolute().parent.parent, Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def newest_checkpoint(run_dir: Path | str) -> Path | None:
    """The checkpoint from which a run resumes: one with a replay if there is any, otherwise the one that was saved last.

    None if none.

    Only `RunCheckpoint`'s files count, since others have no replay. The replay comes before the time of the file, which copying
    changes.
    """

    def order(path: Path) -> tuple[bool, int, str]:
        return replay_folder(path).is_dir(), path.stat().st_mtime_ns, path.name

    files = [path for path in (Path(run_dir) / "checkpoints").glob("env_steps_*.ckpt") if path.is_file()]
    return max(files, key=order, default=None)
