"""Follows the signed assignment: verifies it, obeys the fleet's hints, and offers its bundles for deployment."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping

from device_agents.control.events import EventSender
from device_agents.control.link import ControlLink
from device_agents.deployment import UpdateRecord
from edgekit.errors import DataError, DiskError, EdgekitError, ExpiredError, VerificationError
from edgekit.mqtt.messages import Waiting
from edgekit.protocols import Clock
from edgekit.trust.assignment import Assignment

log = logging.getLogger(__name__)

PAUSED = "paused"
RETRY_SECONDS = (1.0, 60.0)  # delay before the second attempt, doubled for each further one, and its limit


class AssignmentFollower:
    """Takes each assignment from the link until it is verified or refused.

    Args:
        link: Receives assignments and hints.
        events: Sends events about assignments that are not followed.
        verify: Verifies a payload and notes its version.
        states: Gives the update state of each model.
        follow: Offers the bundles of a verified assignment to the updaters.
        clock: Wall time.
        retry_seconds: As RETRY_SECONDS.

    Attributes:
        held: Models whose deployments wait because the fleet is paused, and since when.
    """

    def __init__(
        self,
        link: ControlLink,
        events: EventSender,
        *,
        verify: Callable[[bytes], Awaitable[Assignment]],
        states: Callable[[], Mapping[str, UpdateRecord]],
        follow: Callable[[Assignment], None],
        clock: Clock,
        retry_seconds: tuple[float, float] = RETRY_SECONDS,
    ) -> None:
        self._link, self._events = link, events
        self._verify, self._states, self._follow = verify, states, follow
        self._clock, self._retry_seconds = clock, retry_seconds
        self.held: dict[str, Waiting] = {}
        self._last_event = (b"", "")  # payload and class name of the error

    async def run(self) -> None:
        """Follow assignments until cancelled."""
        first, most = self._retry_seconds
        payload, delay = await self._link.next_desired(), first
        while True:
            retry = await self._accept(payload)
            try:
                wait = delay * random.uniform(0.5, 1.0) if retry else None
                payload, delay = await self._link.next_desired(wait), first
            except asyncio.TimeoutError:
                delay = min(most, delay * 2)

    async def _accept(self, payload: bytes) -> bool:
        """Follow the assignment in `payload`; True when it failed and should be tried again."""
        try:
            assignment = await self._verify(payload)
        except EdgekitError as error:
            log.warning("the assignment is not followed: %s: %s", type(error).__name__, error)
            refused = isinstance(error, VerificationError)
            # A missing broker or controller comes back by itself. Other errors are sent once per assignment and error.
            this_event = (payload, type(error).__name__)
            if (refused or isinstance(error, DiskError | DataError)) and this_event != self._last_event:
                self._last_event = this_event
                kind = "assignment-refused" if refused else "assignment-delayed"
                self._events.send(kind, "", type(error).__name__, str(error))
            return not refused or isinstance(error, ExpiredError)
        await self._wait_for_turn(assignment)
        self._follow(assignment)
        self._link.changed()
        return False

    async def _wait_for_turn(self, assignment: Assignment) -> None:
        """Obey the fleet's hints before a change: wait while it is paused, then for a random part of the spread."""
        running = {name: state.active.digest if state.active else "" for name, state in self._states().items()}
        if all(running.get(name) == entry.sha256 for name, entry in assignment.entries.items()):
            return
        now = self._clock.wall()
        while self._link.hints.paused:
            log.info("the fleet is paused; assignment %d waits", assignment.version)
            self.held = {
                name: Waiting(PAUSED, now, entry.sha256)
                for name, entry in assignment.entries.items()
                if running.get(name) != entry.sha256
            }
            self._link.changed()
            self._link.hints_changed.clear()
            await self._link.hints_changed.wait()
        self.held = {}
        await asyncio.sleep(random.uniform(0.0, self._link.hints.spread_seconds))
