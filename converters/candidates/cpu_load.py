"""How many of the machine's cores other programs leave free, as seen while this process works."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

import joblib

BUSY = (0, 1, 2, 5, 6, 7)  # of the columns of /proc/stat: user, nice, system, interrupts, and what a host took back
ENOUGH_SECONDS = 0.05  # of watching; the system counts hundredths


class Load:
    """Adds up what others did while tasks of this process were watched, and no process of its own worked."""

    def __init__(self) -> None:
        self._seconds = self._others = 0.0

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Around a task of this process."""
        busy, own, begun = busy_seconds(), time.process_time(), time.monotonic()
        try:
            yield
        finally:
            after = busy_seconds()
            if busy is not None and after is not None:
                self._others += (after - busy) - (time.process_time() - own)
                self._seconds += time.monotonic() - begun

    def free(self) -> float:
        """Cores that this process can have, 1 to `joblib.cpu_count()`; all where the system does not tell of others.

        The host's cores are what others share: a container that may use two of many is not held up by work on the rest.
        """
        most = joblib.cpu_count()
        if self._seconds < ENOUGH_SECONDS:
            return float(most)
        others = max(0.0, self._others / self._seconds)
        return min(max(1.0, (os.cpu_count() or 1) - others), float(most))


def busy_seconds() -> float | None:
    """Seconds that all cores together have worked since the machine started; None where the system does not tell."""
    try:
        with open("/proc/stat", encoding="ascii") as lines:
            ticks = [int(value) for value in lines.readline().split()[1:]]
        return sum(ticks[place] for place in BUSY) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None
