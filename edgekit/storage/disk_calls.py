"""The system calls by which `FolderDisk` changes a file system: a test may stop a process before each of them."""

from __future__ import annotations

import os
from pathlib import Path


class DiskCalls:
    """Each method is one call of the system under its usual name, and raises OSError as that does."""

    def open(self, path: Path, flags: int) -> int:
        """A descriptor; a file that is created here has mode 0600."""
        return os.open(path, flags, 0o600)

    def close(self, fd: int) -> None:
        """End a descriptor."""
        os.close(fd)

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        """Write, and return how many bytes were."""
        return os.pwrite(fd, data, offset)

    def truncate(self, fd: int, size: int) -> None:
        """Set the size."""
        os.ftruncate(fd, size)

    def reserve(self, fd: int, size: int) -> None:
        """Reserve space for the first `size` bytes; nothing where the system cannot."""
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, size)

    def fsync(self, fd: int) -> None:
        """Make a file's bytes, or a folder's names, survive a power cut."""
        os.fsync(fd)

    def mkdir(self, path: Path) -> None:
        """Make a folder, mode 0700."""
        path.mkdir(mode=0o700)

    def replace(self, source: Path, target: Path) -> None:
        """Rename over whatever is there."""
        os.replace(source, target)

    def unlink(self, path: Path) -> None:
        """Remove a file's name."""
        path.unlink()

    def rmdir(self, path: Path) -> None:
        """Remove an empty folder."""
        path.rmdir()
