"""How much memory this process, or another, holds."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

_M_ARENA_MAX, _ARENAS = -8, 2  # the former as in malloc.h


class Footprints(Protocol):
    """What each bundle was measured to hold in memory, kept across restarts."""

    def get(self, digest: str) -> int | None:
        """Bytes; None where it was never measured here."""
        ...

    def put(self, digest: str, size: int) -> None:
        """Keep a measurement. Must not raise: a device with a full disk still serves."""
        ...


class MemoryFootprints:
    """Footprints that are forgotten with the process."""

    def __init__(self) -> None:
        self._bytes: dict[str, int] = {}

    def get(self, digest: str) -> int | None:
        """See Footprints."""
        return self._bytes.get(digest)

    def put(self, digest: str, size: int) -> None:
        """See Footprints."""
        self._bytes[digest] = size


@runtime_checkable
class TellsMemory(Protocol):
    """A runtime that is a process of its own."""

    def memory_bytes(self) -> int:
        """What it holds now; 0 where it is not running."""
        ...


def held_bytes() -> int:
    """Memory of this process (RSS); 0 where the system does not tell. Unlike PSS, it does not change with others."""
    return _rss_bytes(Path("/proc/self"))


def fair_bytes(pid: int) -> int:
    """Memory of a process (PSS, else RSS); 0 where the system does not tell, or the process is gone.

    PSS counts a page that several processes share in parts, so the sum over processes is what the machine holds.
    """
    folder = Path("/proc") / str(pid)
    try:
        for line in (folder / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # an old kernel, a process that is gone, or not Linux
    return _rss_bytes(folder)


def _rss_bytes(folder: Path) -> int:
    try:
        return int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def give_back() -> None:
    """Return freed memory to the system, where the C library can; it may take milliseconds."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


def few_arenas() -> None:
    """Let the C library share its heaps among threads from now on; call it when a program starts.

    It gives each new thread a heap of its own, up to eight a core, and each keeps the peak of the models that were
    loaded in it: a device that switches models would hold them all many times.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # a C library without it, as musl
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)


@functools.lru_cache(maxsize=1)
def _malloc_trim() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # a C library without it, as musl
        return None
    return found
