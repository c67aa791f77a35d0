"""The real clock."""

from __future__ import annotations

import time


class SystemClock:
    """Clock over the machine's own time."""

    def monotonic(self) -> float:
        """Seconds that only rise."""
        return time.monotonic()

    def wall(self) -> float:
        """Seconds since 1970, UTC."""
        return time.time()
