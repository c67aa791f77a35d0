"""Rule for the time in which the devices of a fleet come back after their broker restarts. Pure."""

from __future__ import annotations

import math

SECONDS_A_DEVICE = 0.06  # a thousand in LONGEST_SECONDS
SHORTEST_SECONDS, LONGEST_SECONDS = 2.0, 60.0


def reconnect_seconds(devices: int) -> float:
    """Seconds in which `devices` connect again, each after a random part of them: a power of two, or LONGEST_SECONDS.

    A device that comes back sends about 20 messages, and one that stays connected 0.18 a second (300 devices with a
    heartbeat of 30 s, measured by ``make bench-fleet``). So in any 10 s after a restart the broker gets at most three
    times the steady messages of 1,000 devices, or of a larger fleet itself. Powers of two, so that an enrollment seldom
    changes the hint.

    Args:
        devices: Number of enrolled devices, 0 or more.
    """
    wanted = max(SHORTEST_SECONDS, SECONDS_A_DEVICE * devices)
    return min(LONGEST_SECONDS, 2.0 ** math.ceil(math.log2(wanted)))
