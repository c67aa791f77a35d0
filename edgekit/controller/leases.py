"""Leases: limit the bytes of blocks that are on the way to devices at one time.

A broker buffers what a slow device has not read yet, and the controller cannot see that. At most one window of blocks
is on the way to each device, and less where it misses less of a blob. A device for which the budget has no room gets a
time to retry, and its turn comes before that of later devices. A request for a few last blocks takes no turn: it waits
only while its own bytes have no room.
"""

from __future__ import annotations

from typing import NamedTuple

from edgekit.bundle.manifest import BLOCK_BYTES

WINDOW_BLOCKS = 16
WINDOW_BYTES = WINDOW_BLOCKS * BLOCK_BYTES
SMALL_BYTES = BLOCK_BYTES  # such as a manifest, or a block that a broadcast has lost
LEASE_IDLE_SECONDS = 10.0  # a lease ends when its device has sent no request for this long
LAST_SECONDS = 1.0  # the same, after a request for the last blocks of a blob
LATE_SECONDS = 10.0  # a device loses its turn when it is this late with its retry
MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 0.25, 15.0
FRONT_RETRY_SECONDS = 1.0  # the next devices in turn retry this often, so that a free lease is soon used
MAX_WAITING = 10_000


class _Lease(NamedTuple):
    """A lease: its begin and end in monotonic seconds, and the bytes that may be on the way to its device."""

    since: float
    until: float
    size: int


class _Wait(NamedTuple):
    """A device that waits: the monotonic seconds by which it must retry, and the bytes that it will need."""

    until: float
    size: int


class Leases:
    """Devices that may fetch now, and devices that wait, in the order of their first request.

    Args:
        budget_bytes: Bytes that may be on the way to all devices. One window is always allowed.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget = max(WINDOW_BYTES, budget_bytes)
        self._used = 0
        self._active: dict[str, _Lease] = {}
        self._waiting: dict[str, _Wait] = {}
        self._usual_seconds = 2.0
        self._swept = float("-inf")

    @property
    def active(self) -> int:
        """Number of leases that had not ended at the last request."""
        return len(self._active)

    @property
    def bytes(self) -> int:
        """Bytes that may be on the way to the devices of these leases."""
        return self._used

    @property
    def waiting(self) -> int:
        """Number of devices that wait for a lease."""
        return len(self._waiting)

    def request(self, device: str, now: float, *, size: int = WINDOW_BYTES, last: bool = False) -> float:
        """Take or renew a lease.

        Args:
            device: Name of the device.
            now: Monotonic seconds.
            size: Bytes that the device misses, of which at most a window counts.
            last: The device requests the last blocks of a blob.

        Returns:
            0 if the device may fetch, otherwise the seconds after which it should retry.
        """
        self._sweep(now)
        lease = self._active.get(device, _Lease(now, now, 0))
        size = max(1, lease.size, min(size, WINDOW_BYTES))
        more = size - lease.size
        if more:
            ahead = 0 if last and more <= SMALL_BYTES else self._ahead(device)
            if ahead + more > self._budget - self._used:
                return self._wait(device, now, more, ahead)
            self._waiting.pop(device, None)
            self._used += more
        self._active[device] = _Lease(lease.since, now + (LAST_SECONDS if last else LEASE_IDLE_SECONDS), size)
        return 0.0

    def release(self, device: str, now: float) -> None:
        """End the device's lease or its wait."""
        self._waiting.pop(device, None)
        lease = self._active.get(device)
        if lease is not None:
            self._active[device] = lease._replace(until=min(now, lease.until))

    def _ahead(self, device: str) -> int:
        """Bytes that devices need that have waited longer."""
        ahead = 0
        for name, wait in self._waiting.items():
            if name == device:
                break
            ahead += wait.size
        return ahead

    def _wait(self, device: str, now: float, size: int, ahead: int) -> float:
        due = (ahead + size - (self._budget - self._used)) / self._budget * self._usual_seconds
        longest = FRONT_RETRY_SECONDS if ahead < self._budget else MAX_RETRY_SECONDS
        retry = min(longest, max(MIN_RETRY_SECONDS, due))
        if device in self._waiting or len(self._waiting) < MAX_WAITING:
            self._waiting[device] = _Wait(now + retry + LATE_SECONDS, size)
        return retry

    def _sweep(self, now: float) -> None:
        for device in [device for device, lease in self._active.items() if lease.until <= now]:
            lease = self._active.pop(device)
            self._used -= lease.size
            self._usual_seconds += 0.1 * (lease.until - lease.since - self._usual_seconds)
        if now - self._swept >= 1.0:
            self._swept = now
            self._waiting = {device: wait for device, wait in self._waiting.items() if wait.until > now}
