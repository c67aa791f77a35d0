"""A file system with a power cut before a chosen call. Data that was not fsynced is lost, as far as POSIX allows.

    calls = CrashCalls(state, after, Loss.STRICT)
    disk = FolderDisk(state, calls=calls)
    calls.cut_at = 7        # the power fails before the 7th call that changes something

At the power cut, `after` becomes the folder that the device finds after the next start:

* STRICT: a file has the bytes of its last fsync (or is empty), and a folder has the names of its last fsync;
* KEPT: all changes are there, as if only the process had ended;
* MIXED: a random choice of the two for each file and folder; files that were never synced can be cut off or zeroed.

Files written without these calls (the cache of trusted metadata) count as never synced.
"""

from __future__ import annotations

import enum
import itertools
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from edgekit.storage.disk_calls import DiskCalls
from tests.simulators.disk import PowerCut

_FOLDER, _UNKNOWN = -1, -2


class Loss(str, enum.Enum):
    """The state of unsynced data after the power cut."""

    STRICT = "strict"
    KEPT = "kept"
    MIXED = "mixed"


class CrashCalls(DiskCalls):
    """Counts every call that changes something, and cuts the power before the chosen call.

    Args:
        root: The watched folder. Its present content is durable.
        after: Folder with the durable state; created at the power cut.
        loss: Which unsynced data is lost.
        seed: Seed of the random choices of MIXED.
        die: Called at the power cut, after `after` was created. None raises PowerCut.

    Attributes:
        cut_at: Number of the call before which the power fails; 0 for never.
        count: Number of calls so far.
        kinds: Names of the calls so far, in order.
    """

    def __init__(
        self, root: Path, after: Path, loss: Loss, *, seed: int = 0, die: Callable[[], None] | None = None
    ) -> None:
        self._root, self._after, self._loss, self._die = root, after, loss, die
        self._random = random.Random(seed)
        self._new = itertools.count()
        self._live: dict[Path, int] = {}
        self._bytes: dict[int, bytes] = {}
        self._names: dict[Path, dict[str, int]] = {}
        self._open: dict[int, Path] = {}
        self.cut_at = self.count = 0
        self.kinds: list[str] = []
        for folder, _, files in os.walk(root):
            for name in files:
                path = Path(folder, name)
                self._create(path, path.read_bytes())
            self._names[Path(folder)] = self._listing(Path(folder))

    @property
    def off(self) -> bool:
        """True after the power cut."""
        return bool(self.cut_at) and self.count >= self.cut_at

    # --- the calls

    def open(self, path: Path, flags: int) -> int:
        if flags & os.O_CREAT and path not in self._live:
            self._before("create")
            fd = super().open(path, flags)
            self._create(path, b"")
        else:
            if flags & os.O_TRUNC:
                self._before("empty")
            fd = super().open(path, flags)
        self._open[fd] = path
        return fd

    def close(self, fd: int) -> None:
        self._open.pop(fd, None)
        super().close(fd)

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        self._before("write")
        return super().pwrite(fd, data, offset)

    def truncate(self, fd: int, size: int) -> None:
        self._before("truncate")
        super().truncate(fd, size)

    def fsync(self, fd: int) -> None:
        self._before("fsync")
        path = self._open[fd]
        if path.is_dir():
            self._names[path] = self._listing(path)
        else:
            self._bytes[self._live[path]] = path.read_bytes()

    def mkdir(self, path: Path) -> None:
        if not path.exists():
            self._before("mkdir")
        super().mkdir(path)
        self._names[path] = {}

    def replace(self, source: Path, target: Path) -> None:
        self._before("rename")
        super().replace(source, target)
        self._live[target] = self._live.pop(source)

    def unlink(self, path: Path) -> None:
        self._before("unlink")
        super().unlink(path)
        self._live.pop(path, None)

    def rmdir(self, path: Path) -> None:
        self._before("rmdir")
        super().rmdir(path)  # keep its names: if the parent was not synced, the folder comes back with its content

    # --- the cut

    def _before(self, kind: str) -> None:
        if self.off:
            raise PowerCut(f"{kind} after the power cut")
        self.count += 1
        self.kinds.append(kind)
        if self.off:
            self._lose()
            if self._die is not None:
                self._die()
            raise PowerCut(f"{kind} is call {self.count}")

    def _create(self, path: Path, data: bytes) -> None:
        self._live[path] = next(self._new)
        self._bytes[self._live[path]] = data

    def _listing(self, folder: Path) -> dict[str, int]:
        entries = folder.iterdir()
        return {entry.name: _FOLDER if entry.is_dir() else self._live.get(entry, _UNKNOWN) for entry in entries}

    def _lose(self) -> None:
        if self._loss is Loss.KEPT:
            shutil.copytree(self._root, self._after)
        else:
            self._rebuild(self._root, self._after)

    def _rebuild(self, folder: Path, target: Path) -> None:
        target.mkdir(mode=0o700)
        if folder not in self._names:
            self._untracked(folder, target)
            return
        names = self._names[folder]
        if self._mixed() and folder.is_dir():
            names = self._listing(folder)
        for name, number in names.items():
            if number == _FOLDER:
                self._rebuild(folder / name, target / name)
            elif number != _UNKNOWN:
                (target / name).write_bytes(self._content(folder / name, number))

    def _content(self, path: Path, number: int) -> bytes:
        durable = self._bytes.get(number, b"")
        if not self._mixed() or self._live.get(path) != number or not path.is_file():
            return durable
        live = path.read_bytes()
        if durable or live == durable:
            return live
        return self._random.choice([live, live[: len(live) // 2], bytes(len(live))])

    def _untracked(self, folder: Path, target: Path) -> None:
        """Copy some files of a folder that was written without these calls: whole, empty or cut off."""
        for path in folder.iterdir() if folder.is_dir() and self._mixed() else ():
            if path.is_file() and not path.is_symlink() and self._mixed():
                data = path.read_bytes()
                (target / path.name).write_bytes(self._random.choice([data, b"", data[: len(data) // 2]]))

    def _mixed(self) -> bool:
        return self._loss is Loss.MIXED and self._random.random() < 0.5
