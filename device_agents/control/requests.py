"""Requests to the controllers; answers are matched by request id, and late, foreign or doubled answers are ignored."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Mapping
from typing import NamedTuple

from edgekit.bundle.manifest import BLOCK_BYTES
from edgekit.errors import DataError, NotFoundError, PacketTooLargeError, TransportError, UnavailableError
from edgekit.mqtt import messages, topics
from edgekit.mqtt.limits import part_bytes
from edgekit.mqtt.messages import TOO_LARGE
from edgekit.protocols import Handler, Message, Transport
from edgekit.transfer.part_size import PartSize
from edgekit.waiting import within

log = logging.getLogger(__name__)

METADATA_TIMEOUT_SECONDS = 5.0
METADATA_ATTEMPTS = 3
CERTIFICATE_SECONDS = 20.0
CONNECT_SECONDS = 120.0
MAX_PARTS = 128

Receive = Callable[[messages.Answer | None], None]


class MetadataAnswer(NamedTuple):
    """A metadata file, other files by name, and names of files that the repository does not have."""

    data: bytes
    files: dict[str, bytes]
    absent: set[str]


class PendingRequest:
    """The request ids of one purpose, and the function that receives their answers.

    Args:
        client: The client that sends the requests.
        receive: Called with each answer; with None when the agent stops.

    Raises:
        TransportError: the agent is stopping.
    """

    def __init__(self, client: RequestClient, receive: Receive) -> None:
        if client.closed:
            raise TransportError("the agent is stopping")
        self._client = client
        self._ids: set[str] = set()
        self.receive = receive

    def new_id(self) -> str:
        """A new request id whose answers are received here."""
        request_id = secrets.token_hex(8)
        self.use_id(request_id)
        return request_id

    def use_id(self, request_id: str) -> None:
        """Also receive answers with an id that was given elsewhere."""
        self._ids.add(request_id)
        self._client.waiting[request_id] = self

    def close(self) -> None:
        """Receive no more; answers that still come are foreign."""
        for request_id in self._ids:
            self._client.waiting.pop(request_id, None)


class RequestClient:
    """Sends requests, and shares one subscription to ``answer/<id>`` between them.

    Args:
        transport: Connection to the broker.
        fleet, device: Names of the fleet and of this device.
        metadata_timeout_seconds: How long to wait for each part of a metadata file.

    Attributes:
        closed: True after `close`.
        waiting: Pending requests by request id.
        foreign: Count of answers without a pending request (late, doubled, or of another device).
        malformed: Count of payloads that are not an answer.
        on_unasked: Called with each answer that needs no request: OWN_REPORT and NOTICE.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        fleet: str,
        device: str,
        metadata_timeout_seconds: float = METADATA_TIMEOUT_SECONDS,
    ) -> None:
        self._transport = transport
        self._fleet, self._device = fleet, device
        self._metadata_timeout_seconds = metadata_timeout_seconds
        self.closed = False
        self.waiting: dict[str, PendingRequest] = {}
        self.foreign = 0
        self.malformed = 0
        self.on_unasked: Callable[[messages.Answer], None] = lambda answer: None

    async def start(self) -> None:
        """Subscribe; also before the transport has connected."""
        await self._transport.subscribe(topics.answer(self._fleet, self._device), self._on_answer, qos=0)

    def close(self) -> None:
        """Fail every pending request, and every later one."""
        self.closed = True
        for pending in set(self.waiting.values()):
            pending.receive(None)

    async def request_blocks(
        self,
        pending: PendingRequest,
        digest: str,
        ranges: tuple[messages.Range, ...],
        credit: int,
        left: int,
        *,
        missing: tuple[messages.Range, ...] = (),
        urls: bool = False,
        most: int = BLOCK_BYTES,
    ) -> str:
        """Request blocks of a blob; the arguments are the fields of BlocksRequest. Blocks may come in parts.

        `most` is the largest part in bytes; smaller where the broker says that it accepts less.

        Returns:
            The request id.

        Raises:
            TransportError: the request cannot be sent.
        """
        most = min(most, part_bytes(self._transport.packet_limit))
        listens = missing if most == BLOCK_BYTES else ()  # no broadcast fits into the packets of this broker
        request = messages.BlocksRequest(pending.new_id(), digest, ranges, credit, left, listens, urls, most)
        topic = topics.request(self._fleet, "blocks", self._device)
        await self._transport.publish(topic, messages.encode(request), qos=1, expiry_seconds=30)
        return request.id

    async def subscribe_broadcast(self, digest: str, handler: Handler) -> None:
        """Call `handler` for each message of the broadcast of a blob. Raises TransportError."""
        await self._transport.subscribe(topics.broadcast(self._fleet, digest), handler, qos=0)

    async def unsubscribe_broadcast(self, digest: str) -> None:
        """End a subscription of `subscribe_broadcast`."""
        await self._transport.unsubscribe(topics.broadcast(self._fleet, digest))

    async def metadata(self, name: str) -> bytes:
        """One file of the TUF repository. Raises as `metadata_with`."""
        return (await self.metadata_with(name, {})).data

    async def metadata_with(self, name: str, have: Mapping[str, int]) -> MetadataAnswer:
        """One file of the TUF repository, and newer files of roles.

        Args:
            name: Name of the file.
            have: As `MetadataRequest.have`.

        Raises:
            NotFoundError: the repository has no such file.
            UnavailableError: no controller answered, or none could.
            TransportError: the agent is stopping, or the request cannot be sent.
        """
        size = PartSize()
        for _ in range(METADATA_ATTEMPTS):
            queue: asyncio.Queue[messages.Answer | None] = asyncio.Queue()
            pending = PendingRequest(self, queue.put_nowait)
            with contextlib.closing(pending), contextlib.suppress(asyncio.TimeoutError):
                request = messages.MetadataRequest(pending.new_id(), name, dict(have), size.bytes)
                topic = topics.request(self._fleet, "metadata", self._device)
                await self._transport.publish(topic, messages.encode(request), qos=1, expiry_seconds=30)
                return await self._collect(queue, name)
            size.silent()  # the broker may drop messages of this size without a word
        raise UnavailableError(f"no controller answered the request for {name} ({METADATA_ATTEMPTS} attempts)")

    async def certificate(self, sign: Callable[[str], bytes]) -> bytes:
        """The data of the answer to a request for a certificate; waits CONNECT_SECONDS for a connection to the broker.

        Args:
            sign: Makes the signed request for a request id.

        Raises:
            DataError: the controller refused; the message says why.
            UnavailableError: no controller answered.
            TransportError: the agent is stopping, or the request cannot be sent.
        """
        await self._transport.wait_connected(CONNECT_SECONDS)  # an agent that starts asks before it is connected
        queue: asyncio.Queue[messages.Answer | None] = asyncio.Queue()
        pending = PendingRequest(self, queue.put_nowait)
        with contextlib.closing(pending):
            topic = topics.request(self._fleet, "certificate", self._device)
            await self._transport.publish(topic, sign(pending.new_id()), qos=1, expiry_seconds=60)
            try:
                answer = await within(CERTIFICATE_SECONDS, queue.get())
            except asyncio.TimeoutError:
                raise UnavailableError(
                    f"no controller answered the request for a certificate within {CERTIFICATE_SECONDS:g} s",
                    advice="A controller with the fleet's certificate authority must run.",
                ) from None
        if answer is None:
            raise TransportError("the agent is stopping")
        check_answer(answer, "certificate")
        return answer.data

    async def _collect(self, queue: asyncio.Queue[messages.Answer | None], name: str) -> MetadataAnswer:
        parts: dict[int, bytes] = {}
        files: dict[str, bytes] = {}
        absent: set[str] = set()
        while True:
            answer = await within(self._metadata_timeout_seconds, queue.get())
            if answer is None:
                raise TransportError("the agent is stopping")
            check_answer(answer, name)
            if not 1 <= answer.total <= MAX_PARTS or not 0 <= answer.index < answer.total:
                raise DataError(f"part {answer.index} of {answer.total} of {name}: expected at most {MAX_PARTS} parts")
            parts[answer.index] = answer.data
            files.update(answer.files)
            absent.update(answer.absent)
            if len(parts) == answer.total:
                return MetadataAnswer(b"".join(parts[index] for index in sorted(parts)), files, absent)

    def _on_answer(self, message: Message) -> None:
        try:
            answer = messages.decode(message.payload, messages.Answer)
        except DataError as error:
            self.malformed += 1
            log.warning("an answer was dropped: %s", error)
            return
        if answer.id in (messages.OWN_REPORT, messages.NOTICE):
            self.on_unasked(answer)
            return
        pending = self.waiting.get(answer.id)
        if pending is None:
            self.foreign += 1
        else:
            pending.receive(answer)


def check_answer(answer: messages.Answer, name: str) -> None:
    """Raise the error that an answer carries, if any; `name` is the requested thing, for the message.

    Raises:
        NotFoundError: the requested thing does not exist.
        UnavailableError: the controller is busy.
        PacketTooLargeError: the broker does not accept the answer.
        DataError: the controller refused the request.
    """
    if answer.error == "not-found":
        raise NotFoundError(f"the controller has no {name}: {answer.message}")
    if answer.error == "busy":
        raise UnavailableError(f"the controller is busy and did not send {name}")
    if answer.error == TOO_LARGE:
        raise PacketTooLargeError(
            f"the controller cannot send {name}: {answer.message}",
            advice="Set the broker's maximum packet size, or let blocks come by HTTP (blob_urls of the controller).",
        )
    if answer.error:
        raise DataError(f"the controller refused the request for {name}: {answer.error} {answer.message}".rstrip())
