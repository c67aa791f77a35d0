"""The metadata service: sends files of the TUF repository to devices over MQTT."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from edgekit.bundle.manifest import BLOCK_BYTES
from edgekit.controller.requests import RequestService, check_id
from edgekit.errors import NotFoundError, UnavailableError
from edgekit.mqtt.messages import Answer, MetadataRequest, decode
from edgekit.protocols import Store, Transport
from edgekit.registry import metadata_name

MAX_METADATA_BYTES = 8 * 1024**2


class MetadataService(RequestService):
    """Answers ``request/metadata/<device>`` with a whole file, in parts of at most BLOCK_BYTES bytes."""

    def __init__(self, *, fleet: str, transport: Transport, store: Store) -> None:
        super().__init__(fleet=fleet, kind="metadata", transport=transport)
        self._store = store

    async def answers(self, device: str, payload: bytes) -> AsyncIterator[Answer]:
        """The parts of the file in order."""
        request = decode(payload, MetadataRequest)
        check_id(request.id)
        data = await asyncio.to_thread(self._read, request.name)
        total = max(1, -(-len(data) // BLOCK_BYTES))
        for index in range(total):
            part = data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
            yield Answer(id=request.id, index=index, total=total, data=part)

    def _read(self, name: str) -> bytes:
        stored = metadata_name(name)
        try:
            data = self._store.get(stored)
        except NotFoundError as error:
            raise NotFoundError(f"there is no metadata file {name}") from error
        if len(data) > MAX_METADATA_BYTES:
            raise UnavailableError(f"metadata file {name} has {len(data)} bytes, the limit is {MAX_METADATA_BYTES}")
        return data
