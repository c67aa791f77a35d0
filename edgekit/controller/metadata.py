"""The metadata service: sends files of the TUF repository to devices over MQTT."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping

import msgspec

from edgekit.bundle.manifest import BLOCK_BYTES
from edgekit.controller.blocks import BlockCache
from edgekit.controller.requests import RequestService, check_id
from edgekit.errors import DataError, NotFoundError, UnavailableError
from edgekit.mqtt.limits import MIN_PART_BYTES, part_bytes
from edgekit.mqtt.messages import Answer, MetadataRequest, decode
from edgekit.protocols import Clock, Store, Transport
from edgekit.registry import metadata_name
from edgekit.transfer.newer_metadata import MAX_ROLES, ROOT, SNAPSHOT, TIMESTAMP, listed_versions, newer_files

log = logging.getLogger(__name__)

MAX_METADATA_BYTES = 8 * 1024**2
CACHE_BYTES = 4 * MAX_METADATA_BYTES
CACHE_SECONDS = 30.0  # as for blocks: a file that was repaired in the store is soon served correctly
MAX_ROOTS = 8  # new versions of the root in one answer
FILE_OVERHEAD_BYTES = 64  # of a file in an answer, besides its name and data
SHARED_SECONDS, MAX_SHARED = 1.0, 256
TIMESTAMP_NAME = f"{TIMESTAMP}.json"
_NUMBERED = re.compile(r"\d+\.")  # a file with its version in its name does not change


class _Newer(msgspec.Struct, frozen=True):
    """The fields `files` and `absent` of an Answer."""

    files: dict[str, bytes] = {}
    absent: tuple[str, ...] = ()


class MetadataService(RequestService):
    """Answers ``request/metadata/<device>`` with a whole file, in parts of a block, or as large as the broker accepts.

    Devices in step request the same files. They share one read of a file and one copy of its bytes.
    """

    def __init__(
        self,
        *,
        fleet: str,
        transport: Transport,
        store: Store,
        clock: Clock,
        answers_here: Callable[[], bool] = lambda: True,
    ) -> None:
        super().__init__(fleet=fleet, kind="metadata", transport=transport, answers_here=answers_here)
        self._store, self._clock = store, clock
        self._cache = BlockCache(CACHE_BYTES, CACHE_SECONDS, clock)
        self._reading: dict[str, asyncio.Future[bytes]] = {}
        self._found: dict[tuple[bytes, frozenset[tuple[str, int]], int], tuple[float, _Newer]] = {}

    async def answers(self, device: str, payload: bytes) -> AsyncIterator[Answer]:
        """The parts of the file in order; with the timestamp, also newer files that the device needs."""
        request = decode(payload, MetadataRequest)
        check_id(request.id)
        if len(request.have) > MAX_ROLES:
            raise DataError(f"the request names {len(request.have)} roles, expected at most {MAX_ROLES}")
        data = await self._file(request.name)
        if request.part_bytes and request.part_bytes < MIN_PART_BYTES:
            raise DataError(f"part_bytes is {request.part_bytes}, expected 0 or at least {MIN_PART_BYTES}")
        most = min(part_bytes(self._transport.packet_limit), request.part_bytes or BLOCK_BYTES)
        more = request.have and request.name == TIMESTAMP_NAME
        newer = await self._newer(data, request.have, most - len(data)) if more else _Newer()
        total = max(1, -(-len(data) // most))
        for index in range(total):
            part = data[index * most : (index + 1) * most]
            yield Answer(request.id, index, total, part, files=newer.files, absent=newer.absent)
            newer = _Newer()

    async def _newer(self, timestamp: bytes, have: Mapping[str, int], room: int) -> _Newer:
        """The files that a device with these versions lacks; devices in step share them for a moment."""
        now, key = self._clock.monotonic(), (timestamp, frozenset(have.items()), room)
        found = self._found.get(key)
        if found is not None and now - found[0] < SHARED_SECONDS:
            return found[1]
        try:
            newer = await self._collect(timestamp, have, room)
        except (DataError, NotFoundError, UnavailableError) as error:
            log.info("devices must request each metadata file: %s", error)
            newer = _Newer()
        if len(self._found) >= MAX_SHARED:
            self._found.clear()
        self._found[key] = now, newer
        return newer

    async def _collect(self, timestamp: bytes, have: Mapping[str, int], room: int) -> _Newer:
        files: dict[str, bytes] = {}
        absent: tuple[str, ...] = ()
        for version in range(have.get(ROOT, 0) + 1, have.get(ROOT, 0) + 1 + MAX_ROOTS):
            name = f"{version}.{ROOT}.json"
            try:
                files[name] = await self._file(name)
            except NotFoundError:
                absent = (name,)
                break
        listed = listed_versions(timestamp)
        snapshot = await self._file(f"{listed[SNAPSHOT]}.{SNAPSHOT}.json") if SNAPSHOT in listed else b""
        names = newer_files(have, listed) + (newer_files(have, listed_versions(snapshot)) if snapshot else [])
        for name in names:
            files[name] = await self._file(name)
        fitting = {}
        for name, data in files.items():  # the device requests the rest
            room -= len(name) + len(data) + FILE_OVERHEAD_BYTES
            if room < 0:
                break
            fitting[name] = data
        return _Newer(fitting, absent if len(fitting) == len(files) else ())

    async def _file(self, name: str) -> bytes:
        cached = self._cache.get(name, 0)
        if cached is not None:
            return cached
        reading = self._reading.get(name)
        if reading is None:
            reading = self._reading[name] = asyncio.ensure_future(asyncio.to_thread(self._read, name))
            reading.add_done_callback(lambda _: self._reading.pop(name, None))
        data = await asyncio.shield(reading)
        if _NUMBERED.match(name) and self._cache.get(name, 0) is None:
            self._cache.put(name, 0, data)
        return data

    def _read(self, name: str) -> bytes:
        stored = metadata_name(name)
        try:
            if self._store.size(stored) > MAX_METADATA_BYTES:  # found before it is in memory
                raise UnavailableError(f"metadata file {name} has more than {MAX_METADATA_BYTES} bytes")
            return self._store.get(stored)
        except NotFoundError as error:
            raise NotFoundError(f"there is no metadata file {name}") from error
