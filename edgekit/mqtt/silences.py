"""Rule that tells the idle timeout of a proxy or NAT from the ends of connections. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

SAME_SILENCES = 3  # connections in a row that ended after the same time without traffic
LEAST_SILENCE, SILENCES_APART = 3.0, 1.5  # seconds


def idle_timeout(silences: Sequence[float]) -> float | None:
    """The idle timeout of something on the way to the broker, in seconds; None where the ends show none.

    Args:
        silences: Seconds without traffic before the end of each connection, the last one last.
    """
    last = silences[-SAME_SILENCES:]
    if len(last) < SAME_SILENCES or min(last) < LEAST_SILENCE or max(last) - min(last) > SILENCES_APART:
        return None
    return statistics.median(last)
