"""Files that survive a kill: replaced as a whole, or appended to line by line.

A line counts once its newline is on disk. A kill during a write leaves at most one line without a newline. Readers skip that
line, and the next append removes it.
"""

import csv
import errno
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from metagenrl_pl.common.messages import one_line

T = TypeVar("T", int, float)

_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)


def path_argument(text: str) -> Path:
    """A path on a command line. `~` is the home folder, which shells leave as it is in `--out=~/folder`.

    Raises:
        ValueError: if `~` names a user that does not exist.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def check_can_write(path: Path, option: str, is_folder: bool = False) -> None:
    """Refuse a place for results before the work, not after it.

    Args:
        path: of a file, or of a folder, which need not exist.
        option: of the command line, for the message.
        is_folder: which of both.

    Raises:
        ValueError: if it is the other of both, or its folder cannot be written.
    """
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    folder = existing.parent if existing == path.absolute() and not is_folder else existing
    if (path.is_dir() and not is_folder) or not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise ValueError(f"{option} {path}: cannot be written; valid is a {'folder' if is_folder else 'file in a folder'}")


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Replace a local file as a whole: afterwards `path` has either its old content or all of the new one.

    The bytes go to a temporary file in the same folder, which is made if missing. Once they are on the disk, that file replaces
    `path`. If the body raises, the temporary file is removed and `path` is unchanged. One process at a time may write a path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _fsync_folder(path.parent)


_OF_PYTORCH = ("inline_container.cc", "PytorchStreamWriter")  # in its errors when a checkpoint cannot be written


def is_unwritable(error: Exception, folder: Path) -> bool:
    """Whether an error says that files cannot be written, whichever library raised it: a full or read-only disk, a lost folder.

    Args:
        error: that was raised.
        folder: in which files are written. An error that names another file is not meant.
    """
    if isinstance(error, OSError):
        name = error.filename
        return error.errno in _UNWRITABLE or (
            isinstance(name, str | Path) and Path(name).resolve().is_relative_to(folder.resolve())
        )
    text = str(error)  # PyTorch's and safetensors' own errors
    return any(os.strerror(number) in text for number in _UNWRITABLE) or any(name in text for name in _OF_PYTORCH)


def why_unwritable(error: Exception) -> str:
    """The reason in one line, for an error that `is_unwritable`."""
    text = one_line(error)
    if any(os.strerror(number) in text for number in _UNWRITABLE) or not any(name in text for name in _OF_PYTORCH):
        return text
    return "a checkpoint could not be written whole; the disk may be full, or the size of files limited"


def checksum(path: Path, num_bytes: int | None = None) -> bytes:
    """SHA-256 of a file, or of its first bytes."""
    digest, left = hashlib.sha256(), path.stat().st_size if num_bytes is None else num_bytes
    with path.open("rb") as file:
        while left > 0 and (block := file.read(min(left, 2**20))):
            digest.update(block)
            left -= len(block)
    return digest.digest()


class ForeignFileError(ValueError):
    """A file that is not what this project writes under its name. The message names the file and the place in it."""


def read_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Header and rows (column -> text) of a CSV file. A last line without a newline is skipped.

    Raises:
        ForeignFileError: if it is not text, names a column twice, or a line has more or fewer cells than the header.
    """
    content = path.read_bytes()
    try:
        lines = list(csv.reader(io.StringIO(content[: content.rfind(b"\n") + 1].decode(), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ForeignFileError(f"{path}: not a table of comma-separated text ({error})") from error
    columns, *rows = lines or [[]]
    twice = next((column for column in columns if columns.count(column) > 1), None)
    if twice is not None:
        raise ForeignFileError(f"{path}: two columns are called {twice!r}")
    for number, row in enumerate(rows, 2):
        if len(row) != len(columns):
            raise ForeignFileError(f"{path}, row {number}: {len(row)} cells; valid is {len(columns)}, as in its header")
    return columns, [dict(zip(columns, row, strict=True)) for row in rows]


def read_cell(path: Path, number: int, row: Mapping[str, str], column: str, kind: Callable[[str], T]) -> T:
    """A cell as `int`, a whole number from 0, or as `float`.

    Args:
        path: of the file, for the message.
        number: of the row, counted from 1 without the header.
        row: column -> text.
        column: of the cell.
        kind: `int` or `float`.

    Raises:
        ForeignFileError: if the cell is something else.
    """
    try:
        value = kind(row[column])
        if kind is int and value < 0:
            raise ValueError
        return value
    except ValueError as error:
        valid = "a whole number from 0" if kind is int else "a number"
        raise ForeignFileError(f"{path}, row {number + 1}: {column} is {row[column][:80]!r}; valid is {valid}") from error


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a CSV file as a whole (`atomic_write`). A column that a row lacks is an empty cell."""
    with atomic_write(path) as file:
        file.write(_csv_bytes(columns, rows, header=True))


def append_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows to a CSV file whose header is `columns`, and wait until they are on the disk.

    A half-written last line is removed first. The file and its folder are made if missing. A column that a row lacks is an empty
    cell.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        # Read the last byte only: if it is a newline (or the file is empty), there is nothing to remove.
        whole = file.seek(0, os.SEEK_END)
        file.seek(max(whole - 1, 0))
        if file.read() not in (b"", b"\n"):
            file.seek(0)
            whole = file.read().rfind(b"\n") + 1
            file.truncate(whole)
        file.write(_csv_bytes(columns, rows, header=whole == 0))
        file.flush()
        os.fsync(file.fileno())
    if whole == 0:
        _fsync_folder(path.parent)


def _csv_bytes(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], header: bool) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _fsync_folder(folder: Path) -> None:
    """Write the folder's entries to the disk, or a power cut may lose a new file's name. Windows cannot open a folder."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
