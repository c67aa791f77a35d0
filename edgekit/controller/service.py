"""The controller: joins rollouts, the block and metadata services, and what devices say."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec
from securesystemslib.signer import CryptoSigner

from edgekit.controller.blocks import BlockService
from edgekit.controller.devices import DeviceService
from edgekit.controller.metadata import MetadataService
from edgekit.controller.rollouts import RolloutService
from edgekit.errors import EdgekitError, TransportError
from edgekit.protocols import Clock, Store, Transport
from edgekit.registry import RegistryReader
from edgekit.waiting import within

if TYPE_CHECKING:
    from edgekit.state import FleetState

log = logging.getLogger(__name__)


class ControllerOptions(msgspec.Struct, frozen=True):
    """What a controller is set to.

    Attributes:
        tick_seconds: How often rollouts are looked at.
        assignment_days: How long an assignment is valid.
        broker_budget_bytes: Blocks that may be under way to devices at one time.
        freshen_seconds: How often the registry's timestamp is looked at.
    """

    tick_seconds: float = 0.5
    assignment_days: int = 30
    broker_budget_bytes: int = 16 * 1024**2
    freshen_seconds: float = 3600.0


class Controller:
    """Serves one fleet; several controllers may serve the same one over one database and one store.

    Args:
        fleet: Its name.
        transport: Not started yet.
        state: The fleet's database.
        store: The registry's store, which blocks and metadata are served from.
        reader: The registry, verified.
        director: Signs assignments and commands.
        clock: Time.
        options: Its settings.
        blob_urls: Where devices can have a blob by HTTP range, by its digest; called in a thread.
        freshen: Signs the registry's timestamp anew when it is due; None where its keys are not here.

    Attributes:
        tick_errors: Rounds that failed and were done again.
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
        freshen: Callable[[], object] | None = None,
        blob_urls: Callable[[str], Sequence[str]] = lambda digest: (),
    ) -> None:
        self._transport = transport
        self._clock = clock
        self._options = options = options or ControllerOptions()
        self._freshen = freshen
        self._freshened = float("-inf")
        self.tick_errors = 0
        self.blocks = BlockService(
            fleet=fleet,
            transport=transport,
            store=store,
            clock=clock,
            broker_budget_bytes=options.broker_budget_bytes,
            urls=blob_urls,
        )
        self.metadata = MetadataService(fleet=fleet, transport=transport, store=store)
        self.devices = DeviceService(fleet=fleet, transport=transport, state=state, clock=clock, director=director)
        self.rollouts = RolloutService(
            fleet=fleet,
            transport=transport,
            state=state,
            reader=reader,
            clock=clock,
            director=director,
            assignment_seconds=options.assignment_days * 86_400.0,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set; a broker, store or database that is away is waited for."""
        services = (self.blocks, self.metadata, self.devices)
        self._transport.on_connection(self.rollouts.connection_changed)
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

    async def tick(self) -> None:
        """One round of everything that is due; what fails is done again in the next."""
        for part in (self._freshen_registry, self.rollouts.tick, self._speak):
            try:
                await part()
            except TransportError as error:
                log.info("the broker takes nothing now: %s", error)
            except EdgekitError as error:
                self.tick_errors += 1
                log.warning("%s", error)
            except Exception:  # supervision boundary: one bad round cannot end the controller
                self.tick_errors += 1
                log.exception("a round of the controller failed")

    async def _speak(self) -> None:
        if self._transport.connected:
            await self.rollouts.publish()
            await self.devices.send_commands()

    async def _freshen_registry(self) -> None:
        if self._freshen is None or self._clock.monotonic() - self._freshened < self._options.freshen_seconds:
            return
        self._freshened = self._clock.monotonic()
        await asyncio.to_thread(self._freshen)
