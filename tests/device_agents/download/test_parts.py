"""Blocks in parts, through a broker that accepts no whole block."""

import asyncio
import contextlib
import hashlib
import random

import pytest
from msgspec import UNSET

from device_agents.control.requests import PendingRequest, RequestClient, check_answer
from device_agents.download.block_fetcher import BlockFetcher
from edgekit.bundle.manifest import BLOCK_BYTES
from edgekit.clock import SystemClock
from edgekit.controller.blocks import BlockService
from edgekit.errors import DataError, PacketTooLargeError
from edgekit.mqtt import topics
from edgekit.mqtt.limits import MIN_PART_BYTES
from edgekit.mqtt.messages import TOO_LARGE, Answer, BlocksRequest, Range, decode, encode
from edgekit.registry import blob_name
from edgekit.transfer.blocks import RoundTrip
from tests.simulators.store import MemoryStore
from tests.simulators.transport import MemoryBroker, MemoryTransport, connect

LIMIT = 16 * 1024
BLOB = random.Random(3).randbytes(6 * BLOCK_BYTES + 12_345)
DIGEST = hashlib.sha256(BLOB).hexdigest()
HASTY = RoundTrip(initial_seconds=0.2, min_seconds=0.05)


@contextlib.asynccontextmanager
async def link(broker, *, limit=LIMIT):
    """A client of a device, and the block service, over a broker that accepts `limit` bytes."""
    store, clock = MemoryStore(), SystemClock()
    store.put(blob_name(DIGEST), BLOB)
    controller, device = MemoryTransport(broker, "controller"), MemoryTransport(broker, "d1")
    service = BlockService(fleet="test", transport=controller, store=store, clock=clock, broker_budget_bytes=2**24)
    answers = RequestClient(device, fleet="test", device="d1")
    broker.packet_limit = limit
    await connect(controller, device)
    await service.start()
    await answers.start()
    try:
        yield answers, service
    finally:
        await service.stop()
        await controller.stop()
        await device.stop()


def sent(broker):
    return [decode(message.payload, Answer) for message in broker.published if "/answer/" in message.topic]


@pytest.mark.parametrize("faults", [{}, {"drop": 0.1, "duplicate": 0.1, "reorder": 0.2}])
async def test_blocks_come_in_parts(faults):
    """Also where parts are lost, come twice, or overtake each other; without loss, no byte is sent twice."""
    broker, wasted = MemoryBroker(seed=4, **faults), []
    async with link(broker) as (answers, _):
        fetcher = BlockFetcher(answers, SystemClock(), round_trip=HASTY)
        got = {index: data async for index, data in fetcher.blocks(DIGEST, range(7), wasted=wasted.append)}
    assert b"".join(got[index] for index in range(7)) == BLOB
    assert max(len(message.payload) for message in broker.published) <= LIMIT
    sizes = {answer.part.size if answer.part else 0 for answer in sent(broker)}
    assert sizes == {BLOCK_BYTES, 0}  # the last block is small
    if not faults:
        assert wasted == []
        assert sum(len(answer.data) for answer in sent(broker)) == len(BLOB)


async def test_a_broker_with_room_for_a_block_gets_whole_blocks():
    """As from earlier releases: no answer names a part."""
    broker = MemoryBroker()
    async with link(broker, limit=0) as (answers, _):
        blocks = [block async for block in BlockFetcher(answers, SystemClock()).blocks(DIGEST, range(7))]
    assert len(blocks) == 7
    assert {answer.part for answer in sent(broker)} == {UNSET}


async def test_an_earlier_agent_gets_no_parts():
    """It could not put them together: its request fails with the error that names both numbers, as before."""
    broker, received = MemoryBroker(), asyncio.Queue()
    async with link(broker) as (answers, _):
        pending = PendingRequest(answers, received.put_nowait)
        request = {"id": pending.new_id(), "digest": DIGEST, "ranges": [Range(0, 0)], "credit": 1}
        await answers._transport.publish(topics.request("test", "blocks", "d1"), encode(request), qos=1)
        answer = await asyncio.wait_for(received.get(), 10)
    assert answer.error == TOO_LARGE
    assert f"the broker accepts {LIMIT}" in answer.message
    with pytest.raises(PacketTooLargeError):
        check_answer(answer, "blob")


async def test_parts_that_are_too_small_are_refused():
    """A request for single bytes would cost a message each."""
    broker = MemoryBroker()
    async with link(broker) as (_answers, service):
        request = BlocksRequest("x", DIGEST, (Range(0, 0),), 1, part_bytes=MIN_PART_BYTES - 1)
        with pytest.raises(DataError, match="part_bytes is 4095"):
            async for _ in service.answers("d1", encode(request)):
                pass
