"""The system calls with which `FolderDisk` changes a file system; tests of power cuts stop before each of them."""

from __future__ import annotations

import os
from pathlib import Path


class DiskCalls:
    """Each method is the system call of the same name and raises OSError like it."""

    def open(self, path: Path, flags: int) -> int:
        """Open a file and return its descriptor; a new file gets mode 0600."""
        return os.open(path, flags, 0o600)

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        os.close(fd)

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        """Write at `offset`; returns the number of bytes written."""
        return os.pwrite(fd, data, offset)

    def truncate(self, fd: int, size: int) -> None:
        """Set the size of a file in bytes."""
        os.ftruncate(fd, size)

    def reserve(self, fd: int, size: int) -> None:
        """Reserve space for the first `size` bytes; does nothing if the system cannot."""
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, size)

    def fsync(self, fd: int) -> None:
        """Make a file's bytes, or a folder's names, survive a power cut."""
        os.fsync(fd)

    def mkdir(self, path: Path) -> None:
        """Make a folder with mode 0700."""
        path.mkdir(mode=0o700)

    def replace(self, source: Path, target: Path) -> None:
        """Rename a file; replaces an existing target."""
        os.replace(source, target)

    def unlink(self, path: Path) -> None:
        """Remove a file's name."""
        path.unlink()

    def rmdir(self, path: Path) -> None:
        """Remove an empty folder."""
        path.rmdir()
