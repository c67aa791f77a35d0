"""The certificate watch: warns before the certificates of brokers and controllers end. Devices renew their own."""

from __future__ import annotations

import asyncio
import datetime
import logging
from typing import TYPE_CHECKING

from edgekit.mqtt.topics import CONTROLLER
from edgekit.protocols import Clock

if TYPE_CHECKING:
    from edgekit.state import FleetState

log = logging.getLogger(__name__)

DAY_SECONDS = 86_400.0
WARN_SECONDS = 30 * DAY_SECONDS


class CertificateWatch:
    """Warns once a day of certificates that the fleet's authority has signed and nobody has replaced.

    Args:
        state, clock: As Controller.
    """

    def __init__(self, *, state: FleetState, clock: Clock) -> None:
        self._state, self._clock = state, clock
        self._looked = float("-inf")

    async def tick(self) -> None:
        """Look, if the last look was a day ago. Raises UnavailableError without the database."""
        now = self._clock.monotonic()
        if now - self._looked < DAY_SECONDS:
            return
        found = await asyncio.to_thread(self._state.certificates.ending, self._clock.wall(), WARN_SECONDS)
        self._looked = now
        for name, expires in found:
            log.warning("%s", ending_text(name, expires, self._clock.wall()))


def ending_text(name: str, expires: float, now: float) -> str:
    """The warning about one certificate; times are wall clock seconds."""
    day = datetime.datetime.fromtimestamp(expires, datetime.timezone.utc).strftime("%Y-%m-%d")
    verb, command = "ended" if expires <= now else "ends", CONTROLLER if name == CONTROLLER else f"broker {name}"
    return f"the certificate of {name} {verb} on {day}; make a new one: edgekit ca {command} -o NEW-FOLDER"
