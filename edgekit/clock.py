"""The real clock."""

from __future__ import annotations

import time


class SystemClock:
    """Clock over the machine's own time."""

    # The functions themselves: a method around them is one more call, three times for each request.
    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time)
