"""File locks and durable writes, which differ between Linux, macOS and Windows."""

from __future__ import annotations

import errno
import os
from pathlib import Path

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    import msvcrt

    def _lock(handle: int) -> None:
        os.lseek(handle, 0, os.SEEK_SET)  # locks bytes from the handle's position; they need not exist
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
else:

    def _lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


_HELD_BY_ANOTHER = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)


def try_lock(handle: int) -> bool:
    """Try to lock an open file exclusively; the lock ends when the handle is closed or the process ends.

    Returns:
        False if another handle holds the lock.

    Raises:
        OSError: the file system does not support locks.
    """
    try:
        _lock(handle)
    except OSError as error:
        if error.errno in _HELD_BY_ANOTHER:
            return False
        raise
    return True


def replace_file(path: Path, data: bytes) -> None:
    """Write a file whole: it keeps its old content until all of the new is on the disk, also on a full disk.

    What is no regular file, such as /dev/stdout, is written as it is.

    Raises:
        OSError: it cannot be written.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    path = path.resolve()  # a link stays a link
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        sync_file(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Make the bytes of a file survive a power cut."""
    # Windows can sync only a file that is open for writing; other systems can also sync a read-only file.
    _sync(path, os.O_RDWR if hasattr(os, "O_BINARY") else os.O_RDONLY)


def sync_folder(path: Path) -> None:
    """Make the names in a folder survive a power cut. On Windows this does nothing: it cannot open folders."""
    if hasattr(os, "O_DIRECTORY"):
        _sync(path, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
