"""Cache of earlier results on disk, by the digest of their inputs. An interrupted conversion can continue with it.

The cache lies in the user's cache folder and is bounded in size: the least recently used entries are removed first.
Each entry carries its own digest; a damaged entry counts as missing. Nothing in the cache is ever executed.
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

MAX_CACHE_BYTES = 1 << 30
DIGEST_BYTES = 32
Value = TypeVar("Value")


class Cache:
    """Stores plain data and msgspec structs on disk, by key.

    Args:
        folder: The folder; it is made with the first entry.
        max_bytes: Limit of all entries together, in bytes. One entry may use a quarter of it.
    """

    def __init__(self, folder: Path, max_bytes: int = MAX_CACHE_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def get(self, key: str, kind: type[Value]) -> Value | None:
        """The value of `key`, decoded as `kind`; None where it is missing or damaged."""
        path = self._path(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        digest, body = data[:DIGEST_BYTES], memoryview(data)[DIGEST_BYTES:]  # an entry can hold a whole model
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
        """Store `value`. Errors of the disk are ignored: the entry is then missing."""
        body = msgspec.msgpack.encode(value)
        if len(body) > self._max_bytes // 4:
            return
        path = self._path(key)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as on_failure:
                handle, scratch = tempfile.mkstemp(dir=path.parent)
                on_failure.callback(Path(scratch).unlink, missing_ok=True)
                with os.fdopen(handle, "wb") as stream:
                    stream.write(hashlib.sha256(body).digest())
                    stream.write(body)
                os.replace(scratch, path)
                on_failure.pop_all()
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
    """The entries of one conversion in a cache. Without a cache it stores nothing.

    Args:
        cache: The cache; None disables it.
        origin: Digest of all inputs of the conversion.
    """

    def __init__(self, cache: Cache | None = None, origin: str = "") -> None:
        self._cache = cache
        self._origin = origin

    def get(self, key: tuple[Any, ...], kind: type[Value]) -> Value | None:
        """The value of `key`; None where there is none."""
        return self._cache.get(self._digest(key), kind) if self._cache else None

    def put(self, key: tuple[Any, ...], value: Any) -> None:
        """Store `value` under `key`."""
        if self._cache:
            self._cache.put(self._digest(key), value)

    def _digest(self, key: tuple[Any, ...]) -> str:
        return hashlib.sha256(msgspec.json.encode([self._origin, *key], order="sorted")).hexdigest()


def cache_root() -> Path:
    """The folder of edgekit in the user's cache, under XDG_CACHE_HOME or ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "edgekit"


def default_cache() -> Cache:
    """The user's cache of conversions."""
    return Cache(cache_root() / "convert")


def origin_of(*parts: Any) -> str:
    """Digest of `parts` (bytes, arrays, and values that JSON can express) and of edgekit's own code."""
    digest = hashlib.sha256(code_digest().encode())
    for part in parts:
        body = _bytes_of(part)
        digest.update(f"{len(body)}:".encode() + body)
    return digest.hexdigest()


@functools.lru_cache(maxsize=1)
def code_digest() -> str:
    """Digest of edgekit's code, so that results of older code are not used."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for package in ("converters", "edgekit"):
        for path in sorted(p for p in (root / package).rglob("*") if p.suffix in (".py", ".toml")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def this_processor() -> str:
    """Description of this kind of processor. Kernels, and so the last bits of answers, depend on it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    described = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return "\n".join([platform.machine(), *sorted(described)])


def _bytes_of(part: Any) -> bytes:
    if isinstance(part, bytes):
        return part
    if isinstance(part, np.ndarray):
        return array_bytes(part)
    return msgspec.json.encode(part, order="sorted")


def array_bytes(array: Array) -> bytes:
    """The dtype, shape and values of `array` as bytes; other arrays have other bytes."""
    head = f"{array.dtype.str}{array.shape}".encode()
    plain = not array.dtype.hasobject
    return head + (np.ascontiguousarray(array).tobytes() if plain else msgspec.json.encode(array.tolist()))
