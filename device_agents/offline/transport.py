"""A Transport that answers the requests of one device from an update file, and keeps what the device sends."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterator

from edgekit.bundle.manifest import BLOCK_BYTES, SHA256
from edgekit.errors import DataError, DiskError, EdgekitError, NotFoundError
from edgekit.mqtt import messages, topics
from edgekit.protocols import Handler, Message
from edgekit.update_file import UpdateFile

log = logging.getLogger(__name__)


class FileTransport:
    """The other end of a device's connection, played by an update file.

    Args:
        file: The file.
        fleet, device: Names of the fleet and of the device.

    Attributes:
        events: Events that the device sent.
        blocks_sent: Blocks that were read from the file.
        fault: Why the file cannot be read any more, as when its stick was pulled out; None if it can.
    """

    def __init__(self, file: UpdateFile, fleet: str, device: str) -> None:
        self._file, self._fleet, self._device = file, fleet, device
        self._handlers: dict[str, Handler] = {}
        self._listeners: list[Callable[[bool], None]] = []
        self._started = asyncio.Event()
        self.events: list[messages.Event] = []
        self.blocks_sent = 0
        self.fault: DiskError | None = None

    @property
    def connected(self) -> bool:
        """True from the start to the stop."""
        return self._started.is_set()

    @property
    def shares(self) -> bool:
        """False: there is one client."""
        return False

    @property
    def packet_limit(self) -> int:
        """0: a file has no limit."""
        return 0

    @property
    def takeovers(self) -> int:
        """None: nobody else uses the file as this device."""
        return 0

    async def start(self) -> None:
        """Be connected."""
        self._started.set()
        for listener in self._listeners:
            listener(True)

    async def wait_connected(self, timeout_seconds: float) -> None:
        """Wait for the start."""
        await self._started.wait()

    async def stop(self) -> None:
        """Be disconnected."""
        self._started.clear()

    async def publish(
        self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False, expiry_seconds: int | None = None
    ) -> None:
        """Answer a request, or note an event. Reports are sent over the network later."""
        request = topics.parse_request(topic)
        if request is not None:
            for answer in self._answers(request.kind, payload):
                self._deliver(topics.answer(self._fleet, self._device), messages.encode(answer))
        elif topic == topics.device(self._fleet, self._device, "event"):
            envelope = messages.decode(payload, messages.Envelope)
            self.events.append(messages.decode(envelope.body, messages.Event))

    async def subscribe(self, topic_filter: str, handler: Handler, *, qos: int = 1, group: str = "") -> None:
        """Call `handler` for what the file answers."""
        self._handlers[topic_filter] = handler

    async def unsubscribe(self, topic_filter: str) -> None:
        """Stop calling a handler."""
        self._handlers.pop(topic_filter, None)

    def on_connection(self, listener: Callable[[bool], None]) -> None:
        """Call `listener` at the start."""
        self._listeners.append(listener)

    def spread_reconnects(self, seconds: float) -> None:
        """Nothing: the file is never lost."""

    def _deliver(self, topic: str, payload: bytes) -> None:
        handler = self._handlers.get(topic)
        if handler is not None:
            asyncio.get_running_loop().call_soon(handler, Message(topic, payload))

    def _answers(self, kind: str, payload: bytes) -> Iterator[messages.Answer]:
        if kind == "metadata":
            request = messages.decode(payload, messages.MetadataRequest)
            yield from self._guarded(request.id, self._metadata(request))
        else:
            wanted = messages.decode(payload, messages.BlocksRequest)
            yield from self._guarded(wanted.id, self._blocks(wanted))

    def _guarded(self, request_id: str, answers: Iterator[messages.Answer]) -> Iterator[messages.Answer]:
        try:
            yield from answers
        except NotFoundError as error:
            yield messages.Answer(request_id, error="not-found", message=str(error))
        except DiskError as error:  # nothing is wrong with the bundle: its deployment waits
            self.fault = error
            yield messages.Answer(request_id, error="busy", message=str(error))
        except EdgekitError as error:
            log.warning("%s", error)
            yield messages.Answer(request_id, error="bad-request", message=str(error))

    def _metadata(self, request: messages.MetadataRequest) -> Iterator[messages.Answer]:
        data = self._file.metadata(request.name)
        parts = [data[at : at + BLOCK_BYTES] for at in range(0, len(data), BLOCK_BYTES)] or [b""]
        for index, part in enumerate(parts):
            yield messages.Answer(request.id, index, len(parts), part)

    def _blocks(self, request: messages.BlocksRequest) -> Iterator[messages.Answer]:
        if not SHA256.fullmatch(request.digest):
            raise DataError("the digest is not 64 lower case hex digits")
        total = -(-self._file.blob_bytes(request.digest) // BLOCK_BYTES)
        wanted = itertools.chain.from_iterable(range(one.first, min(one.last, total) + 1) for one in request.ranges)
        for index in itertools.islice((one for one in wanted if one < total), request.credit):
            self.blocks_sent += 1
            yield messages.Answer(request.id, index, total, self._file.block(request.digest, index))
