"""Blocks by HTTP range: any server may be named, each block is checked, and no server can stop a download."""

import asyncio
import hashlib
import random
import time

import pytest

from device_agents.control.requests import RequestClient
from device_agents.download import http_ranges
from device_agents.download.block_fetcher import BlockFetcher
from device_agents.download.gate import Gate
from device_agents.download.options import TransferTimings
from edgekit.bundle.manifest import BLOCK_BYTES, file_entry
from edgekit.clock import SystemClock
from edgekit.controller.blocks import BlockService
from edgekit.mqtt.messages import Answer, decode
from edgekit.registry import blob_name
from tests.simulators.store import MemoryStore
from tests.simulators.transport import MemoryBroker, MemoryTransport, connect
from tests.simulators.web import web

FLEET = "test"
BLOB = random.Random(1).randbytes(50 * BLOCK_BYTES + 7)
ENTRY = file_entry("model", "model", BLOB)


class Site:
    """A controller that names `urls`, and a device."""

    def __init__(self, named, **fetcher):
        self.broker = MemoryBroker()
        self.urls = named
        self.wasted = []
        self._fetcher = fetcher

    async def __aenter__(self):
        store, clock = MemoryStore(), SystemClock()
        store.put(blob_name(ENTRY.sha256), BLOB)
        self.controller, self.device = (MemoryTransport(self.broker, name) for name in ("controller", "d1"))
        self.service = BlockService(
            fleet=FLEET,
            transport=self.controller,
            store=store,
            clock=clock,
            broker_budget_bytes=2**24,
            urls=lambda digest: self.urls if digest == ENTRY.sha256 else (),
        )
        answers = RequestClient(self.device, fleet=FLEET, device="d1")
        rate = self._fetcher.pop("rate", 0)
        self.fetcher = BlockFetcher(answers, clock, Gate(clock, bytes_per_second=rate), **self._fetcher)
        await connect(self.controller, self.device)
        await self.service.start()
        await answers.start()
        return self

    async def __aexit__(self, *_):
        await self.service.stop()
        await self.controller.stop()
        await self.device.stop()

    async def fetch(self):
        """Every block once, each one right."""
        missing = set(range(len(ENTRY.blocks)))
        blocks = self.fetcher.blocks(ENTRY.sha256, sorted(missing), ENTRY.blocks, wasted=self.wasted.append)
        async for index, data in blocks:
            assert hashlib.sha256(data).hexdigest() == ENTRY.blocks[index]
            missing.remove(index)
        assert not missing

    def by_mqtt(self):
        """Bytes of blocks that the controller sent."""
        answers = (m for m in self.broker.published if "/answer/" in m.topic)
        return sum(len(decode(message.payload, Answer).data) for message in answers)


async def test_a_url_takes_the_whole_load_off_the_broker():
    """The controller sends a hint and no block."""
    with web(BLOB) as server:
        async with Site([server.url]) as site:
            await site.fetch()
            assert site.by_mqtt() == 0
            assert site.fetcher.counters["http_blocks"] == len(ENTRY.blocks)
        assert server.sent == len(BLOB)
        assert server.if_ranges == [None] + ['"one"'] * (len(server.ranges) - 1)


async def test_several_urls_are_fetched_from_at_once():
    """Each brings a part, nothing comes twice."""
    with web(BLOB) as one, web(BLOB) as two:
        async with Site([one.url, two.url]) as site:
            await site.fetch()
        assert one.sent + two.sent == len(BLOB)
        assert min(one.sent, two.sent) > 0


BAD = ["wrong", "short", "cut", "whole", "other range", "absent", "broken", "to file", "in circles", "garbage"]
SLOW = ["many headers", "endless", "silent", "drip"]


@pytest.mark.parametrize("mode", [*BAD, *SLOW])
async def test_a_bad_server_costs_its_own_answers_and_no_more(mode):
    """Its blocks come over the broker; what it sent in vain is bounded."""
    timings = TransferTimings(http_timeout_seconds=0.3, http_range_seconds=0.3)
    with web(BLOB, mode) as server:
        async with Site([server.url], timings=timings) as site:
            await asyncio.wait_for(site.fetch(), 30)
            if mode != "endless":  # what was asked for is right, and the rest is not read
                assert site.fetcher.counters["http_failures"] > 0
                assert site.by_mqtt() > 0
        assert len(server.ranges) <= http_ranges.MAX_FAILURES + http_ranges.MAX_REDIRECTS + 4


@pytest.mark.parametrize("mode", ["wrong", "late wrong", "drip"])
async def test_what_a_bad_server_sends_in_vain_is_counted(mode):
    """It counts for the byte budget of the deployment: the link carried it."""
    with web(BLOB, mode) as server:
        async with Site([server.url], timings=TransferTimings(http_range_seconds=0.3)) as site:
            await site.fetch()
        in_vain = sum(site.wasted)
        assert in_vain > 0
        if mode != "drip":
            assert in_vain == server.sent - BLOCK_BYTES * site.fetcher.counters["http_blocks"]


async def test_a_good_server_goes_on_beside_a_bad_one():
    """Blocks of the one that is given up go to the other."""
    with web(BLOB) as good, web(BLOB, "wrong") as bad:
        async with Site([bad.url, good.url]) as site:
            await site.fetch()
            assert site.by_mqtt() == 0


@pytest.mark.parametrize("mode", ["late wrong", "sometimes broken", "moved"])
async def test_a_server_is_used_as_far_as_it_is_right(mode):
    """Right blocks are kept: those before a fault, between two failures, and from the URL of a redirect."""
    with web(BLOB, mode) as server:
        async with Site([server.url]) as site:
            await site.fetch()
            assert site.fetcher.counters["http_blocks"] > 0
            assert site.by_mqtt() + BLOCK_BYTES * site.fetcher.counters["http_blocks"] < len(BLOB) + 2 * BLOCK_BYTES


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://host/blob",
        "http://",
        "http://user:secret@host/blob",
        "http://host:99999/",
        "http://host/a b",
        "http://host/\r\nX: y",
        "https://[bad/blob",
        "http://host/" + "x" * 5000,
        "",
    ],
)
async def test_a_url_that_is_no_web_address_is_not_touched(url):
    """The download goes on as if it had not been named."""
    assert http_ranges.usable_urls([url]) == []
    async with Site([url]) as site:
        await site.fetch()
        assert site.fetcher.counters["http_failures"] == 0


async def test_nobody_listens_at_the_url():
    """Refused connections are three failures."""
    with web(BLOB) as server:
        url = server.url
    async with Site([url]) as site:
        await site.fetch()
        assert site.fetcher.counters["http_failures"] == http_ranges.MAX_FAILURES


async def test_a_device_may_be_told_not_to():
    """The device asks for no URLs, and gets blocks over MQTT."""
    with web(BLOB) as server:
        async with Site([server.url], urls=False) as site:
            await site.fetch()
        assert server.ranges == []


async def test_the_rate_of_the_device_holds_for_urls_too():
    """One second's burst and no more in the first moment."""
    with web(BLOB) as server:
        async with Site([server.url], rate=10 * BLOCK_BYTES) as site:
            begun = time.monotonic()
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(site.fetch(), 0.5)
            spent = time.monotonic() - begun
        assert 0 < server.sent <= (11 + 10 * spent) * BLOCK_BYTES  # the one beyond was paid for and is on its way


async def test_stopping_does_not_wait_for_a_slow_server():
    """A newer assignment ends the download in a moment."""
    timings = TransferTimings(http_timeout_seconds=30.0)
    with web(BLOB, "silent") as server:
        async with Site([server.url], timings=timings) as site:
            task = asyncio.create_task(site.fetch())
            assert await asyncio.to_thread(server.asked.wait, 60)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):  # and not what the server did, which is silent for 30 s
                await asyncio.wait_for(task, 10)


def test_https_is_not_left_for_http():
    """A redirect cannot take the privacy away."""
    reader = http_ranges.RangeReader("https://host/blob", TransferTimings())
    with pytest.raises(http_ranges.RangeError, match="redirects"):
        reader._follow("http://host/blob")
