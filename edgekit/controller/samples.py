"""The sample service: joins the parts that devices send, and keeps sealed samples under ``samples/`` of the store.

It cannot open them. Every controller of a fleet gets every part, and the leader takes it: the parts of a sample must
come to one place.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from edgekit.controller.refusals import RefusalService
from edgekit.errors import DataError, EdgekitError, NotFoundError, SignatureError, StoreError, TransportError
from edgekit.mqtt import topics
from edgekit.mqtt.messages import Answer, decode, encode
from edgekit.mqtt.sample_messages import SampleHead, SamplePart
from edgekit.mqtt.sample_parts import Assembly, check_head, check_part
from edgekit.protocols import Clock, Message, Store, Transport
from edgekit.samples import names
from edgekit.samples.names import StoredName, day_of, parse_name
from edgekit.samples.stored import StoredSample, encode_stored

if TYPE_CHECKING:
    from edgekit.controller.devices import DeviceService

log = logging.getLogger(__name__)

INBOX_PARTS = 256  # 16 MiB; a part that finds no place is sent again
MOST_ASSEMBLED_BYTES = 64 * 1024**2
ASSEMBLY_SECONDS = 300.0
RETRY_SECONDS = 600.0
FULL_SECONDS = 6 * 3600.0
INDEX_SECONDS = 600.0  # after this time the names of a device are read from the store again
SWEEP_SECONDS = 3600.0


class SampleService:
    """Receives samples of the fleet's devices.

    Args:
        fleet, transport, store, clock: As Controller.
        devices: Verifies what devices sign, and stores events about them.
        refusals: Knows removed and quarantined devices.
        quota_bytes: Most bytes of the samples of one device.
        days: How long samples are kept after their arrival.
        leading: False while another controller takes the samples.

    Attributes:
        counts: Rising counts: ``stored``, ``stored_bytes``, ``repeated``, ``refused``, ``full``, ``dropped`` and
            ``expired`` samples, ``failures`` of any kind.
    """

    def __init__(
        self,
        *,
        fleet: str,
        transport: Transport,
        store: Store,
        clock: Clock,
        devices: DeviceService,
        refusals: RefusalService,
        quota_bytes: int,
        days: int,
        leading: Callable[[], bool] = lambda: True,
    ) -> None:
        self._fleet, self._transport, self._store, self._clock = fleet, transport, store, clock
        self._leading = leading
        self._devices, self._refusals, self._quota, self._days = devices, refusals, quota_bytes, days
        self._inbox: asyncio.Queue[Message] = asyncio.Queue(INBOX_PARTS)
        self._worker: asyncio.Task[None] | None = None
        self._assemblies: dict[str, Assembly] = {}
        self._indexes: dict[str, tuple[float, dict[str, int]]] = {}  # device -> (read at, bytes by sample id)
        self._swept = float("-inf")
        self.counts: Counter[str] = Counter()

    async def start(self) -> None:
        """Subscribe, alone and not in a shared subscription."""
        self._worker = asyncio.get_running_loop().create_task(self._work())
        await self._transport.subscribe(topics.device(self._fleet, "+", "sample"), self._put)

    async def stop(self) -> None:
        """End; samples that are not complete are sent again."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)

    async def tick(self) -> None:
        """Remove samples that were kept for long enough, once an hour. Raises StoreError."""
        now = self._clock.monotonic()
        if now - self._swept >= SWEEP_SECONDS:
            self._swept = now
            await asyncio.to_thread(self._sweep)

    def _put(self, message: Message) -> None:
        if message.retained or not self._leading():  # no device retains parts
            return
        try:
            self._inbox.put_nowait(message)
        except asyncio.QueueFull:
            self.counts["dropped"] += 1

    async def _work(self) -> None:
        while True:
            message = await self._inbox.get()
            where = topics.parse_device(message.topic)
            if where is None:
                continue
            try:
                answer = await asyncio.to_thread(self._handle, where.device, message.payload)
                if answer is not None:
                    await self._transport.publish(topics.answer(self._fleet, where.device), encode(answer), qos=1)
            except TransportError as error:
                log.debug("the acknowledgement for %s was not sent: %s", where.device, error)
            except Exception:  # supervision boundary, counted: an unexpected error must not end the service
                self.counts["failures"] += 1
                log.exception("a sample of %s could not be handled", where.device)

    def _handle(self, device: str, payload: bytes) -> Answer | None:
        """Take one part; the answer to it, if it needs one."""
        if device in self._refusals.refused:
            self._refusals.heard(device)
            return None
        sample = ""
        try:
            part = decode(payload, SamplePart)
            check_part(part)
            sample = part.id
            return self._take(device, part)
        except StoreError as error:
            self.counts["failures"] += 1
            self._devices.tell(device, "samples-not-stored", "StoreError", str(error))
            return Answer(sample, error="busy", message=str(error)[:300], retry_seconds=RETRY_SECONDS)
        except NotFoundError as error:
            return self._refuse(device, "", "unknown-device", error)
        except SignatureError as error:
            return self._refuse(device, "", "bad-signature", error)  # no answer: another sent it under this name
        except DataError as error:
            self._assemblies.pop(device, None)
            return self._refuse(device, sample, "bad-sample", error)

    def _refuse(self, device: str, sample: str, kind: str, error: EdgekitError) -> Answer | None:
        self.counts["refused"] += 1
        self._devices.tell(device, kind, type(error).__name__, str(error))
        return Answer(sample, error="bad-request", message=str(error)[:300]) if sample else None

    def _take(self, device: str, part: SamplePart) -> Answer | None:
        now = self._clock.monotonic()
        assembly = self._assemblies.get(device)
        if part.index == 0:
            head = self._devices.open_from(device, part.head, SampleHead)
            check_head(head, part)
            if head.fleet != self._fleet:
                raise DataError(f"the sample is for fleet {head.fleet[:64]!r}, expected {self._fleet!r}")
            index = self._index(device)
            if part.id in index:
                self.counts["repeated"] += 1
                return Answer(part.id, part.total, part.total)
            if sum(index.values()) + head.size > self._quota:
                return self._full(device, part.id)
            if assembly is None or assembly.head != head:
                self._make_room(device, head.size, now)
                assembly = self._assemblies[device] = Assembly(head, part.head, part, now)
        elif assembly is None or assembly.head.id != part.id or not assembly.take(part, now):
            return None  # the device begins again with the first part
        if not assembly.complete:
            return Answer(part.id, assembly.received, part.total) if part.index == 0 else None
        del self._assemblies[device]
        self._store_sample(device, assembly)
        return Answer(part.id, part.total, part.total)

    def _full(self, device: str, sample: str) -> Answer:
        self.counts["full"] += 1
        message = f"the samples of {device} take all of their {self._quota} bytes; collect and remove some"
        self._devices.tell(device, "samples-full", "", message)
        return Answer(sample, error="busy", message=message, retry_seconds=FULL_SECONDS)

    def _make_room(self, device: str, size: int, now: float) -> None:
        """Drop the assemblies that are old, and the oldest where all take too much memory."""
        self._assemblies.pop(device, None)
        old = [name for name, one in self._assemblies.items() if now - one.at > ASSEMBLY_SECONDS]
        ordered = old + sorted(set(self._assemblies) - set(old), key=lambda name: self._assemblies[name].at)
        used = sum(one.head.size for one in self._assemblies.values())
        for name in ordered:
            if name not in old and used + size <= MOST_ASSEMBLED_BYTES:
                break
            used -= self._assemblies.pop(name).head.size

    def _store_sample(self, device: str, assembly: Assembly) -> None:
        sealed, head, wall = assembly.whole(), assembly.head, self._clock.wall()
        data = encode_stored(StoredSample(head.model, head.digest, head.at, wall, assembly.signed, sealed))
        name = StoredName(device, day_of(wall), head.id, len(data))
        self._store.put(name.text, data)
        self._index(device)[head.id] = len(data)
        self.counts["stored"] += 1
        self.counts["stored_bytes"] += len(data)

    def _index(self, device: str) -> dict[str, int]:
        """Bytes of the stored samples of a device by their ids; 0 for removed ones."""
        now = self._clock.monotonic()
        found = self._indexes.get(device)
        if found is None or now - found[0] > INDEX_SECONDS:
            stored = [name for text in self._store.list(names.folder(device)) if (name := parse_name(text))]
            found = self._indexes[device] = (now, {name.id: name.size for name in stored})
        return found[1]

    def _sweep(self) -> None:
        oldest = day_of(self._clock.wall() - self._days * 86_400.0)
        for text in self._store.list(names.folder()):
            name = parse_name(text)
            if name is not None and name.day < oldest:
                self._store.remove(text)
                self.counts["expired"] += 1
        self._indexes.clear()
