"""The controller: runs the rollout, block, metadata and device services of one fleet."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from securesystemslib.signer import CryptoSigner

from edgekit.controller.blocks import BlockService
from edgekit.controller.certificates import CertificateWatch
from edgekit.controller.clocks import MAX_DIFFERENCE_SECONDS
from edgekit.controller.devices import DeviceService
from edgekit.controller.director import Director
from edgekit.controller.health import HealthService
from edgekit.controller.hints import HintService
from edgekit.controller.joins import JoinService
from edgekit.controller.leadership import Leadership, controller_name
from edgekit.controller.metadata import MetadataService
from edgekit.controller.refusals import RefusalService
from edgekit.controller.rollouts import RolloutService
from edgekit.controller.samples import SampleService
from edgekit.controller.standing import StandingService
from edgekit.controller.webhooks import Post, WebhookService, no_post
from edgekit.errors import EdgekitError, TransportError
from edgekit.mqtt.limits import packet_fault
from edgekit.protocols import Clock, Store, Transport
from edgekit.registry import RegistryReader
from edgekit.waiting import within

if TYPE_CHECKING:
    from edgekit.state import FleetState, Work

log = logging.getLogger(__name__)


class ControllerOptions(msgspec.Struct, frozen=True):
    """Options of a controller.

    Attributes:
        tick_seconds: Time between two rounds.
        assignment_days: Lifetime of an assignment.
        quarantine_clones: Put a name that two devices use into quarantine.
        broker_budget_bytes: Bytes of blocks that may be on the way to devices at one time.
        timestamp_check_seconds: Time between two checks of the registry's timestamp.
        telemetry_days: How long roll-ups of telemetry are kept.
        sample_quota_bytes: Most bytes of the samples of one device.
        sample_days: How long samples are kept after their arrival.
    """

    tick_seconds: float = 0.5
    assignment_days: int = 30
    broker_budget_bytes: int = 16 * 1024**2
    timestamp_check_seconds: float = 600.0
    quarantine_clones: bool = False
    telemetry_days: int = 14
    sample_quota_bytes: int = 256 * 1024**2
    sample_days: int = 90


class Controller:
    """Serves one fleet. Several controllers may serve the same fleet with one database and one store.

    All of them answer requests, enroll devices and serve their API. Only the leader stores what devices send, advances
    rollouts, signs, publishes, judges telemetry and posts webhooks.

    Args:
        fleet: Name of the fleet.
        transport: Connection to the broker, not started yet.
        state: The fleet's database.
        store: The registry's store, from which blocks and metadata are served.
        reader: Verified reader of the registry.
        director: Signs assignments and commands.
        clock: Time.
        options: Options; None takes the defaults.
        renew_timestamp: Signs the registry's timestamp again when it is due or was signed in the future; without its
            keys, only warns about the latter. None checks nothing.
        blob_urls: Returns the HTTP URLs of a blob for its digest; called in a thread.
        post: Posts to receivers of webhooks; without it, webhooks wait for another controller.
        joins: Enrolls devices with codes and renews certificates; None where the fleet has no authority of its own.
        load_director: Loads the director's key that the registry trusts now; called in a thread after a rotation.

    Attributes:
        leadership: Says whether this controller leads.
        tick_errors: Parts of rounds that failed; the next round repeats them.
    """

    def __init__(
        self,
        *,
        fleet: str,
        transport: Transport,
        state: FleetState,
        store: Store,
        reader: RegistryReader,
        director: CryptoSigner,
        clock: Clock,
        options: ControllerOptions | None = None,
        renew_timestamp: Callable[[], object] | None = None,
        blob_urls: Callable[[str], Sequence[str]] = lambda digest: (),
        post: Post = no_post,
        joins: JoinService | None = None,
        load_director: Callable[[], CryptoSigner] | None = None,
    ) -> None:
        self._transport, self._state = transport, state
        self._clock = clock
        self._options = options = options or ControllerOptions()
        self._renew_timestamp = renew_timestamp
        self._timestamp_checked = float("-inf")
        self._clock_offset = clock.wall() - clock.monotonic()
        self.tick_errors = 0
        self._joins = joins
        self.leadership = Leadership(state=state, lock=state.leader_lock(), clock=clock, name=controller_name())
        self.director = Director(director, reader=reader, clock=clock, load=load_director)
        self.refusals = RefusalService(
            fleet=fleet, transport=transport, state=state, clock=clock, director=self.director
        )
        self.blocks = BlockService(
            fleet=fleet,
            transport=transport,
            store=store,
            clock=clock,
            broker_budget_bytes=options.broker_budget_bytes,
            urls=blob_urls,
            refused=self.refusals.reason,
            answers_here=self._answers_here,
        )
        self.metadata = MetadataService(
            fleet=fleet, transport=transport, store=store, clock=clock, answers_here=self._answers_here
        )
        self.devices = DeviceService(
            fleet=fleet,
            transport=transport,
            state=state,
            clock=clock,
            director=self.director,
            refusals=self.refusals,
            quarantine_clones=options.quarantine_clones,
            leading=self._leads,
        )
        if joins is not None:
            joins.check_clock(lambda: self.devices.clocks.difference(clock.monotonic()).message)
        self.samples = self._make_samples(fleet, store)
        self.hints = HintService(fleet=fleet, transport=transport)
        self._add_leader_services(state.fenced(self.leadership.check), reader, post)

    def _add_leader_services(self, state: FleetState, reader: RegistryReader, post: Post) -> None:
        """The services that only the leader runs; `state` refuses writes of a controller that does not lead."""
        clock, options = self._clock, self._options
        self.rollouts = RolloutService(
            fleet=state.fleet,
            transport=self._transport,
            state=state,
            reader=reader,
            clock=clock,
            director=self.director,
            leading=self._leads,
            assignment_seconds=options.assignment_days * 86_400.0,
            tick_seconds=options.tick_seconds,
        )
        self.standing = StandingService(state=state, reader=reader, clock=clock)
        self.webhooks = WebhookService(state=state, clock=clock, post=post, leading=self._leads)
        self.health = HealthService(state=state, clock=clock, telemetry_days=options.telemetry_days)
        self.certificates = CertificateWatch(state=state, clock=clock)

    def _make_samples(self, fleet: str, store: Store) -> SampleService:
        return SampleService(
            fleet=fleet,
            transport=self._transport,
            store=store,
            clock=self._clock,
            devices=self.devices,
            refusals=self.refusals,
            quota_bytes=self._options.sample_quota_bytes,
            days=self._options.sample_days,
            leading=self._leads,
        )

    def values(self) -> dict[str, float]:
        """The controller's own counters and present values, for its metrics."""
        return {
            "connected": float(self._transport.connected),
            "leading": float(self.leadership.leading),
            "transfers": self.blocks.leases.active,
            "broadcasts_total": self.blocks.broadcasts.started,
            "broadcast_blocks_total": self.blocks.broadcasts.blocks_sent,
            "webhook_deliveries_total": self.webhooks.deliveries,
            "webhook_failures_total": self.webhooks.failures,
            "tick_errors_total": self.tick_errors,
            "dropped_messages_total": self.devices.inbox.dropped,
            "failed_messages_total": self.devices.inbox.failures,
            "samples_stored_total": self.samples.counts["stored"],
            "sample_bytes_stored_total": self.samples.counts["stored_bytes"],
            "samples_refused_total": self.samples.counts["refused"],
            "samples_full_total": self.samples.counts["full"],
            "samples_expired_total": self.samples.counts["expired"],
        }

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set; retries while the broker, the store or the database cannot be reached.

        Raises:
            RefusedError: another controller runs with this database, which serves only one.
        """
        services: list[Any] = [self.blocks, self.metadata, self.devices, self.samples, self.webhooks]
        services += [self._joins] if self._joins is not None else []
        self._transport.on_connection(self.rollouts.connection_changed)
        self._transport.on_connection(self._check_packets)
        self._transport.on_connection(self.hints.connection_changed)
        for listener in (self.rollouts.connection_changed, self.hints.connection_changed, self.devices.leading_changed):
            self.leadership.on_change(listener)
        await self.leadership.start()
        for service in services:
            await service.start()
        await self._transport.start()
        try:
            while not stop.is_set():
                await self.tick()
                try:
                    await within(self._options.tick_seconds, stop.wait())
                except asyncio.TimeoutError:
                    continue
        finally:
            for service in services:
                await service.stop()
            await self._transport.stop()
            await self.leadership.stop()

    def _leads(self) -> bool:
        return self.leadership.leading

    def _answers_here(self) -> bool:
        """False where every controller gets every request, and the leader answers it."""
        return self._transport.shares or self.leadership.leading

    def _check_packets(self, connected: bool) -> None:
        if connected and (fault := packet_fault(self._transport.packet_limit)):
            log.error("%s", fault)

    async def tick(self) -> None:
        """Do one round of the work that is due; the next round repeats what failed."""
        await self._guarded(self.refusals.look)
        if not self.leadership.leading:
            return
        await self._guarded(self._check_timestamp)
        if self.director.due:
            await self._guarded(lambda: asyncio.to_thread(self.director.look))
        if self.director.trusted:
            await self._guarded(self._do_work)
        for survey in (self.health.tick, self.samples.tick, self.certificates.tick):
            if self.leadership.leading:
                await self._guarded(survey)

    async def _do_work(self) -> None:
        """Look once for what there is to do, and do it."""
        work = await asyncio.to_thread(self._state.work.look, self._clock.wall(), self.rollouts.renew_before)
        parts: tuple[Callable[[], Awaitable[None]], ...] = (
            lambda: self.rollouts.tick(work),
            lambda: self.standing.tick(work.change),
            lambda: self._publish(work),
        )
        for part in parts:
            if self.leadership.leading:
                await self._guarded(part)

    async def _guarded(self, part: Callable[[], Awaitable[None]]) -> None:
        """Do one part of a round; its error stops no other part."""
        try:
            await part()
        except TransportError as error:
            log.info("the broker accepts no message now: %s", error)
        except EdgekitError as error:
            self.tick_errors += 1
            log.warning("%s", error)
        except Exception:  # supervision boundary, counted: an unexpected error must not end the controller
            self.tick_errors += 1
            log.exception("a round of the controller failed")

    async def _publish(self, work: Work) -> None:
        if self._transport.connected:
            # Hints before assignments, so that a paused fleet begins nothing.
            await self.hints.publish(work.pause, work.devices)
            await self.rollouts.publish(work)
            if work.commands:
                await self.devices.send_commands()
            await self.devices.send_notices()
            await self.refusals.tick()

    async def _check_timestamp(self) -> None:
        now, wall = self._clock.monotonic(), self._clock.wall()
        was_set = abs(wall - now - self._clock_offset) > MAX_DIFFERENCE_SECONDS
        if not was_set and now - self._timestamp_checked < self._options.timestamp_check_seconds:
            return
        if was_set and self._timestamp_checked > float("-inf"):
            log.warning("the clock of this machine was set; the registry's metadata is compared with it")
            self.devices.clocks.clear()
        self._clock_offset = wall - now
        self._timestamp_checked = now
        if message := self.devices.clocks.difference(now).message:
            log.warning("%s", message)
        if self._renew_timestamp is not None:
            await asyncio.to_thread(self._renew_timestamp)
