"""Memory of this process and of others, and measured memory by bundle."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

_M_ARENA_MAX, _ARENAS = -8, 2  # the first value is the one in malloc.h


class Footprints(Protocol):
    """Measured memory of each bundle, kept across restarts."""

    def get(self, digest: str) -> int | None:
        """Bytes of a bundle; None where it was never measured on this device."""
        ...

    def put(self, digest: str, size: int) -> None:
        """Keep a measurement. Must not raise: a device with a full disk still serves."""
        ...


class MemoryFootprints:
    """Footprints in memory, which are lost when the process ends."""

    def __init__(self) -> None:
        self._bytes: dict[str, int] = {}

    def get(self, digest: str) -> int | None:
        """See Footprints."""
        return self._bytes.get(digest)

    def put(self, digest: str, size: int) -> None:
        """See Footprints."""
        self._bytes[digest] = size


@runtime_checkable
class HasMemory(Protocol):
    """A runtime in a process of its own, whose memory can be measured exactly."""

    def memory_bytes(self) -> int:
        """Bytes that the process holds now; 0 where it is not running."""
        ...


def rss_bytes() -> int:
    """Resident memory (RSS) of this process; 0 where the system has no /proc.

    Unlike PSS, RSS does not depend on other processes.
    """
    return _rss_bytes(Path("/proc/self"))


def pss_bytes(pid: int) -> int:
    """Memory of a process (PSS, else RSS); 0 where the system has no /proc, or the process is gone.

    PSS divides a shared page among the processes that share it, so the sum over processes is the machine's memory.
    """
    folder = Path("/proc") / str(pid)
    try:
        for line in (folder / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # an old kernel, an ended process, or not Linux
    return _rss_bytes(folder)


def _rss_bytes(folder: Path) -> int:
    try:
        return int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def return_freed_memory() -> None:
    """Return freed memory to the system, where the C library can; it may take milliseconds."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


def few_arenas() -> None:
    """Limit the C library's heaps (arenas) to two; call it when a program starts.

    By default each new thread gets an arena, up to eight per core, and an arena keeps the peak memory of the models
    that were loaded in it. A device that switches models would keep that memory many times.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # a C library without it, for example musl
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)


@functools.lru_cache(maxsize=1)
def _malloc_trim() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # a C library without it, for example musl
        return None
    return trim
