"""What systems do in different ways with files: locks, and making bytes and names durable."""

from __future__ import annotations

import errno
import os
from pathlib import Path

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    import msvcrt

    def _lock(handle: int) -> None:
        os.lseek(handle, 0, os.SEEK_SET)  # it locks bytes from where the handle stands; they need not exist
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
else:

    def _lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


_HELD_BY_ANOTHER = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)


def try_lock(handle: int) -> bool:
    """Lock an open file for this process alone; the lock ends when the handle is closed, or with the process.

    Returns:
        False where another handle has the lock.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        _lock(handle)
    except OSError as error:
        if error.errno in _HELD_BY_ANOTHER:
            return False
        raise
    return True


def sync_file(path: Path) -> None:
    """Make the bytes of a file survive a power cut."""
    # Windows flushes only what may be written; elsewhere a file that may only be read can be flushed too.
    _sync(path, os.O_RDWR if hasattr(os, "O_BINARY") else os.O_RDONLY)


def sync_folder(path: Path) -> None:
    """Make the names in a folder survive a power cut. Windows does that by itself and opens no folders."""
    if hasattr(os, "O_DIRECTORY"):
        _sync(path, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
