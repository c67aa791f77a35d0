"""Leases: limit how many devices fetch blocks at one time.

A broker buffers what a slow device has not read yet, and the controller cannot see that. At most one window of blocks
is on the way to each device, so a budget in bytes is a number of transfers. A device above the limit gets a time to
retry, and its turn comes before that of later devices.
"""

from __future__ import annotations

from edgekit.bundle.manifest import BLOCK_BYTES

WINDOW_BLOCKS = 16
LEASE_IDLE_SECONDS = 10.0  # a lease ends when its device has sent no request for this long
LAST_SECONDS = 1.0  # the same, after a request for the last blocks of a blob
LATE_SECONDS = 10.0  # a device loses its turn when it is this late with its retry
MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 0.25, 15.0
FRONT_RETRY_SECONDS = 1.0  # the next devices in turn retry this often, so that a free lease is soon used
MAX_WAITING = 10_000


def max_transfers(budget_bytes: int) -> int:
    """Number of transfers, one window each, that fit into a budget in bytes; at least one."""
    return max(1, budget_bytes // (WINDOW_BLOCKS * BLOCK_BYTES))


class Leases:
    """Devices that may fetch now, and devices that wait, in the order of their first request.

    Args:
        limit: Number of leases at one time.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._active: dict[str, tuple[float, float]] = {}  # device -> (since, until)
        self._waiting: dict[str, float] = {}  # device -> time by which it must retry
        self._usual_seconds = 2.0
        self._swept = float("-inf")

    @property
    def active(self) -> int:
        """Number of leases that had not ended at the last request."""
        return len(self._active)

    @property
    def waiting(self) -> int:
        """Number of devices that wait for a lease."""
        return len(self._waiting)

    def request(self, device: str, now: float, *, last: bool = False) -> float:
        """Take or renew a lease.

        Args:
            device: Name of the device.
            now: Monotonic seconds.
            last: The device requests the last blocks of a blob.

        Returns:
            0 if the device may fetch, otherwise the seconds after which it should retry.
        """
        self._sweep(now)
        since, _ = self._active.get(device, (now, 0.0))
        if device not in self._active:
            ahead = self._ahead(device)
            if ahead >= self._limit - len(self._active):
                return self._wait(device, now, ahead)
            self._waiting.pop(device, None)
        self._active[device] = (since, now + (LAST_SECONDS if last else LEASE_IDLE_SECONDS))
        return 0.0

    def release(self, device: str, now: float) -> None:
        """End the device's lease or its wait."""
        self._waiting.pop(device, None)
        if device in self._active:
            self._active[device] = (self._active[device][0], min(now, self._active[device][1]))

    def _ahead(self, device: str) -> int:
        """Number of devices that have waited longer."""
        if device not in self._waiting:
            return len(self._waiting)
        return next(at for at, name in enumerate(self._waiting) if name == device)

    def _wait(self, device: str, now: float, ahead: int) -> float:
        free = self._limit - len(self._active)
        due = (ahead - free + 1) * self._usual_seconds / self._limit
        longest = FRONT_RETRY_SECONDS if ahead < self._limit else MAX_RETRY_SECONDS
        retry = min(longest, max(MIN_RETRY_SECONDS, due))
        if device in self._waiting or len(self._waiting) < MAX_WAITING:
            self._waiting[device] = now + retry + LATE_SECONDS
        return retry

    def _sweep(self, now: float) -> None:
        ended = [device for device, (_, until) in self._active.items() if until <= now]
        for device in ended:
            since, until = self._active.pop(device)
            self._usual_seconds += 0.1 * (until - since - self._usual_seconds)
        if now - self._swept >= 1.0:
            self._swept = now
            self._waiting = {device: until for device, until in self._waiting.items() if until > now}
