"""The rollout service: surveys the fleet, steps the rollouts, signs changed assignments and publishes them.

All state that matters is in the database, so a controller can stop at any time and another one continues.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
from securesystemslib.signer import CryptoSigner

from edgekit.errors import EdgekitError, NotFoundError, PacketTooLargeError, UnavailableError
from edgekit.mqtt import topics
from edgekit.mqtt.messages import Event
from edgekit.protocols import Clock, Transport
from edgekit.registry import RegistryReader
from edgekit.trust.assignment import Assignment, sign_assignment

if TYPE_CHECKING:
    from edgekit.state import ActiveRollout, FleetState, StoredAssignment, Work

log = logging.getLogger(__name__)

FULL_SURVEY_SECONDS = 30.0
GATED_SECONDS = 5.0  # with gates every report is a change; each survey reads the whole rollout
OVERLAP_SECONDS = 10.0  # a report gets its time stamp before its transaction is committed
MISSING_TARGETS_SECONDS = 60.0
PUBLISH_AT_ONCE = 32


class _LastSurvey(msgspec.Struct):
    """The last survey of a rollout.

    Attributes:
        revision: Revision of the rollout before it.
        change: Time of the fleet's latest change then.
        at, full, targets: Times of the last survey, of the last full one, and of the last check for missing bundles.
        state: State of the rollout after it.
        gated: True if the rollout has gates.
    """

    revision: int = -1
    change: float = 0.0
    at: float = 0.0
    full: float = float("-inf")
    targets: float = float("-inf")
    state: str = ""
    gated: bool = False


class RolloutService:
    """Advances every active rollout of a fleet.

    Args:
        fleet, transport, state, reader, clock: As Controller.
        director: Signs assignments.
        leading: False as soon as another controller signs and publishes.
        assignment_seconds: Lifetime of an assignment; it is renewed after two thirds of it.
    """

    def __init__(
        self,
        *,
        fleet: str,
        transport: Transport,
        state: FleetState,
        reader: RegistryReader,
        clock: Clock,
        director: CryptoSigner,
        assignment_seconds: float,
        leading: Callable[[], bool] = lambda: True,
    ) -> None:
        self._fleet = fleet
        self._transport = transport
        self._state = state
        self._reader = reader
        self._clock = clock
        self._director = director
        self._leading = leading
        self._lifetime = assignment_seconds
        self._surveys: dict[int, _LastSurvey] = {}
        self._watched = (-1.0, 0.0)  # the fleet's latest change at the last look at ended rollouts, and its time
        self._publish_all = True
        self._signers_checked = False
        self._signed = False  # since the last publication

    def connection_changed(self, connected: bool) -> None:
        """Publish all assignments again after a reconnect, because the broker may have lost its retained messages.

        Also when this controller begins to lead: the leader before may have published an older version last.
        """
        self._publish_all = self._publish_all or connected

    @property
    def renew_before(self) -> float:
        """Assignments that expire before this time, in wall clock seconds, are signed again."""
        return self._clock.wall() + self._lifetime / 3

    async def tick(self, work: Work) -> None:
        """Survey the fleet, step the rollouts and sign assignments.

        Args:
            work: What there is to do.

        Raises:
            UnavailableError: the database did not answer; the next tick repeats the work.
        """
        changed = work.rollouts or work.change != self._watched[0]
        if changed or work.unsigned or not self._signers_checked:
            await asyncio.to_thread(self._work, work, changed)

    async def publish(self, work: Work) -> None:
        """Publish the assignments that the broker does not have yet.

        Args:
            work: What there is to do.

        Raises:
            TransportError: the broker cannot be reached; the next call repeats the work.
        """
        everything, self._publish_all = self._publish_all, False
        if not (everything or self._signed or work.unpublished):
            return
        try:
            self._signed = False
            table = self._state.assignments
            stored = await asyncio.to_thread(table.all if everything else table.unpublished)
            for at in range(0, len(stored), PUBLISH_AT_ONCE):
                if not self._leading():
                    return
                await asyncio.gather(*map(self._publish_one, stored[at : at + PUBLISH_AT_ONCE]))
        except EdgekitError:
            self._publish_all, self._signed = self._publish_all or everything, True
            raise

    async def _publish_one(self, stored: StoredAssignment) -> None:
        if stored.payload is None:
            return
        topic = topics.device(self._fleet, stored.device, "desired")
        try:
            await self._transport.publish(topic, stored.payload, qos=1, retain=True)
        except PacketTooLargeError as error:  # tried again after the next connect, when the broker may accept more
            log.error("the assignment of %s cannot be sent: %s", stored.device, error)
            now = self._clock.wall()
            event = Event(stored.device, "assignment-too-large", now, error=type(error).__name__, message=str(error))
            await asyncio.to_thread(self._state.devices.add_event, event, now)
        if stored.published != stored.version:
            await asyncio.to_thread(self._state.assignments.published, stored.device, stored.version)

    def _work(self, work: Work, changed: bool) -> None:
        if changed:
            self._advance(work.change)
        if work.unsigned or work.rollouts or not self._signers_checked:
            self._sign()

    def _advance(self, change: float) -> None:
        for active in self._state.rollouts.active():
            try:
                self._survey(active, change, self._clock.wall())
            except UnavailableError:
                raise  # the database does not answer: the next round repeats everything
            except EdgekitError as error:  # one rollout must not stop the others
                log.warning("rollout %d cannot be advanced: %s", active.id, error)
        self._watch_ended(change, self._clock.wall())

    def _watch_ended(self, change: float, now: float) -> None:
        """Note late successes and other changes on the devices of ended rollouts; at the start, all since their end."""
        last_change, last_at = self._watched
        if change != last_change:
            since = last_at - OVERLAP_SECONDS if last_at else 0.0
            for number in self._state.rollouts.watch_ended(now, since):
                log.info("rollout %d has ended, and devices in it have changed since", number)
            self._watched = (change, now)

    def _survey(self, active: ActiveRollout, change: float, now: float) -> None:
        last = self._surveys.get(active.id) or _LastSurvey()
        if now - last.targets >= MISSING_TARGETS_SECONDS:
            self._fill_targets(active.id, now)
            last.targets = now
        full = last.revision != active.revision or now - last.full >= FULL_SURVEY_SECONDS
        due = active.wake_at is not None and now >= active.wake_at
        if last.gated and not due and 0 <= now - last.at < GATED_SECONDS:
            return
        if not full and not due and last.change == change:
            return
        rollout = self._state.rollouts.survey(active.id, now, 0.0 if full else last.at - OVERLAP_SECONDS)
        if last.state != rollout.state.value:
            text = f"{rollout.state.value} {rollout.reason}".rstrip()
            if rollout.fault:
                log.warning("rollout %d cannot be read and waits for an abort: %s", rollout.id, rollout.fault)
            log.info("rollout %d of %s %s: %s", rollout.id, rollout.model, rollout.version, text)
        self._surveys[active.id] = _LastSurvey(
            revision=active.revision,
            change=change,
            at=now,
            full=now if full else last.full,
            targets=last.targets,
            state=rollout.state.value,
            gated=bool(rollout.plan.gates),
        )

    def _fill_targets(self, number: int, now: float) -> None:
        """Find bundles for targets that had none: a device enrolled later, or a bundle was published later."""
        missing = self._state.rollouts.missing_targets(number, now)
        if not missing:
            return
        rollout = self._state.rollouts.get(number)
        try:
            self._reader.refresh()
        except EdgekitError as error:
            log.warning("the registry cannot be read: %s", error)
            return
        for target in missing:
            try:
                release = self._reader.resolve(rollout.model, target, rollout.version)
            except NotFoundError:
                continue
            self._state.rollouts.add_entry(number, target, release.entry, now)

    def _sign(self) -> None:
        now = self._clock.wall()
        if not self._signers_checked:  # the director's key may have changed since they were signed
            self._state.assignments.renew_other_signers(self._director.public_key.keyid)
            self._signers_checked = True
        for stored in self._state.assignments.unsigned(self.renew_before):
            if not self._leading():
                return
            version: int | None = stored.version
            if stored.payload is not None:
                version = self._state.assignments.renew(stored.device, stored.version)
            if version is None:
                continue
            expires = float(math.floor(now + self._lifetime))
            assignment = Assignment(
                device=stored.device,
                fleet=self._fleet,
                version=version,
                expires=expires,
                entries=stored.entries,
                uninstall=stored.uninstall,
            )
            payload = sign_assignment(assignment, self._director)
            self._state.assignments.signed(stored.device, version, payload, expires)
            self._signed = True
