"""Questions to the controllers, and their answers sorted by request id; late, foreign and doubled ones do no harm."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Iterator

from edgekit.errors import DataError, NotFoundError, TransportError, UnavailableError
from edgekit.mqtt import messages, topics
from edgekit.protocols import Handler, Message, Transport
from edgekit.waiting import within

log = logging.getLogger(__name__)

METADATA_TIMEOUT_SECONDS = 5.0
METADATA_ATTEMPTS = 3
MAX_PARTS = 128


class Exchange:
    """The answers to a few requests of one purpose."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self.queue: asyncio.Queue[messages.Answer | None] = asyncio.Queue()
        self.ids: set[str] = set()

    def new_id(self) -> str:
        """A fresh request id whose answers come here."""
        request_id = secrets.token_hex(8)
        self.ids.add(request_id)
        self._answers.waiting[request_id] = self
        return request_id

    async def next(self, timeout_seconds: float) -> messages.Answer:
        """The next answer.

        Raises:
            asyncio.TimeoutError: none came in time.
            TransportError: the agent is stopping.
        """
        answer = await within(timeout_seconds, self.queue.get())
        if answer is None:
            raise TransportError("the agent is stopping")
        return answer


class Answers:
    """One subscription to ``answer/<id>``, shared by all who ask.

    Attributes:
        foreign: Answers that nobody waits for (late, doubled, or not ours).
        malformed: Payloads that are no answer.
    """

    def __init__(self, transport: Transport, *, fleet: str, device: str) -> None:
        self._transport = transport
        self._fleet, self._device = fleet, device
        self._closed = False
        self.waiting: dict[str, Exchange] = {}
        self.foreign = 0
        self.malformed = 0

    async def start(self) -> None:
        """Subscribe; also before the transport has connected."""
        await self._transport.subscribe(topics.answer(self._fleet, self._device), self._arrived, qos=0)

    def close(self) -> None:
        """Fail everybody who waits, now and from now on."""
        self._closed = True
        for exchange in set(self.waiting.values()):
            exchange.queue.put_nowait(None)

    @contextlib.contextmanager
    def exchange(self) -> Iterator[Exchange]:
        """A fresh exchange; on leaving, what still comes for it is foreign.

        Raises:
            TransportError: the agent is stopping.
        """
        if self._closed:
            raise TransportError("the agent is stopping")
        exchange = Exchange(self)
        try:
            yield exchange
        finally:
            for request_id in exchange.ids:
                self.waiting.pop(request_id, None)

    async def ask_blocks(
        self,
        exchange: Exchange,
        digest: str,
        ranges: tuple[messages.Range, ...],
        credit: int,
        left: int,
        *,
        missing: tuple[messages.Range, ...] = (),
        urls: bool = False,
    ) -> str:
        """Ask for blocks and return the request's id. Raises TransportError when it cannot be sent."""
        request = messages.BlocksRequest(exchange.new_id(), digest, ranges, credit, left, missing, urls)
        topic = topics.request(self._fleet, "blocks", self._device)
        await self._transport.publish(topic, messages.encode(request), qos=1, expiry_seconds=30)
        return request.id

    async def listen(self, digest: str, handler: Handler) -> None:
        """Call `handler` for what is broadcast of a blob. Raises TransportError."""
        await self._transport.subscribe(topics.wave(self._fleet, digest), handler, qos=0)

    async def deafen(self, digest: str) -> None:
        """End what `listen` began."""
        await self._transport.unsubscribe(topics.wave(self._fleet, digest))

    async def metadata(self, name: str) -> bytes:
        """One file of the TUF repository.

        Raises:
            NotFoundError: the repository has no such file.
            UnavailableError: nobody answered, or not usefully.
        """
        for _ in range(METADATA_ATTEMPTS):
            with self.exchange() as exchange, contextlib.suppress(asyncio.TimeoutError):
                request = messages.MetadataRequest(exchange.new_id(), name)
                topic = topics.request(self._fleet, "metadata", self._device)
                await self._transport.publish(topic, messages.encode(request), qos=1, expiry_seconds=30)
                return await _collect(exchange, name)
        raise UnavailableError(f"no controller answered the request for {name} ({METADATA_ATTEMPTS} attempts)")

    def _arrived(self, message: Message) -> None:
        try:
            answer = messages.decode(message.payload, messages.Answer)
        except DataError as error:
            self.malformed += 1
            log.warning("an answer was dropped: %s", error)
            return
        exchange = self.waiting.get(answer.id)
        if exchange is None:
            self.foreign += 1
        else:
            exchange.queue.put_nowait(answer)


def check_answer(answer: messages.Answer, what: str) -> None:
    """Raise what an error answer means.

    Raises:
        NotFoundError: what was asked for does not exist.
        UnavailableError: busy.
        DataError: the controller does not take such a request.
    """
    if answer.error == "not-found":
        raise NotFoundError(f"the controller has no {what}: {answer.message}")
    if answer.error == "busy":
        raise UnavailableError(f"the controller is busy and did not send {what}")
    if answer.error:
        raise DataError(f"the controller refused the request for {what}: {answer.error} {answer.message}".rstrip())


async def _collect(exchange: Exchange, name: str) -> bytes:
    parts: dict[int, bytes] = {}
    while True:
        answer = await exchange.next(METADATA_TIMEOUT_SECONDS)
        check_answer(answer, name)
        if not 1 <= answer.total <= MAX_PARTS or not 0 <= answer.index < answer.total:
            raise DataError(f"part {answer.index} of {answer.total} of {name}: expected at most {MAX_PARTS} parts")
        parts[answer.index] = answer.data
        if len(parts) == answer.total:
            return b"".join(parts[index] for index in sorted(parts))
