"""Counters of the instructions of a process.

Where the process is emulated, qemu's plugin (``emulated/count.c``) tells the count as a clock that Linux does not have.
Elsewhere the kernel counts, by perf_event_open(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import time
from collections.abc import Callable, Iterator

# The clocks of emulated/count.c.
COUNT, ALL_CLOCKS_COUNT, CLOCKS_TELL_TIME = 7000, 7001, 7002

_SYSTEM_CALLS = {"x86_64": 298, "aarch64": 241}  # perf_event_open
_HARDWARE, _INSTRUCTIONS = 0, 1  # PERF_TYPE_HARDWARE, PERF_COUNT_HW_INSTRUCTIONS
_ATTRIBUTE_BYTES = 64  # PERF_ATTR_SIZE_VER0
_USER_ONLY = 0b1100000  # exclude_kernel and exclude_hv

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
