"""Counters of a process: its instructions, and its resident memory.

Where the process is emulated, qemu's plugin (``emulated/count.c``) tells the count as a clock that Linux does not have.
Elsewhere the kernel counts, by perf_event_open(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# The clocks of emulated/count.c.
COUNT, ALL_CLOCKS_COUNT, CLOCKS_TELL_TIME = 7000, 7001, 7002

_SYSTEM_CALLS = {"x86_64": 298, "aarch64": 241}  # perf_event_open
_HARDWARE, _INSTRUCTIONS = 0, 1  # PERF_TYPE_HARDWARE, PERF_COUNT_HW_INSTRUCTIONS
_ATTRIBUTE_BYTES = 64  # PERF_ATTR_SIZE_VER0
_USER_ONLY = 0b1100000  # exclude_kernel and exclude_hv
_RANGE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) ", re.MULTILINE)

Counter = Callable[[], int]


def emulated_counter() -> Counter:
    """Instructions that this emulated process has run."""

    def count() -> int:
        return time.clock_gettime_ns(COUNT)

    return count


@contextlib.contextmanager
def clocks_count() -> Iterator[None]:
    """In an emulated process: all clocks advance by a microsecond with each instruction."""
    time.clock_gettime_ns(ALL_CLOCKS_COUNT)
    try:
        yield
    finally:
        time.clock_gettime_ns(CLOCKS_TELL_TIME)


def kernel_counter() -> Counter | str:
    """Instructions that this process ran outside the kernel; a text that says why they cannot be counted here."""
    number = _SYSTEM_CALLS.get(os.uname().machine)
    if os.uname().sysname != "Linux" or number is None:
        return f"not counted: no counter on {os.uname().sysname} {os.uname().machine}"
    attribute = struct.pack("=IIQQQQQ", _HARDWARE, _ATTRIBUTE_BYTES, _INSTRUCTIONS, 0, 0, 0, _USER_ONLY)
    library = ctypes.CDLL(None, use_errno=True)
    descriptor = library.syscall(number, attribute.ljust(_ATTRIBUTE_BYTES, b"\0"), 0, -1, -1, 0)
    if descriptor < 0:
        code = ctypes.get_errno()
        if code in (1, 13):  # EPERM, EACCES
            return "not counted: the kernel does not allow it; run: sysctl kernel.perf_event_paranoid=2"
        return f"not counted: this machine has no instruction counter ({os.strerror(code)}), as many virtual ones"

    def count() -> int:
        return int(struct.unpack("=Q", os.read(descriptor, 8))[0])

    return count


class Memory:
    """Memory that a model adds to this process: private pages, and pages of the model's file.

    Libraries' own pages are not the model's, and in an emulated process qemu's pages are not the program's.

    Args:
        model: The model's file.
        emulated: This process is emulated.
    """

    def __init__(self, model: Path, *, emulated: bool) -> None:
        self._model, self._emulated = str(model), emulated
        with contextlib.suppress(OSError):  # without it, the peak may be one of before
            Path("/proc/self/clear_refs").write_text("5")
        self._before = self._own()

    def peak(self) -> int:
        """The largest number of bytes since the start that is certain; 0 where the system does not tell.

        The kernel keeps the peak of the whole process. At that moment everything else was at most what it is now.
        """
        own = self._own()
        at_peak = _status("VmHWM") - (_status("VmRSS") - own)
        return max(own, at_peak) - self._before if own else 0

    def _own(self) -> int:
        try:
            maps, lines = Path("/proc/self/maps").read_text(), Path("/proc/self/smaps").read_text().splitlines()
        except OSError:
            return 0
        # qemu shows the program its own addresses in maps; smaps has those of qemu's process, and both are the same.
        mapped = [(int(a, 16), int(b, 16)) for a, b in _RANGE.findall(maps)]
        total, counted = 0, ""
        for line in lines:
            if found := _RANGE.match(line):
                start = int(found[1], 16)
                inside = not self._emulated or any(first <= start < last for first, last in mapped)
                counted = ("Rss:" if line.endswith(self._model) else "Anonymous:") if inside else ""
            elif counted and line.startswith(counted):
                total += int(line.split()[1]) * 1024
        return total


def _status(key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
