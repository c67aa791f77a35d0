"""The real clock."""

from __future__ import annotations

import time


class SystemClock:
    """Clock of this machine."""

    # The functions themselves, because a wrapper would add three calls to each request.
    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time)
