"""Leases: how many devices may fetch blocks at one time.

A broker keeps what a slow device has not read yet, and tells nobody. At most one window of blocks is under way to each
device, so a budget of bytes is a number of places. Who finds none is told when to ask again, and has its turn before
those who came later.
"""

from __future__ import annotations

from edgekit.bundle.manifest import BLOCK_BYTES

WINDOW_BLOCKS = 16
IDLE_SECONDS = 10.0  # a lease ends when its device has asked for nothing for so long
LAST_SECONDS = 1.0  # the same, once it has asked for the last block of a blob
LATE_SECONDS = 10.0  # who does not come back for so long after its time has lost its turn
MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 0.25, 15.0
FRONT_RETRY_SECONDS = 1.0  # the next in turn ask this often, so that no place stays empty for long
MAX_WAITING = 10_000


def places_within(budget_bytes: int) -> int:
    """Devices that may be served at one time, a window each; at least one."""
    return max(1, budget_bytes // (WINDOW_BLOCKS * BLOCK_BYTES))


class Leases:
    """Who may fetch, and who waits, in the order of their first request.

    Args:
        places: Leases at one time.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._held: dict[str, tuple[float, float]] = {}  # device -> (since, until)
        self._waiting: dict[str, float] = {}  # device -> by when it must have asked again
        self._usual_seconds = 2.0
        self._swept = float("-inf")

    @property
    def held(self) -> int:
        """Leases that were not over at the last request."""
        return len(self._held)

    @property
    def waiting(self) -> int:
        """Devices that were told to ask again."""
        return len(self._waiting)

    def ask(self, device: str, now: float, *, last: bool = False) -> float:
        """Take or renew a lease.

        Args:
            device: Who asks.
            now: Monotonic seconds.
            last: This request is for the last blocks of a blob.

        Returns:
            0 when it may fetch, else after how many seconds to ask again.
        """
        self._sweep(now)
        since, _ = self._held.get(device, (now, 0.0))
        if device not in self._held:
            ahead = self._ahead(device)
            if ahead >= self._places - len(self._held):
                return self._wait(device, now, ahead)
            self._waiting.pop(device, None)
        self._held[device] = (since, now + (LAST_SECONDS if last else IDLE_SECONDS))
        return 0.0

    def release(self, device: str, now: float) -> None:
        """A device fetches nothing now, and does not wait for it either."""
        self._waiting.pop(device, None)
        if device in self._held:
            self._held[device] = (self._held[device][0], min(now, self._held[device][1]))

    def _ahead(self, device: str) -> int:
        """How many have been waiting for longer."""
        if device not in self._waiting:
            return len(self._waiting)
        return next(at for at, name in enumerate(self._waiting) if name == device)

    def _wait(self, device: str, now: float, ahead: int) -> float:
        free = self._places - len(self._held)
        due = (ahead - free + 1) * self._usual_seconds / self._places
        most = FRONT_RETRY_SECONDS if ahead < self._places else MAX_RETRY_SECONDS
        retry = min(most, max(MIN_RETRY_SECONDS, due))
        if device in self._waiting or len(self._waiting) < MAX_WAITING:
            self._waiting[device] = now + retry + LATE_SECONDS
        return retry

    def _sweep(self, now: float) -> None:
        over = [device for device, (_, until) in self._held.items() if until <= now]
        for device in over:
            since, until = self._held.pop(device)
            self._usual_seconds += 0.1 * (until - since - self._usual_seconds)
        if now - self._swept >= 1.0:
            self._swept = now
            self._waiting = {device: until for device, until in self._waiting.items() if until > now}
