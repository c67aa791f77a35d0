"""Tells removed and quarantined devices once that they are refused, and clears what the broker retains of them."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING

from edgekit.controller.director import Director
from edgekit.mqtt import topics
from edgekit.mqtt.messages import NOTICE, QUARANTINED, REMOVED, Answer, Notice, encode
from edgekit.protocols import Clock, Transport
from edgekit.trust.envelopes import seal

if TYPE_CHECKING:
    from edgekit.state import FleetState, Refused

log = logging.getLogger(__name__)

REFRESH_SECONDS = 2.0
RETAINED = ("desired", "reported", "presence")


class RefusalService:
    """Knows the devices that are refused.

    Args:
        fleet, transport, state, clock: As Controller.
        director: Signs the notices.

    Attributes:
        refused: Removed and quarantined devices by name, as they were at the last look.
    """

    def __init__(
        self, *, fleet: str, transport: Transport, state: FleetState, clock: Clock, director: Director
    ) -> None:
        self._fleet, self._transport, self._state, self._clock = fleet, transport, state, clock
        self._director = director
        self._looked = float("-inf")
        self._cleared: set[str] = set()
        self._heard: deque[str] = deque(maxlen=1000)
        self.refused: dict[str, Refused] = {}

    def reason(self, device: str) -> str:
        """Why a device gets nothing, for people; empty for a device that is served."""
        found = self.refused.get(device)
        return found.reason if found else ""

    def heard(self, device: str) -> None:
        """Note that a refused device sent a message, in any thread; `tick` tells it if it was not told."""
        self._heard.append(device)

    async def look(self) -> None:
        """Look for refused devices, if the last look was a while ago. Raises UnavailableError without the database."""
        now = self._clock.monotonic()
        if now - self._looked >= REFRESH_SECONDS:
            self.refused = await asyncio.to_thread(self._state.lifecycle.refused)
            self._looked = now

    async def tick(self) -> None:
        """Clear the retained messages of removed devices, and tell the refused ones that were heard.

        Raises:
            TransportError: the broker cannot be reached; the next tick repeats the work.
        """
        for one in [one for one in self.refused.values() if one.removed and one.device not in self._cleared]:
            for kind in RETAINED:
                await self._transport.publish(topics.device(self._fleet, one.device, kind), b"", qos=1, retain=True)
            self._cleared.add(one.device)
        self._cleared &= self.refused.keys()
        while self._heard:
            found = self.refused.get(self._heard.popleft())
            if found is not None and found.removed:
                self._cleared.discard(found.device)  # the broker retains what it sent: cleared in the next round
            if found is not None and not found.told:
                await self._tell(found)

    async def _tell(self, one: Refused) -> None:
        message = f"{one.device} gets no bundles and no commands: {one.reason}"
        if one.removed:
            message += ". Enroll it anew, under a new name or with a new key, and replace its folder"
        kind = REMOVED if one.removed else QUARANTINED
        notice = Notice(one.device, self._fleet, kind, self._clock.wall(), message)
        answer = Answer(id=NOTICE, data=seal(notice, self._director.signer))
        await self._transport.publish(topics.answer(self._fleet, one.device), encode(answer), qos=1)
        await asyncio.to_thread(self._state.lifecycle.told, one.device)
        self.refused[one.device] = type(one)(one.device, one.removed, one.reason, True)
        log.info("%s was told that it is refused: %s", one.device, one.reason)
