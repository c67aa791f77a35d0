"""What was made before, by the digest of everything it was made from: an interrupted or repeated conversion goes on.

Under the user's cache folder, bounded in size; the entries that were unused for longest go first. An entry carries its
own digest, and one that is damaged is as good as none. Nothing in it is ever executed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import tempfile
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from edgekit.tensors import Array

MAX_BYTES = 1 << 30
DIGEST_BYTES = 32
Kept = TypeVar("Kept")


class Cache:
    """Plain data and msgspec structs under keys, on disk.

    Args:
        folder: Where; made when something is first kept.
        max_bytes: What all entries together may take; one entry may take a quarter.
    """

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def get(self, key: str, kind: type[Kept]) -> Kept | None:
        """The value kept under `key`, as a `kind`; None where there is none, or none that is whole."""
        path = self._path(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        digest, body = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
        try:
            if hashlib.sha256(body).digest() != digest:
                raise ValueError("the entry is damaged")
            value = msgspec.msgpack.decode(body, type=kind)
        except (ValueError, msgspec.MsgspecError):
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return value

    def put(self, key: str, value: Any) -> None:
        """Keep `value`. A disk that refuses keeps nothing, and that is no error."""
        body = msgspec.msgpack.encode(value)
        if len(body) > self._max_bytes // 4:
            return
        path = self._path(key)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, scratch = tempfile.mkstemp(dir=path.parent)
            try:
                with os.fdopen(handle, "wb") as stream:
                    stream.write(hashlib.sha256(body).digest() + body)
                os.replace(scratch, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(scratch)
                raise
            self._shrink()

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / key

    def _shrink(self) -> None:
        entries = []
        for path in self._folder.glob("*/*"):
            with contextlib.suppress(OSError):  # another process may have removed it
                state = path.stat()
                entries.append((state.st_mtime, state.st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self._max_bytes:
                return
            with contextlib.suppress(OSError):
                path.unlink()
            total -= size


class CacheScope:
    """One conversion's part of a cache; without a cache it keeps nothing.

    Args:
        cache: Where; None for nowhere.
        origin: Digest of all that the conversion starts from.
    """

    def __init__(self, cache: Cache | None = None, origin: str = "") -> None:
        self._cache = cache
        self._origin = origin

    def get(self, what: tuple[Any, ...], kind: type[Kept]) -> Kept | None:
        """What was kept as `what`; None where nothing was."""
        return self._cache.get(self._key(what), kind) if self._cache else None

    def put(self, what: tuple[Any, ...], value: Any) -> None:
        """Keep `value` as `what`."""
        if self._cache:
            self._cache.put(self._key(what), value)

    def _key(self, what: tuple[Any, ...]) -> str:
        return hashlib.sha256(msgspec.json.encode([self._origin, *what], order="sorted")).hexdigest()


def default_cache() -> Cache:
    """The user's: under XDG_CACHE_HOME, or ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(home) if os.path.isabs(home) else Path.home() / ".cache"
    return Cache(root / "edgekit" / "convert")


def origin_of(*parts: Any) -> str:
    """Digest of `parts` (bytes, arrays, and what JSON can say) and of edgekit's own code."""
    found = hashlib.sha256(code_digest().encode())
    for part in parts:
        body = _bytes_of(part)
        found.update(f"{len(body)}:".encode() + body)
    return found.hexdigest()


@functools.lru_cache(maxsize=1)
def code_digest() -> str:
    """Digest of the code that converts: what older code made is not taken for what this would make."""
    root = Path(__file__).parents[1]
    found = hashlib.sha256()
    for package in ("converters", "edgekit"):
        for path in sorted(p for p in (root / package).rglob("*") if p.suffix in (".py", ".toml")):
            found.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def this_processor() -> str:
    """What tells kinds of processors apart: kernels, and so the last bits of answers, differ between them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    told = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return "\n".join([platform.machine(), *sorted(told)])


def _bytes_of(part: Any) -> bytes:
    if isinstance(part, bytes):
        return part
    if isinstance(part, np.ndarray):
        return array_bytes(part)
    return msgspec.json.encode(part, order="sorted")


def array_bytes(array: Array) -> bytes:
    """What tells `array` from every other one: its dtype, shape and values."""
    head = f"{array.dtype.str}{array.shape}".encode()
    plain = not array.dtype.hasobject
    return head + (np.ascontiguousarray(array).tobytes() if plain else msgspec.json.encode(array.tolist()))
