"""The metadata service: sends files of the TUF repository to devices over MQTT."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable

from edgekit.controller.blocks import BlockCache
from edgekit.controller.requests import RequestService, check_id
from edgekit.errors import NotFoundError, UnavailableError
from edgekit.mqtt.limits import part_bytes
from edgekit.mqtt.messages import Answer, MetadataRequest, decode
from edgekit.protocols import Clock, Store, Transport
from edgekit.registry import metadata_name

MAX_METADATA_BYTES = 8 * 1024**2
CACHE_BYTES = 4 * MAX_METADATA_BYTES
CACHE_SECONDS = 30.0  # as for blocks: a file that was repaired in the store is soon served correctly
_NUMBERED = re.compile(r"\d+\.")  # a file with its version in its name does not change


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
        self._store = store
        self._cache = BlockCache(CACHE_BYTES, CACHE_SECONDS, clock)
        self._reading: dict[str, asyncio.Future[bytes]] = {}

    async def answers(self, device: str, payload: bytes) -> AsyncIterator[Answer]:
        """The parts of the file in order."""
        request = decode(payload, MetadataRequest)
        check_id(request.id)
        data = await self._file(request.name)
        most = part_bytes(self._transport.packet_limit)
        total = max(1, -(-len(data) // most))
        for index in range(total):
            yield Answer(id=request.id, index=index, total=total, data=data[index * most : (index + 1) * most])

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
