"""The temporary folder of a command that runs for long."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from edgekit.storage.files import try_lock

LOCK_NAME = ".in-use"


@contextlib.contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """A new temporary folder, which is removed at the end.

    A killed process cannot remove its own, so folders of the same prefix that no process holds are removed before.

    Args:
        prefix: Begin of the folder's name.
    """
    _remove_abandoned(prefix)
    with TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        handle = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            with contextlib.suppress(OSError):  # a file system without locks: the folder never counts as abandoned
                if try_lock(handle):
                    os.rename(folder / "lock", folder / LOCK_NAME)  # others see it locked only
            yield folder
        finally:
            os.close(handle)


def _remove_abandoned(prefix: str) -> None:
    for lock in Path(gettempdir()).glob(f"{prefix}*/{LOCK_NAME}"):
        with contextlib.suppress(OSError):  # it went meanwhile, or belongs to another user
            if lock.parent.lstat().st_uid != _user():
                continue
            handle = os.open(lock, os.O_RDWR)
            try:
                if try_lock(handle):
                    shutil.rmtree(lock.parent, ignore_errors=True)
            finally:
                os.close(handle)


def _user() -> int:
    """The id of this user, as in the status of files; 0 on Windows."""
    return os.getuid() if hasattr(os, "getuid") else 0
