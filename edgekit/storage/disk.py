"""Disk: all writes to a device's folder go through here; and a disk in memory for simulated devices.

A file that was written, renamed or synced through a Disk survives a power cut; other changes may be lost.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from edgekit.errors import DiskError, ShortageError, SpaceError
from edgekit.storage.disk_calls import DiskCalls

NEW_SUFFIX = ".new~"
_NO_FALLOCATE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENODEV)
_SHORT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)  # file descriptors, memory


def split_name(name: str) -> tuple[str, ...]:
    """The parts of a disk name; an empty tuple for ``""``, the root.

    Raises:
        ValueError: the name is absolute, or a part of it could leave the root.
    """
    parts = tuple(name.split("/")) if name else ()
    if any(part in ("", ".", "..") or "\0" in part or "\\" in part for part in parts):
        raise ValueError(f"{name!r} is not a plain name below the disk's root")
    return parts


class FolderDisk:
    """A Disk in a folder of this machine, which is created with mode 0700 if it is missing.

    Only one process may write it (the agent holds a lock), and threads must not write the same name at once.

    Args:
        root: The folder.
        calls: The system calls; tests of power cuts pass others.

    Raises:
        DiskError: the folder cannot be created.
    """

    def __init__(self, root: Path, *, calls: DiskCalls | None = None) -> None:
        self._calls = calls or DiskCalls()
        with _wrapped("create the folder", str(root)):
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._root = root.resolve(strict=True)

    def path(self, name: str) -> Path:
        """The real path of `name`. Raises ValueError if a symbolic link in it leaves the root."""
        parts = split_name(name)
        if not parts:
            return self._root
        parent = self._root.joinpath(*parts[:-1]).resolve()
        if parent != self._root and self._root not in parent.parents:
            raise ValueError(f"{name!r} leaves the disk's root through a symbolic link")
        return parent / parts[-1]

    def exists(self, name: str) -> bool:
        """True if there is such a file or folder; a symbolic link does not count."""
        path = self.path(name)
        return path.exists() and not path.is_symlink()

    def read(self, name: str) -> bytes:
        """The whole file. Raises FileNotFoundError when it is not there."""
        with self._opened(name, os.O_RDONLY) as fd, os.fdopen(os.dup(fd), "rb") as file:
            return file.read()

    def read_at(self, name: str, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`."""
        with self._opened(name, os.O_RDONLY) as fd:
            return os.pread(fd, length, offset)

    def size(self, name: str) -> int:
        """Bytes of a file."""
        with self._opened(name, os.O_RDONLY) as fd:
            return os.fstat(fd).st_size

    def list(self, name: str) -> list[str]:
        """Names in a folder, sorted, without partly written files; empty if there is no such folder."""
        with _wrapped("list", name):
            try:
                return sorted(entry for entry in os.listdir(self.path(name)) if not entry.endswith(NEW_SUFFIX))
            except FileNotFoundError:
                return []

    def write(self, name: str, data: bytes) -> None:
        """Replace a file atomically and durably; creates its folder if needed."""
        parts = split_name(name)
        self.make_folder("/".join(parts[:-1]))
        fresh = "/".join((*parts[:-1], parts[-1] + NEW_SUFFIX))
        try:
            with self._opened(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as fd:
                self._write_all(fd, data, 0)
                self._calls.fsync(fd)
        except DiskError:
            with contextlib.suppress(OSError):  # free the space; the first error is the one to report
                self._calls.unlink(self.path(fresh))
            raise
        self.rename(fresh, name)

    def preallocate(self, name: str, size: int) -> None:
        """Create or resize a file to `size` bytes, and reserve the space if the file system can."""
        with self._opened(name, os.O_WRONLY | os.O_CREAT) as fd:
            self._calls.truncate(fd, size)
            if size:
                try:
                    self._calls.reserve(fd, size)
                except OSError as error:
                    if error.errno not in _NO_FALLOCATE:
                        raise

    def write_at(self, name: str, offset: int, data: bytes) -> None:
        """Write into an existing file; durable only after `sync`."""
        with self._opened(name, os.O_WRONLY) as fd:
            self._write_all(fd, data, offset)

    def sync(self, name: str) -> None:
        """Fsync a file or a folder."""
        with self._opened(name, os.O_RDONLY) as fd:
            self._calls.fsync(fd)

    def make_folder(self, name: str) -> None:
        """Create a folder and its parents durably; no error if it exists."""
        parts = split_name(name)
        for depth in range(1, len(parts) + 1):
            with _wrapped("create the folder", name), contextlib.suppress(FileExistsError):
                self._calls.mkdir(self.path("/".join(parts[:depth])))
                self.sync("/".join(parts[: depth - 1]))

    def rename(self, source: str, target: str) -> None:
        """Rename atomically, replacing a file at `target`, then fsync both folders."""
        with _wrapped("rename", f"{source} to {target}"):
            self._calls.replace(self.path(source), self.path(target))
        before, after = source.rpartition("/")[0], target.rpartition("/")[0]
        self.sync(after)  # first: a power cut between the two leaves the file under both names, never under none
        if before != after:
            self.sync(before)

    def remove(self, name: str) -> None:
        """Remove a file or a whole folder; no error if it does not exist."""
        path = self.path(name)
        with _wrapped("remove", name), contextlib.suppress(FileNotFoundError):
            self._remove_tree(path)
            self.sync(name.rpartition("/")[0])

    def free_bytes(self) -> int:
        """Free space for this process in bytes."""
        with _wrapped("measure", "the root"):
            found = os.statvfs(self._root)  # as shutil.disk_usage, whose archive formats every start would import
            return found.f_bavail * found.f_frsize

    def _remove_tree(self, path: Path) -> None:
        """Remove a file or folder; of a symbolic link only the link, never its target."""
        if not stat.S_ISDIR(path.lstat().st_mode):
            self._calls.unlink(path)
            return
        for entry in sorted(path.iterdir()):
            self._remove_tree(entry)
        self._calls.rmdir(path)

    def _write_all(self, fd: int, data: bytes, offset: int) -> None:
        view = memoryview(data)
        while view:
            done = self._calls.pwrite(fd, view, offset)
            view, offset = view[done:], offset + done

    @contextlib.contextmanager
    def _opened(self, name: str, flags: int) -> Iterator[int]:
        with _wrapped("open", name):
            fd = self._calls.open(self.path(name), flags | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            with _wrapped("read or write", name):
                yield fd
        finally:
            self._calls.close(fd)


class MemoryDisk:
    """A Disk in memory for simulated devices; its content is lost with the process, and `path` is for messages only.

    Args:
        capacity: Capacity in bytes.
        shared: Contents of renamed files, which disks that are given the same dictionary hold once; None for none.
    """

    def __init__(self, capacity: int = 1 << 40, shared: dict[bytes, bytes] | None = None) -> None:
        self.capacity, self._shared = capacity, shared
        self.files: dict[str, bytes | bytearray] = {}
        self.folders: set[str] = {""}

    def path(self, name: str) -> Path:
        """A path for messages; no such file exists."""
        return Path("/memory").joinpath(*split_name(name))

    def exists(self, name: str) -> bool:
        """True if there is such a file or folder."""
        split_name(name)
        return name in self.files or name in self.folders

    def read(self, name: str) -> bytes:
        """The whole file. Raises FileNotFoundError when it is not there."""
        return bytes(self._file(name))

    def read_at(self, name: str, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`."""
        return bytes(self._file(name)[offset : offset + length])

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return len(self._file(name))

    def list(self, name: str) -> list[str]:
        """Names in a folder, sorted; empty if there is no such folder."""
        split_name(name)
        prefix = f"{name}/" if name else ""
        inside = {entry[len(prefix) :] for entry in (*self.files, *self.folders) if entry and entry.startswith(prefix)}
        return sorted(entry for entry in inside if entry and "/" not in entry)

    def write(self, name: str, data: bytes) -> None:
        """Replace a file."""
        self._reserve(len(data) - len(self.files.get(name, b"")))
        self.make_folder("/".join(split_name(name)[:-1]))
        self.files[name] = bytes(data)

    def preallocate(self, name: str, size: int) -> None:
        """Create or resize a file to `size` bytes."""
        split_name(name)
        old = self.files.get(name, b"")
        self._reserve(size - len(old))
        self.files[name] = bytearray(old[:size].ljust(size, b"\0"))

    def write_at(self, name: str, offset: int, data: bytes) -> None:
        """Write into an existing file."""
        file = self._file(name)
        self._reserve(max(0, offset + len(data) - len(file)))
        if not isinstance(file, bytearray):  # to copy the whole file for each block would take most of a simulation
            file = self.files[name] = bytearray(file)
        file.extend(bytes(max(0, offset - len(file))))
        file[offset : offset + len(data)] = data

    def sync(self, name: str) -> None:
        """Check that the file or folder exists."""
        if not self.exists(name):
            raise FileNotFoundError(name)

    def make_folder(self, name: str) -> None:
        """Create a folder and its parents; no error if it exists."""
        parts = split_name(name)
        self.folders.update("/".join(parts[:depth]) for depth in range(1, len(parts) + 1))

    def rename(self, source: str, target: str) -> None:
        """Rename a file, replacing a file at `target`."""
        split_name(target)
        data = self._file(source)
        if self._shared is not None:
            data = self._shared.setdefault(whole := bytes(data), whole)
        del self.files[source]
        self.files[target] = data

    def remove(self, name: str) -> None:
        """Remove a file or a whole folder; no error if it does not exist."""
        split_name(name)
        self.files.pop(name, None)
        self.files = {key: data for key, data in self.files.items() if not key.startswith(f"{name}/")}
        self.folders = {key for key in self.folders if key != name and not key.startswith(f"{name}/")}

    def free_bytes(self) -> int:
        """Free space in bytes."""
        return max(0, self.capacity - sum(map(len, self.files.values())))

    def _file(self, name: str) -> bytes | bytearray:
        split_name(name)
        try:
            return self.files[name]
        except KeyError:
            raise FileNotFoundError(name) from None

    def _reserve(self, more: int) -> None:
        if more > self.free_bytes():
            raise SpaceError(f"no space left: {more} more bytes are needed, {self.free_bytes()} are free")


@contextlib.contextmanager
def _wrapped(action: str, name: str) -> Iterator[None]:
    """Turn errors of the file system into DiskError; FileNotFoundError and FileExistsError pass through.

    A full disk, or a quota that is used up, is a SpaceError: it passes when somebody frees space.
    What this process or the machine is short of says nothing about the disk, and is a ShortageError.
    """
    try:
        yield
    except (FileNotFoundError, FileExistsError):
        raise
    except OSError as error:
        if error.errno in _SHORT_OF:
            raise ShortageError(
                f"cannot {action} {name} at the moment: {error.strerror}",
                advice="Close other programs, or raise the limits of this process (ulimit -n).",
            ) from error
        message = f"cannot {action} {name}: {error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SpaceError(message, advice="Free some space on the device.") from error
        raise DiskError(message, advice="Check the file system and its permissions.") from error
