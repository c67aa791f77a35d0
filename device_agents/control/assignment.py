"""Follows the signed assignment: verifies it, obeys the fleet's hints, and offers its bundles for deployment."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from device_agents.control.events import EventSender
from device_agents.control.link import ControlLink
from device_agents.deployment import UpdateRecord
from edgekit.errors import DataError, DiskError, EdgekitError, ExpiredError, VerificationError
from edgekit.mqtt.messages import Waiting
from edgekit.protocols import Clock
from edgekit.trust.assignment import Assignment
from edgekit.waiting import within

log = logging.getLogger(__name__)

PAUSED = "paused"
RETRY_SECONDS = (1.0, 60.0)  # delay before the second attempt, doubled for each further one, and its limit


class AssignmentFollower:
    """Takes each assignment from the link until it is verified or refused.

    An accepted assignment ends at once the transfers of bundles that it does not name. Its own bundles are offered when
    the fleet's hints allow it. An assignment that arrives meanwhile takes its place.

    Args:
        link: Receives assignments and hints.
        events: Sends events about assignments that are not followed.
        verify: Verifies a payload and notes its version.
        states: Gives the update state of each model.
        withdraw: Ends the transfers of bundles that a verified assignment does not name.
        follow: Offers the bundles of a verified assignment to the updaters.
        clock: Time.
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
        withdraw: Callable[[Assignment], None],
        follow: Callable[[Assignment], None],
        clock: Clock,
        retry_seconds: tuple[float, float] = RETRY_SECONDS,
    ) -> None:
        self._link, self._events = link, events
        self._verify, self._states, self._withdraw, self._follow = verify, states, withdraw, follow
        self._clock, self._retry_seconds = clock, retry_seconds
        self.held: dict[str, Waiting] = {}
        self._accepted: Assignment | None = None  # verified, and not followed yet
        self._payload = b""  # of the last one that was verified
        self._turn = Turn()
        self._followed: tuple[bytes, Assignment] | None = None  # the last payload that was followed
        self._last_event = (b"", "")  # payload and class name of the error

    async def run(self) -> None:
        """Follow assignments until cancelled."""
        first, most = self._retry_seconds
        payload, delay = await self._link.next_desired(), first
        while True:
            retry = await self._accept(payload)
            try:
                await within(delay * random.uniform(0.5, 1.0) if retry else None, self._newer_or_turn())
                payload, delay = await self._link.next_desired(), first
            except asyncio.TimeoutError:
                delay = min(most, delay * 2)

    async def _accept(self, payload: bytes) -> bool:
        """Verify the assignment in `payload`; True when that failed and should be tried again.

        The one that was followed last comes again after each connect. Where all of it runs or is under way, there is
        nothing to do.
        """
        if self._followed is not None and self._followed[0] == payload and self._is_under_way(self._followed[1]):
            return False
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
        self._withdraw(assignment)
        self._accepted, self._payload = assignment, payload
        return False

    async def _newer_or_turn(self) -> None:
        """Wait for a newer assignment; meanwhile, follow the accepted one when its turn comes."""
        newer = asyncio.ensure_future(self._link.desired_arrives())
        turn = asyncio.ensure_future(self._follow_in_turn())
        try:
            await asyncio.wait((newer, turn), return_when=asyncio.FIRST_COMPLETED)
            if turn.done():
                turn.result()
            await newer
        finally:
            newer.cancel()
            turn.cancel()
            await asyncio.gather(newer, turn, return_exceptions=True)

    async def _follow_in_turn(self) -> None:
        assignment = self._accepted
        if assignment is None:
            return
        await self._wait_for_turn(assignment)
        self._accepted, self._turn, self.held = None, Turn(), {}
        self._followed = (self._payload, assignment)
        self._follow(assignment)
        self._link.changed_a_step()  # the steps that follow from it are often quicker, and share its report

    async def _wait_for_turn(self, assignment: Assignment) -> None:
        """Obey the fleet's hints before a change: wait while it is paused, then for a random part of the spread."""
        while wanted := self._changes(assignment):
            self._link.hints_changed.clear()
            hints, now = self._link.hints, self._clock.monotonic()
            self._turn = self._turn.at(now, paused=hints.paused)
            left = None if hints.paused else self._turn.seconds_left(now, hints.spread_seconds)
            if left == 0.0:
                return
            self._hold(wanted if hints.paused else {}, assignment.version)
            with contextlib.suppress(asyncio.TimeoutError):
                await within(left, self._link.hints_changed.wait())

    def _is_under_way(self, assignment: Assignment) -> bool:
        states = self._states()
        for name, digest in self._changes(assignment).items():
            targets = (states[name].deployment, states[name].offered) if name in states else ()
            if not digest or digest not in {target.digest for target in targets if target is not None}:
                return False
        return True

    def _changes(self, assignment: Assignment) -> dict[str, str]:
        """Digests of the bundles that the device does not run, by model; empty for a model that is to be removed."""
        running = {name: state.active.digest if state.active else "" for name, state in self._states().items()}
        removals = dict.fromkeys((name for name in assignment.uninstall if name in running), "")
        wanted = {n: entry.sha256 for n, entry in assignment.entries.items() if running.get(n) != entry.sha256}
        return wanted | removals

    def _hold(self, wanted: Mapping[str, str], version: int) -> None:
        """Report that the deployments of these models wait."""
        before, now = self.held, self._clock.wall()
        if wanted and not before:
            log.info("the fleet is paused; assignment %d waits", version)
        self.held = {
            name: before[name] if name in before and before[name].digest == digest else Waiting(PAUSED, now, digest)
            for name, digest in wanted.items()
        }
        if self.held != before:
            self._link.changed()


class Turn(msgspec.Struct, frozen=True):
    """The device's place in the spread of a change; a newer assignment and new hints do not move it.

    Attributes:
        luck: Its share of the spread, 0 to 1.
        since: Monotonic seconds at which the spread began; None while the fleet is paused.
    """

    luck: float = msgspec.field(default_factory=random.random)
    since: float | None = None

    def at(self, now: float, *, paused: bool) -> Turn:
        """The turn at `now` (monotonic seconds): the spread begins when the fleet is not paused."""
        if paused or self.since is None:
            return msgspec.structs.replace(self, since=None if paused else now)
        return self

    def seconds_left(self, now: float, spread_seconds: float) -> float:
        """Seconds until the device may change; 0.0 when it may."""
        return 0.0 if self.since is None else max(0.0, self.since + self.luck * spread_seconds - now)
