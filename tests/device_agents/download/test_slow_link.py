"""Blocks over a slow link: the round-trip time is learned, and blocks are not requested again too early."""

import asyncio
import hashlib
import random

from device_agents.control.requests import RequestClient
from device_agents.download.block_fetcher import BlockFetcher
from edgekit.bundle.manifest import BLOCK_BYTES, file_entry
from edgekit.clock import SystemClock
from edgekit.controller.blocks import BlockService
from edgekit.mqtt.messages import Answer, BlocksRequest, decode
from edgekit.registry import blob_name
from edgekit.transfer.blocks import MAX_WINDOW, MIN_WINDOW, RoundTrip, Window
from tests.simulators.store import MemoryStore
from tests.simulators.transport import MemoryBroker, MemoryTransport, connect

BLOB = random.Random(1).randbytes(20 * BLOCK_BYTES)
ENTRY = file_entry("model", "model", BLOB)


class SlowTransport(MemoryTransport):
    """Messages wait in a queue, a number of seconds per block."""

    seconds = 0.08

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._line = asyncio.Queue()
        self._task = asyncio.create_task(self._deliver_slowly())

    def deliver(self, topic_filter, message):
        self._line.put_nowait((topic_filter, message))

    async def _deliver_slowly(self):
        while True:
            topic_filter, message = await self._line.get()
            await asyncio.sleep(self.seconds * len(message.payload) / BLOCK_BYTES)
            super().deliver(topic_filter, message)

    async def stop(self):
        self._task.cancel()
        await super().stop()


HASTY = RoundTrip(initial_seconds=0.07, min_seconds=0.03)  # too short for the link, as 3 s are for 20 KB/s


async def test_a_slow_link_is_learned():
    """Answers that come after they were given up still say how long answers take."""
    broker, store, clock = MemoryBroker(), MemoryStore(), SystemClock()
    store.put(blob_name(ENTRY.sha256), BLOB)
    controller, device = MemoryTransport(broker, "controller"), SlowTransport(broker, "d1")
    service = BlockService(fleet="test", transport=controller, store=store, clock=clock, broker_budget_bytes=2**24)
    answers = RequestClient(device, fleet="test", device="d1")
    await connect(controller, device)
    await service.start()
    await answers.start()
    missing = set(range(20))
    fetcher = BlockFetcher(answers, clock, round_trip=HASTY)
    async for index, data in fetcher.blocks(ENTRY.sha256, sorted(missing)):
        assert hashlib.sha256(data).hexdigest() == ENTRY.blocks[index]
        missing.remove(index)
    sent = sum(len(decode(m.payload, Answer).data) for m in broker.published if "/answer/" in m.topic)
    await service.stop()
    await controller.stop()
    await device.stop()
    assert not missing
    assert sent <= 1.5 * len(BLOB)
    assert fetcher._round_trip.smoothed >= SlowTransport.seconds  # the next transfer begins with it


async def test_on_a_link_without_loss_many_blocks_are_on_the_way():
    """A transfer of 200 blocks with a long round trip asks for half a window of 16 at a time, not for one block."""
    broker, store, clock = MemoryBroker(), MemoryStore(), SystemClock()
    blob = random.Random(2).randbytes(200 * BLOCK_BYTES)
    digest = hashlib.sha256(blob).hexdigest()
    store.put(blob_name(digest), blob)
    controller, device = MemoryTransport(broker, "controller"), MemoryTransport(broker, "d1")
    service = BlockService(fleet="test", transport=controller, store=store, clock=clock, broker_budget_bytes=2**24)
    answers = RequestClient(device, fleet="test", device="d1")
    await connect(controller, device)
    await service.start()
    await answers.start()
    async for _ in BlockFetcher(answers, clock).blocks(digest, range(200)):
        pass
    credits = [decode(m.payload, BlocksRequest).credit for m in broker.published if "/request/blocks/" in m.topic]
    await service.stop()
    await controller.stop()
    await device.stop()
    assert max(credits) >= MAX_WINDOW // 2
    assert len(credits) <= 200 / 4


def test_the_window_closes_to_one_block():
    """A link that holds no more than one block at a time is asked for one."""
    window = Window()
    for _ in range(10):
        window = window.after_loss()
    assert window.size == MIN_WINDOW == 1
    assert window.credit(0) == 1
    assert window.credit(1) == 0
    assert window.after_arrival().size == 2
