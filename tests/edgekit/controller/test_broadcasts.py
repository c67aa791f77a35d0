"""Broadcasts: real block services and real fetchers over a broker that loses, tampers with and delays messages."""

import asyncio
import contextlib
import hashlib
import random
import time
from collections import Counter

import pytest

from device_agents.control.requests import RequestClient
from device_agents.download import broadcasts as device_waves
from device_agents.download.block_fetcher import BlockFetcher
from device_agents.download.block_sources import Inbox, WantedBlocks
from device_agents.download.gate import Gate
from device_agents.download.options import TransferTimings
from edgekit.bundle.manifest import BLOCK_BYTES, file_entry
from edgekit.clock import SystemClock
from edgekit.controller.blocks import BlockService
from edgekit.mqtt import topics
from edgekit.mqtt.broker import find_mosquitto, start_broker
from edgekit.mqtt.messages import Answer, BlocksRequest, BroadcastBlocks, BroadcastClaim, decode, encode
from edgekit.mqtt.transport import MqttTransport
from edgekit.registry import blob_name
from tests.simulators.store import MemoryStore
from tests.simulators.transport import MemoryBroker, MemoryTransport, connect

FLEET = "test"
MODEL = random.Random(1).randbytes(99 * BLOCK_BYTES + 5)
ENTRY = file_entry("model", "model", MODEL)
DIGEST, HASHES, BLOCKS = ENTRY.sha256, ENTRY.blocks, len(ENTRY.blocks)
QUICK = TransferTimings(broadcast_first_seconds=1.0, broadcast_silent_seconds=0.5)  # for devices that shall miss blocks


class Site:
    """One broker, any number of controllers and devices; counts what was published."""

    def __init__(self, **losses):
        self.broker = MemoryBroker(**losses)
        self.broker.tap = self._tap
        self.to_devices = 0  # bytes that the broker sent to them, those that were lost too
        self.store = MemoryStore()
        self.store.put(blob_name(DIGEST), MODEL)
        self.services = []
        self.transports = []
        self.fetchers = {}
        self.tasks = []
        self.timings = TransferTimings()  # of the devices

    def transport(self, name):
        """A transport for a controller or device."""
        return MemoryTransport(self.broker, name)

    def _tap(self, client, message):
        if client in self.fetchers:
            self.to_devices += len(message.payload)
        return [message]

    async def controller(self, budget=16 * 2**20, gather=0.05):
        """Start a controller's block service."""
        transport = self.transport(f"controller-{len(self.services)}")
        service = BlockService(
            fleet=FLEET,
            transport=transport,
            store=self.store,
            clock=SystemClock(),
            broker_budget_bytes=budget,
            gather_seconds=gather,
        )
        await connect(transport)
        await service.start()
        self.services.append(service)
        self.transports.append(transport)
        return service

    async def device(self, name, *, rate=0, begin=None):
        """Start a device's download, at once or with `begin`; its task ends when it has every block, each one right."""
        transport = self.transport(name)
        answers = RequestClient(transport, fleet=FLEET, device=name)
        clock = SystemClock()
        fetcher = BlockFetcher(answers, clock, Gate(clock, bytes_per_second=rate), timings=self.timings)
        self.fetchers[name] = fetcher
        await answers.start()
        await connect(transport)
        self.transports.append(transport)
        task = asyncio.create_task(self._download(fetcher, begin))
        self.tasks.append(task)
        return task

    async def devices(self, count):
        """Start devices whose downloads begin together, however long it takes to connect them."""
        begin = asyncio.Event()
        for number in range(count):
            await self.device(f"d{number}", begin=begin)
        begin.set()

    async def _download(self, fetcher, begin):
        if begin is not None:
            await begin.wait()
        missing = set(range(BLOCKS))
        async for index, data in fetcher.blocks(DIGEST, range(BLOCKS), HASHES):
            assert hashlib.sha256(data).hexdigest() == HASHES[index]
            missing.remove(index)
        assert not missing

    async def finish(self, seconds=240.0):
        """Wait until every device is done."""
        await asyncio.wait_for(asyncio.gather(*self.tasks), seconds)

    def sent(self, kind):
        """Payload bytes of blocks that were published as ``answer`` or on a ``wave``."""
        total = 0
        for message in self.broker.published:
            part = message.topic.split("/")[3]
            if part == kind and not message.topic.endswith("/claim"):
                total += len(decode(message.payload, Answer if kind == "answer" else BroadcastBlocks).data)
        return total

    async def until(self, holds):
        end = time.monotonic() + 60.0
        while not holds():
            assert time.monotonic() < end
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def site(**losses):
    made = Site(**losses)
    try:
        yield made
    finally:
        for task in made.tasks:
            task.cancel()
        await asyncio.gather(*made.tasks, return_exceptions=True)
        for service in made.services:
            await service.stop()
        for transport in made.transports:
            await transport.stop()


async def test_devices_in_step_are_served_by_one_broadcast():
    """Twelve devices, and little more than one copy of the blob leaves the controller."""
    async with site() as made:
        service = await made.controller(budget=4 * 2**20, gather=0.2)  # a busy machine still listens at this pace
        await made.devices(12)
        await made.finish()
        assert service.broadcasts.started == 1
        assert made.sent("wave") == len(MODEL)
        assert made.sent("answer") < 0.25 * len(MODEL)  # what the first few got before the fourth had asked
        assert sum(fetcher.counters["wave_blocks"] for fetcher in made.fetchers.values()) > 11 * BLOCKS
        assert not [message for message in made.broker._clients["d0"].routes if "wave" in message]


async def test_few_devices_are_answered_one_by_one():
    """Three devices are too few for a broadcast."""
    async with site() as made:
        service = await made.controller()
        for number in range(3):
            await made.device(f"d{number}")
        await made.finish()
        assert service.broadcasts.started == 0


@pytest.mark.parametrize("devices", [3, 10])
async def test_five_percent_of_loss_cost_at_most_ten_percent_more(devices):
    """For a single device by requests, and for a broadcast, whose lost blocks the devices request."""
    async with site(drop=0.05, seed=4) as made:
        service = await made.controller(budget=5 * 2**20)
        await made.devices(devices)
        await made.finish()
        assert service.broadcasts.started == (1 if devices == 10 else 0)
        assert made.to_devices <= 1.10 * devices * len(MODEL)


async def test_those_who_come_late_hear_the_rest_and_then_a_wave_of_what_they_missed():
    """Eight devices join in the middle of a broadcast; few of their blocks are answered one by one."""
    async with site() as made:
        service = await made.controller(budget=4 * 2**20)
        for number in range(6):
            await made.device(f"d{number}")
        await made.until(lambda: service.broadcasts.blocks_sent > BLOCKS // 3)
        before = made.sent("answer")
        for number in range(8):
            await made.device(f"late-{number}")
        await made.finish()
        assert service.broadcasts.started == 2
        assert made.sent("answer") - before < len(MODEL)
        assert made.sent("wave") < 1.6 * len(MODEL)


async def test_a_controller_that_dies_in_a_wave_is_followed_by_another():
    """Devices notice the silence and send requests; the other controller broadcasts the missing blocks."""
    async with site() as made:
        made.timings = QUICK
        first = await made.controller(budget=4 * 2**20)
        for number in range(8):
            await made.device(f"d{number}")
        await made.until(lambda: first.broadcasts.blocks_sent > 10)
        await first.stop()
        await made.transports[0].stop()
        await made.controller()
        await made.finish()
        assert made.sent("wave") < 1.5 * len(MODEL)


async def test_two_controllers_send_one_wave():
    """Each controller gets half of the requests, and one of them broadcasts for both."""
    async with site() as made:
        for _ in range(2):
            await made.controller(budget=8 * 2**20, gather=0.2)
        for number in range(24):
            await made.device(f"d{number}")
        await made.finish()
        assert sorted(service.broadcasts.started for service in made.services) == [0, 1]
        assert made.sent("wave") < 1.5 * len(MODEL)


async def test_a_device_with_a_rate_to_keep_does_not_listen():
    """A device cannot slow a broadcast down, so a device with a rate limit requests its blocks."""
    async with site() as made:
        service = await made.controller()
        for number in range(6):
            await made.device(f"d{number}", rate=100 * 2**20)
        await made.finish()
        assert service.broadcasts.started == 0


async def flood(made, make):
    """Publish hostile payloads on the broadcast's topic while downloads run."""
    seeds = random.Random(7)
    while True:
        made.broker.publish(topics.broadcast(FLEET, DIGEST), make(seeds))
        await asyncio.sleep(0)


HOSTILE = {
    "wrong bytes": lambda seeds: encode(BroadcastBlocks(seeds.randrange(BLOCKS), seeds.randbytes(3 * BLOCK_BYTES))),
    "no message": lambda seeds: seeds.randbytes(300),
    "oversized": lambda seeds: encode(BroadcastBlocks(0, bytes(300 * 1024))),
    "outside the blob": lambda seeds: encode(BroadcastBlocks(seeds.choice([-1000, 10**12]), bytes(BLOCK_BYTES))),
    "ends": lambda seeds: encode(BroadcastBlocks(BLOCKS, b"")),
    "odd sizes": lambda seeds: encode(BroadcastBlocks(seeds.randrange(BLOCKS), seeds.randbytes(7))),
}


@pytest.mark.parametrize("kind", HOSTILE)
async def test_hostile_waves_do_no_harm(kind):
    """Every block is verified before it is stored: the download succeeds, with requests if needed."""
    async with site() as made:
        await made.controller()
        made.tasks.append(flooder := asyncio.create_task(flood(made, HOSTILE[kind])))
        downloads = [await made.device(f"d{number}") for number in range(6)]
        await asyncio.wait_for(asyncio.gather(*downloads), 240)
        flooder.cancel()
        assert [transport.handler_errors for transport in made.transports] == [0] * len(made.transports)


@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
async def test_a_wave_through_a_real_broker(tmp_path):
    """With the broker's ACL: devices receive the broadcast, but not the claims between controllers."""
    async with site() as made, await start_broker("127.0.0.1", 0, tmp_path, kind="mosquitto") as broker:
        made.transport = lambda name: MqttTransport(broker.url, client_id=name, username=name.partition("-")[0])
        service = await made.controller(budget=5 * 2**20)
        for number in range(8):
            await made.device(f"d{number}")
        await made.finish()
        assert service.broadcasts.started == 1
        heard = [fetcher.counters["wave_blocks"] for fetcher in made.fetchers.values()]
        assert sum(heard) > 0.8 * 8 * BLOCKS
        assert all(fetcher.counters["wrong_wave_blocks"] == 0 for fetcher in made.fetchers.values())
        for transport in made.transports:
            await transport.stop()


async def test_what_waits_to_be_written_is_bounded():
    """Useful blocks above a few MiB are dropped and requested later."""
    transport = MemoryTransport(MemoryBroker(), "d")
    answers = RequestClient(transport, fleet=FLEET, device="d")
    await connect(transport)
    inbox, hashes = Inbox(), ["0" * 64] * 1000
    listener = device_waves.BroadcastListener(
        answers,
        inbox,
        WantedBlocks(range(1000)),
        DIGEST,
        hashes,
        Counter(),
        gate=Gate(SystemClock()),
        timings=TransferTimings(),
    )
    assert await listener.join()
    for first in range(0, 1000, 3):
        transport._broker.publish(
            topics.broadcast(FLEET, DIGEST), encode(BroadcastBlocks(first, bytes(3 * BLOCK_BYTES)))
        )
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(inbox) == device_waves.MAX_WAITING_BYTES // BLOCK_BYTES
    await transport.stop()


async def test_a_false_claim_delays_and_does_not_stop():
    """A claim without a broadcast: devices receive nothing and send requests."""
    async with site() as made:
        made.timings = QUICK
        service = await made.controller()
        claim = encode(BroadcastClaim("0", sending=True, seconds=1e9))
        made.broker.publish(topics.broadcast_claim(FLEET, DIGEST), claim, qos=1)
        for junk in (b"", b"\xc1", encode(BroadcastClaim("0", seconds=5.0))):
            made.broker.publish(topics.broadcast_claim(FLEET, "nonsense"), junk, qos=1)
        for number in range(6):
            await made.device(f"d{number}")
        await made.finish()
        assert service.broadcasts.started == 0


async def test_devices_that_know_no_waves_are_answered():
    """Their requests do not list missing blocks, so they are answered directly."""
    async with site() as made:
        service = await made.controller()
        request = BlocksRequest("r", DIGEST, (), 4)
        assert not any(service.broadcasts.request(f"old-{number}", request, BLOCKS) for number in range(10))


async def test_the_gathering_ends_when_no_more_devices_come():
    """All devices of a wave ask together: the first block need not wait for the longest time."""
    async with site() as fleet:
        service = await fleet.controller(gather=8.0)
        await fleet.devices(6)
        begun = time.monotonic()
        await fleet.until(lambda: service.broadcasts.started)
        assert time.monotonic() - begun < 7.0
        await fleet.finish()
