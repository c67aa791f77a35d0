"""The rollout service: surveys the fleet, steps the rollouts, signs changed assignments and publishes them.

All state that matters is in the database, so a controller can stop at any time and another one continues.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from edgekit.controller.director import Director
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
AGAIN_SECONDS = 30.0
OVERLAP_SECONDS = 10.0  # a report gets its time stamp before its transaction is committed
MISSING_TARGETS_SECONDS = 60.0
PUBLISH_AT_ONCE = 32
SIGN_AT_ONCE = 64  # in one transaction


class _LastSurvey(msgspec.Struct):
    """The last survey of a rollout.

    Attributes:
        revision: Revision of the rollout after it.
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
        tick_seconds: Time between two rounds.
    """

    def __init__(
        self,
        *,
        fleet: str,
        transport: Transport,
        state: FleetState,
        reader: RegistryReader,
        clock: Clock,
        director: Director,
        assignment_seconds: float,
        tick_seconds: float,
        leading: Callable[[], bool] = lambda: True,
    ) -> None:
        self._fleet = fleet
        self._transport = transport
        self._state = state
        self._tick_seconds = tick_seconds
        self._reader = reader
        self._clock = clock
        self._director = director
        self._leading = leading
        self._lifetime = assignment_seconds
        self._surveys: dict[int, _LastSurvey] = {}
        self._watched = (-1.0, 0.0)  # the fleet's latest change at the last look at ended rollouts, and its time
        self._publish_all = True
        self._again: list[str] = []  # devices whose assignments are to be published again
        self._again_at_once = PUBLISH_AT_ONCE
        self._signers_checked = ""  # id of the key that all assignments were compared with
        self._signed = False  # since the last publication

    def connection_changed(self, connected: bool) -> None:
        """Publish all assignments again after a reconnect, because the broker may have lost its retained messages.

        Changed ones come first. The others follow within AGAIN_SECONDS: their devices run already what they name.

        Also when this controller begins to lead: the leader before may have published an older version last.
        """
        self._publish_all = self._publish_all or connected

    @property
    def renew_before(self) -> float:
        """Assignments that expire before this time, in wall clock seconds, are signed again."""
        return self._clock.wall() + self._lifetime / 3

    @property
    def _signer_changed(self) -> bool:
        return self._signers_checked != self._director.signer.public_key.keyid

    async def tick(self, work: Work) -> None:
        """Survey the fleet, step the rollouts and sign assignments.

        Args:
            work: What there is to do.

        Raises:
            UnavailableError: the database did not answer; the next tick repeats the work.
        """
        changed = work.rollouts or work.change != self._watched[0]
        if changed or work.unsigned or self._signer_changed:
            await asyncio.to_thread(self._work, work, changed)

    async def publish(self, work: Work) -> None:
        """Publish the assignments that the broker does not have yet.

        Args:
            work: What there is to do.

        Raises:
            TransportError: the broker cannot be reached; the next call repeats the work.
        """
        changed: list[StoredAssignment] = []
        if self._signed or work.unpublished:
            self._signed = False
            try:
                changed = await asyncio.to_thread(self._state.assignments.unpublished)
                await self._publish_some(changed)
            except EdgekitError:
                self._signed = True
                raise
        if self._publish_all:
            self._publish_all = False
            try:
                names = await asyncio.to_thread(self._state.assignments.names)
            except EdgekitError:
                self._publish_all = True
                raise
            self._again = sorted(set(names) - {one.device for one in changed})
            share = math.ceil(len(names) * self._tick_seconds / AGAIN_SECONDS)
            self._again_at_once = max(PUBLISH_AT_ONCE, share)
        if self._again:
            names = self._again[: self._again_at_once]
            await self._publish_some(await asyncio.to_thread(self._state.assignments.all, names))
            del self._again[: len(names)]

    async def _publish_some(self, stored: Sequence[StoredAssignment]) -> None:
        for at in range(0, len(stored), PUBLISH_AT_ONCE):
            if not self._leading():
                return
            some = [one for one in stored[at : at + PUBLISH_AT_ONCE] if one.payload is not None]
            await asyncio.gather(*(self._publish_one(one.device, one.payload or b"") for one in some))
            published = [(one.device, one.version) for one in some if one.published != one.version]
            await asyncio.to_thread(self._state.assignments.published_all, published)

    async def _publish_one(self, device: str, payload: bytes) -> None:
        try:
            await self._transport.publish(topics.device(self._fleet, device, "desired"), payload, qos=1, retain=True)
        except PacketTooLargeError as error:  # tried again after the next connect, when the broker may accept more
            log.error("the assignment of %s cannot be sent: %s", device, error)
            now = self._clock.wall()
            event = Event(device, "assignment-too-large", now, error=type(error).__name__, message=str(error))
            await asyncio.to_thread(self._state.devices.add_event, event, now)

    def _work(self, work: Work, changed: bool) -> None:
        if changed:
            self._advance(work.change)
        if work.unsigned or work.rollouts or self._signer_changed:
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
            since = last_at - OVERLAP_SECONDS if 0.0 < last_at <= now else 0.0
            for number in self._state.rollouts.watch_ended(now, since):
                log.info("rollout %d has ended, and devices in it have changed since", number)
            self._watched = (change, now)

    def _survey(self, active: ActiveRollout, change: float, now: float) -> None:
        last = self._surveys.get(active.id) or _LastSurvey()
        if _elapsed(last.targets, now) >= MISSING_TARGETS_SECONDS:
            self._fill_targets(active.id, now)
            last.targets = now
        full = last.revision != active.revision or _elapsed(last.full, now) >= FULL_SURVEY_SECONDS
        due = active.wake_at is not None and now >= active.wake_at
        if last.gated and not due and 0 <= now - last.at < GATED_SECONDS:
            return
        if not full and not due and last.change == change:
            return
        since = 0.0 if full else last.at - OVERLAP_SECONDS
        rollout, changed = self._state.rollouts.survey_changes(active.id, now, since)
        if last.state != rollout.state.value:
            text = f"{rollout.state.value} {rollout.reason}".rstrip()
            if rollout.fault:
                log.warning("rollout %d cannot be read and waits for an abort: %s", rollout.id, rollout.fault)
            log.info("rollout %d of %s %s: %s", rollout.id, rollout.model, rollout.version, text)
        self._surveys[active.id] = _LastSurvey(
            revision=active.revision + changed,  # another one means that somebody else has changed the rollout
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
        if self._signer_changed:  # since this controller started, or since they were signed
            keyid = self._director.signer.public_key.keyid
            self._state.assignments.renew_other_signers(keyid)
            self._signers_checked = keyid
        unsigned = self._state.assignments.unsigned(self.renew_before)
        for at in range(0, len(unsigned), SIGN_AT_ONCE):
            if not self._leading():
                return
            with self._state.together():
                for stored in unsigned[at : at + SIGN_AT_ONCE]:
                    self._sign_one(stored, now)
            self._signed = True

    def _sign_one(self, stored: StoredAssignment, now: float) -> None:
        version: int | None = stored.version
        if stored.payload is not None:
            version = self._state.assignments.renew(stored.device, stored.version)
        if version is None:
            return
        expires = float(math.floor(now + self._lifetime))
        assignment = Assignment(
            device=stored.device,
            fleet=self._fleet,
            version=version,
            expires=expires,
            entries=stored.entries,
            uninstall=stored.uninstall,
        )
        payload = sign_assignment(assignment, self._director.signer)
        self._state.assignments.signed(stored.device, version, payload, expires)


def _elapsed(since: float, now: float) -> float:
    """Wall clock seconds since a time; no end of them where the clock was set back, so that everything is due."""
    return now - since if since <= now else math.inf
