"""A histogram of durations with fixed bounds. Rules only."""

from __future__ import annotations

import bisect

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds


class Latency:
    """Counts of durations up to each of BOUNDS, and their sum.

    Attributes:
        counts: Durations by bound, each in the first bound that is not below it; the last count is of longer ones.
        total_seconds: Sum of all durations.
    """

    __slots__ = ("counts", "total_seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total_seconds = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect.bisect_left(BOUNDS, seconds)] += 1
        self.total_seconds += seconds
