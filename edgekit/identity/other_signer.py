"""Recognizes another controller that signs assignments for the same devices, from another database. Pure rules.

Each of the two would go on above the version of the other one, several times a second, and the devices would follow
and write each version to their disks. A shared database is the way to have two controllers.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec

AT_ONCE = 2  # after a restore of the database a device is ahead once, or twice if it was restored again
FIRST_WAIT_SECONDS = 60.0
MAX_WAIT_SECONDS = 3600.0
FORGET_SECONDS = 4 * MAX_WAIT_SECONDS
MAX_DEVICES = 100_000


class _Ahead(msgspec.Struct, frozen=True):
    """How often a device was ahead, when it was last (wall clock seconds), and from when on it is answered again."""

    times: int
    at: float
    again: float


class OtherSigner:
    """Counts how often each device had accepted an assignment that was not signed here."""

    def __init__(self) -> None:
        self._ahead: OrderedDict[str, _Ahead] = OrderedDict()

    def may_answer(self, device: str, now: float) -> bool:
        """True if a version above the device's may be signed at `now` (wall clock seconds); later ones wait longer."""
        known = self._known(device, now)
        return known is None or now >= known.again

    def note(self, device: str, now: float) -> int:
        """Note that a version above the device's is signed; returns how often since it was quiet for hours."""
        known = self._known(device, now)
        times = known.times + 1 if known else 1
        wait = (
            min(MAX_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2.0 ** min(times - AT_ONCE - 1, 10)) if times > AT_ONCE else 0.0
        )
        self._ahead[device] = _Ahead(times, now, now + wait)
        self._ahead.move_to_end(device)
        if len(self._ahead) > MAX_DEVICES:
            self._ahead.popitem(last=False)
        return times

    def _known(self, device: str, now: float) -> _Ahead | None:
        known = self._ahead.get(device)
        return known if known is not None and known.at <= now < known.at + FORGET_SECONDS else None
