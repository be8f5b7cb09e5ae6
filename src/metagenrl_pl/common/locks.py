"""A folder's lock: one process at a time."""

import warnings
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def lock_folder(folder: Path) -> IO[str]:
    """Lock a folder, which is made if missing, until its `.lock` is closed or this process ends in whatever way.

    Returns:
        The file `.lock`. It may name the process that holds the lock.

    Raises:
        BlockingIOError: if another process has locked it. It is named.
        OSError: if the folder cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / ".lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        owner = file.read().strip() or "another process"
        file.close()
        raise BlockingIOError(f"{folder}: {owner} runs there now; valid is a new folder, or to wait for its end") from error
    except (OSError, AttributeError):  # a filesystem or a system without it
        warnings.warn(f"{folder}: its filesystem has no locks, so nothing prevents a second run there", stacklevel=2)
    return file
