"""Base of the services that answer devices' requests over MQTT.

Each request is answered in a task of its own, and their number is limited. A bad request gets an error answer and
affects no other request.
"""

from __future__ import annotations

import abc
import asyncio
import collections
import logging
from collections.abc import AsyncIterator, Callable

import msgspec

from edgekit.errors import DataError, NotFoundError, PacketTooLargeError, TransportError, UnavailableError
from edgekit.mqtt import topics
from edgekit.mqtt.messages import TOO_LARGE, Answer, decode, encode
from edgekit.protocols import Message, Transport

log = logging.getLogger(__name__)

GROUP = "controllers"
MAX_OUTSTANDING = 256
MAX_OUTSTANDING_PER_DEVICE = 4
MAX_ID_LENGTH = 64


class BusyError(UnavailableError):
    """The service is busy.

    Args:
        message: The error, for people.
        retry_seconds: Time after which the device should retry.
        broadcast: The device should first listen to a broadcast of the blob.
    """

    def __init__(self, message: str, retry_seconds: float, *, broadcast: bool = False) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds
        self.broadcast = broadcast


class RequestService(abc.ABC):
    """Answers one kind of request on ``answer/<device>`` with QoS 0; the device requests lost answers again.

    Args:
        fleet: Name of the fleet.
        kind: The kind in the topic ``request/<kind>/<device>``.
        transport: Connection to the broker.
        answers_here: False while another controller answers all requests, because the broker does not share them.

    Attributes:
        refused: Requests that got an error answer, by error.
        dropped: Requests that got no answer, because too many were being answered.
        failures: Requests that failed with an unexpected error.
    """

    def __init__(
        self, *, fleet: str, kind: str, transport: Transport, answers_here: Callable[[], bool] = lambda: True
    ) -> None:
        self._fleet = fleet
        self._kind = kind
        self._transport = transport
        self._answers_here = answers_here
        self._tasks: set[asyncio.Task[None]] = set()
        self._outstanding: collections.Counter[str] = collections.Counter()
        self.refused: collections.Counter[str] = collections.Counter()
        self.dropped = 0
        self.failures = 0

    async def start(self) -> None:
        """Subscribe to requests; controllers share them if the broker supports shared subscriptions.

        With QoS 0: a device repeats a request that gets no answer, so an acknowledgement of each would only cost time.
        """
        await self._transport.subscribe(topics.request(self._fleet, self._kind, "+"), self._take, qos=0, group=GROUP)

    async def stop(self) -> None:
        """Cancel the answers in progress."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @abc.abstractmethod
    def answers(self, device: str, payload: bytes) -> AsyncIterator[Answer]:
        """Yield the answers to one request.

        Raises:
            DataError: the request is malformed.
            NotFoundError: the requested blob or file does not exist.
            UnavailableError: the device should retry later.
        """

    def _take(self, message: Message) -> None:
        where = topics.parse_request(message.topic)
        if (
            where is None or message.retained or not self._answers_here()
        ):  # a retained request is stale, or somebody forged it
            return
        if len(self._tasks) >= MAX_OUTSTANDING:
            self.dropped += 1
            return
        busy = self._outstanding[where.device] >= MAX_OUTSTANDING_PER_DEVICE
        self._outstanding[where.device] += 1
        task = asyncio.get_running_loop().create_task(self._answer(where.device, message.payload, busy))
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._ended(done, where.device))

    def _ended(self, task: asyncio.Task[None], device: str) -> None:
        self._tasks.discard(task)
        self._outstanding[device] -= 1
        if self._outstanding[device] <= 0:
            del self._outstanding[device]

    async def _answer(self, device: str, payload: bytes, busy: bool) -> None:
        try:
            if busy:
                raise UnavailableError(f"{MAX_OUTSTANDING_PER_DEVICE} requests of this device are being answered")
            async for answer in self.answers(device, payload):
                await self._send(device, answer)
        except PacketTooLargeError as error:
            await self._refuse(device, payload, TOO_LARGE, error)
        except TransportError as error:
            log.debug("answer to %s was not sent: %s", device, error)
        except DataError as error:
            await self._refuse(device, payload, "bad-request", error)
        except NotFoundError as error:
            await self._refuse(device, payload, "not-found", error)
        except UnavailableError as error:
            await self._refuse(device, payload, "busy", error)
        except Exception:  # supervision boundary, counted: an unexpected error in one request must not end the service
            self.failures += 1
            log.exception("a %s request of %s could not be answered", self._kind, device)

    async def _refuse(self, device: str, payload: bytes, error: str, reason: Exception) -> None:
        self.refused[error] += 1
        level = logging.ERROR if error == TOO_LARGE else logging.INFO
        log.log(level, "%s request of %s: %s: %s", self._kind, device, error, reason)
        try:
            busy = reason if isinstance(reason, BusyError) else BusyError("", 0.0)
            answer = Answer(
                _request_id(payload),
                error=error,
                message=str(reason)[:500],
                retry_seconds=busy.retry_seconds,
                wave=busy.broadcast,
            )
            await self._send(device, answer)
        except TransportError as failed:
            log.debug("answer to %s was not sent: %s", device, failed)

    async def _send(self, device: str, answer: Answer) -> None:
        await self._transport.publish(topics.answer(self._fleet, device), encode(answer), qos=0)


class _Identified(msgspec.Struct, frozen=True):
    id: str = ""


def check_id(request_id: str) -> None:
    """Check the length of a request's id.

    Raises:
        DataError: the id is empty or too long.
    """
    if not 0 < len(request_id) <= MAX_ID_LENGTH:
        raise DataError(f"request id has {len(request_id)} characters, expected 1 to {MAX_ID_LENGTH}")


def _request_id(payload: bytes) -> str:
    try:
        return decode(payload, _Identified).id[:MAX_ID_LENGTH]
    except DataError:
        return ""
