"""A Store in memory, and one that fails from a chosen write on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgekit.errors import NotFoundError, StoreError


class MemoryStore:
    """A Store that keeps blobs in a dict; tests may read and change `blobs`."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def get(self, name: str) -> bytes:
        if name not in self.blobs:
            raise NotFoundError(f"memory has no {name!r}")
        return self.blobs[name]

    def get_range(self, name: str, start: int, length: int) -> bytes:
        if length <= 0 or start < 0:
            raise ValueError(f"range from {start} of {length} bytes")
        return self.get(name)[start : start + length]

    def size(self, name: str) -> int:
        return len(self.get(name))

    def put(self, name: str, data: bytes | Path) -> None:
        if any(part in ("", ".", "..") for part in name.split("/")):
            raise NotFoundError(f"{name!r} is not the name of a blob")
        self.blobs[name] = data.read_bytes() if isinstance(data, Path) else bytes(data)

    def remove(self, name: str) -> None:
        self.blobs.pop(name, None)

    def exists(self, name: str) -> bool:
        return name in self.blobs

    def list(self, prefix: str) -> list[str]:
        folder = f"{prefix.rstrip('/')}/" if prefix else ""
        return sorted(name for name in self.blobs if name.startswith(folder))

    @contextmanager
    def lock(self) -> Iterator[None]:
        with self._lock:
            yield


class DyingStore(MemoryStore):
    """Shares `blobs` with another store and fails from write number `limit` on, like a killed process."""

    def __init__(self, blobs: dict[str, bytes], limit: int) -> None:
        super().__init__()
        self.blobs = blobs
        self.writes = 0
        self._limit = limit

    def put(self, name: str, data: bytes | Path) -> None:
        if self.writes >= self._limit:
            raise StoreError(f"died at write {self.writes} ({name})")
        self.writes += 1
        super().put(name, data)
