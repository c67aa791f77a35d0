"""Differences between the operating systems of workstations: memory size and temporary folders."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

LEAST_MEMORY = 2 << 30


def memory_bytes() -> int:
    """Memory of this machine, in bytes."""
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return _windows_memory().total


def free_memory_bytes() -> int:
    """Available memory without swapping, in bytes; all memory on systems that do not report it (macOS)."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return memory_bytes() if hasattr(os, "sysconf") else _windows_memory().available


def memory_limit() -> int:
    """The memory that a process started now may use, in bytes: what is free, and at least LEAST_MEMORY."""
    return max(free_memory_bytes(), LEAST_MEMORY)


def resident_bytes(pid: int) -> int:
    """Memory that a process uses, in bytes; 0 if it has ended, and on systems that do not tell."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as line:
            return int(line.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def return_memory() -> None:
    """Give freed memory back to the system. The C library of Linux keeps it otherwise: over 1 GB after a conversion."""
    with contextlib.suppress(OSError, AttributeError):  # other C libraries have no such function
        ctypes.CDLL(None).malloc_trim(0)


def processes_killed_for_memory() -> int:
    """How many processes Linux has killed since its start because memory ran out; 0 on other systems."""
    try:
        with open("/proc/vmstat", encoding="ascii") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    except (OSError, StopIteration):
        return 0


@contextlib.contextmanager
def scratch_folder(prefix: str, dir: Path | None = None) -> Iterator[str]:
    """A temporary folder that is removed at the end, in `dir` or in the system's temporary folder.

    Windows does not remove files that a runtime still maps; files that cannot be removed are left to the system.
    """
    folder = tempfile.mkdtemp(prefix=prefix, dir=dir)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of the Windows API."""

    length: int
    total: int
    available: int
    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total", ctypes.c_uint64),
        ("available", ctypes.c_uint64),
        *((name, ctypes.c_uint64) for name in ("page_total", "page_free", "own_total", "own_free", "own_extended")),
    )


def _windows_memory() -> _MemoryStatus:
    found = _MemoryStatus()
    found.length = ctypes.sizeof(found)
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(found)):  # type: ignore[attr-defined,unused-ignore]
        raise OSError("Windows does not report the memory of this machine")
    return found
