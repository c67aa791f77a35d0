"""Measures how many cores other programs leave free while this process works."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

import joblib

# Columns of /proc/stat: user, nice, system, interrupts, soft interrupts, and time taken by the host.
BUSY = (0, 1, 2, 5, 6, 7)
ENOUGH_SECONDS = 0.05  # shortest measurement; the system counts hundredths of a second


class CpuLoad:
    """Adds up the CPU time of other programs while tasks of this process run. Only single-process work is measured."""

    def __init__(self) -> None:
        self._seconds = self._others = 0.0

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Measure the load during a task of this process."""
        busy, own, begun = busy_seconds(), time.process_time(), time.monotonic()
        try:
            yield
        finally:
            after = busy_seconds()
            if busy is not None and after is not None:
                self._others += (after - busy) - (time.process_time() - own)
                self._seconds += time.monotonic() - begun

    def free(self) -> float:
        """Free cores, from 1 to `joblib.cpu_count()`; all of them where the system does not report its load.

        Other programs share the host's cores: a container that may use two of many cores is not slowed by load on the
        others.
        """
        own_cores = joblib.cpu_count()
        if self._seconds < ENOUGH_SECONDS:
            return float(own_cores)
        others = max(0.0, self._others / self._seconds)
        return min(max(1.0, (os.cpu_count() or 1) - others), float(own_cores))


def busy_seconds() -> float | None:
    """CPU seconds of all cores since the machine started; None where the system does not report them."""
    try:
        with open("/proc/stat", encoding="ascii") as lines:
            ticks = [int(value) for value in lines.readline().split()[1:]]
        return sum(ticks[column] for column in BUSY) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None
