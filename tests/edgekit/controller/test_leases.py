"""Leases: which devices may fetch, which ones wait, and that the windows in flight fit into the broker's budget."""

import asyncio
import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agents.control.requests import RequestClient
from device_agents.download.block_fetcher import BlockFetcher
from edgekit.bundle.manifest import BLOCK_BYTES
from edgekit.clock import SystemClock
from edgekit.controller.blocks import BlockService
from edgekit.controller.leases import LAST_SECONDS, LEASE_IDLE_SECONDS, MAX_RETRY_SECONDS, WINDOW_BYTES, Leases
from edgekit.mqtt.messages import Answer, decode
from edgekit.registry import blob_name
from edgekit.storage.stores import open_store
from tests.simulators.transport import MemoryBroker, MemoryTransport, connect

FLEET = "test"


@pytest.mark.parametrize(("windows", "served"), [(0, 1), (1, 1), (3.9, 3), (4, 4)])
def test_a_budget_holds_whole_windows(windows, served):
    """One window a device; a budget smaller than one still serves one device."""
    leases = Leases(int(windows * WINDOW_BYTES))
    assert [leases.request(f"d{n}", 0.0) == 0.0 for n in range(6)].count(True) == served
    assert leases.bytes == served * WINDOW_BYTES


def test_small_blobs_take_their_own_bytes():
    """500 devices that fetch a manifest at the same time need no window each, and none of them waits."""
    leases = Leases(2 * WINDOW_BYTES)
    assert [leases.request(f"d{n}", 0.0, size=2_000, last=True) for n in range(500)] == [0.0] * 500
    assert leases.bytes == 500 * 2_000
    assert leases.request("large", 0.0) == 0.0
    assert leases.request("larger", 0.0) > 0.0


def test_a_few_last_bytes_overtake_those_that_wait_for_a_window():
    """They have room although no window has, so their device need not wait for its turn."""
    leases = Leases(2 * WINDOW_BYTES)
    leases.request("a", 0.0)
    leases.request("b", 0.0, size=WINDOW_BYTES // 2)
    assert leases.request("c", 0.0) > 0.0
    assert leases.request("small", 0.0, size=BLOCK_BYTES, last=True) == 0.0
    assert leases.request("not last", 0.0, size=BLOCK_BYTES) > 0.0


def test_a_lease_grows_only_where_the_budget_has_room():
    """Devices that have fetched a manifest wait for the windows of the model's file, as others do."""
    leases = Leases(2 * WINDOW_BYTES)
    for number in range(4):
        assert leases.request(f"d{number}", 0.0, size=2_000, last=True) == 0.0
    assert [leases.request(f"d{number}", 0.1) == 0.0 for number in range(4)] == [True, False, False, False]
    assert leases.bytes == WINDOW_BYTES + 3 * 2_000


def test_a_renewed_lease_keeps_the_bytes_that_are_on_the_way():
    """The request for the last block does not say that the blocks before it have arrived."""
    leases = Leases(2 * WINDOW_BYTES)
    leases.request("a", 0.0)
    leases.request("a", 0.1, size=BLOCK_BYTES, last=True)
    assert leases.bytes == WINDOW_BYTES
    leases.request("b", 0.1 + LAST_SECONDS, size=BLOCK_BYTES, last=True)
    assert leases.bytes == BLOCK_BYTES


def test_first_come_first_served():
    """A free lease goes to the device that has waited longest, even if a later one asks first."""
    leases = Leases(WINDOW_BYTES)
    assert leases.request("a", 0.0) == 0.0
    assert leases.request("b", 0.1) > 0.0
    assert leases.request("c", 0.2) > 0.0
    assert leases.request("a", 0.3, last=True) == 0.0
    free = 0.3 + LAST_SECONDS
    assert leases.request("c", free) > 0.0
    assert leases.request("b", free) == 0.0


def test_who_does_not_come_back_loses_its_turn():
    """A device that disconnected while it waited does not block a lease for ever."""
    leases = Leases(WINDOW_BYTES)
    leases.request("a", 0.0, last=True)
    leases.request("gone", 0.0)
    assert leases.request("c", 2.0) > 0.0
    assert leases.request("c", 60.0) == 0.0


def test_a_silent_transfer_gives_its_place_back():
    """The lease of a silent device ends after a while, that of a finished one at once."""
    leases = Leases(WINDOW_BYTES)
    leases.request("a", 0.0)
    assert leases.request("b", LEASE_IDLE_SECONDS - 0.1) > 0.0
    assert leases.request("b", LEASE_IDLE_SECONDS + 0.1) == 0.0
    leases.request("b", 11.0, last=True)
    assert leases.request("c", 11.0 + LAST_SECONDS) == 0.0


@given(
    st.integers(1, 5),
    st.lists(
        st.tuples(st.integers(0, 9), st.floats(0, 4), st.booleans(), st.integers(0, 2 * WINDOW_BYTES)), max_size=80
    ),
)
def test_no_order_of_requests_exceeds_the_budget(places, requests):
    """For any order of requests the bytes stay within the budget, and every retry time is in its range."""
    leases, now = Leases(places * WINDOW_BYTES), 0.0
    for device, wait, last, size in requests:
        now += wait
        retry = leases.request(f"d{device}", now, last=last, size=size)
        assert 0 <= leases.bytes <= places * WINDOW_BYTES
        assert 0.0 <= retry <= MAX_RETRY_SECONDS


@pytest.mark.parametrize("places", [1, 3, 16])
def test_everybody_has_a_turn(places):
    """200 devices that retry at the given times are all served, roughly in the order of their first request."""
    luck = random.Random(7)
    leases = Leases(places * WINDOW_BYTES)
    asks = sorted((luck.uniform(0, 1), f"d{n}") for n in range(200))
    arrived, served = [name for _, name in asks], []
    now = 0.0
    while asks:
        now, name = asks.pop(0)
        retry = leases.request(name, now, last=True)
        if retry:
            asks = sorted([*asks, (now + retry * luck.uniform(0.8, 1.2), name)])
        else:
            served.append(name)
    assert sorted(served) == sorted(arrived)
    assert max(abs(served.index(name) - arrived.index(name)) for name in arrived) <= 2 * places
    assert now <= 2 * 200 * LAST_SECONDS / places + MAX_RETRY_SECONDS


class Fleet:
    """Devices that all fetch one blob from one service."""

    def __init__(self, folder, budget_bytes, blob):
        self.broker = MemoryBroker()
        self.digest = hashlib.sha256(blob).hexdigest()
        store = open_store(f"file://{folder}")
        store.put(blob_name(self.digest), blob)
        self.desk = MemoryTransport(self.broker, "controller")
        self.service = BlockService(
            fleet=FLEET, transport=self.desk, store=store, clock=SystemClock(), broker_budget_bytes=budget_bytes
        )
        self.most_bytes = 0
        self.hints = []
        self.broker.tap = self._tap

    def _tap(self, client, message):
        if client != "controller":
            answer = decode(message.payload, Answer)
            self.most_bytes = max(self.most_bytes, self.service.leases.bytes)
            self.hints += [answer.retry_seconds] if answer.error else []
        return [message]

    async def fetch(self, name):
        """One device, from connecting to the whole blob."""
        transport = MemoryTransport(self.broker, name)
        answers = RequestClient(transport, fleet=FLEET, device=name)
        await answers.start()
        await connect(transport)
        try:
            blocks = [block async for block in BlockFetcher(answers, SystemClock()).blocks(self.digest, range(6))]
            return b"".join(data for _, data in sorted(blocks))
        finally:
            await transport.stop()


async def test_a_whole_fleet_fetches_within_the_budget(tmp_path):
    """24 real fetchers of 6 blocks, and a budget for 8 of them: all get the blob, the others get a retry time."""
    blob = bytes(range(256)) * 256 * 5 + b"tail"
    budget = 8 * 6 * BLOCK_BYTES
    fleet = Fleet(tmp_path, budget, blob)
    await connect(fleet.desk)
    await fleet.service.start()
    try:
        fetched = await asyncio.wait_for(asyncio.gather(*(fleet.fetch(f"d{n}") for n in range(24))), 240)
    finally:
        await fleet.service.stop()
        await fleet.desk.stop()
    assert set(fetched) == {blob}
    assert 0 < fleet.most_bytes <= budget
    assert fleet.hints
    assert all(0 < hint <= MAX_RETRY_SECONDS for hint in fleet.hints)


def test_who_listens_to_a_wave_leaves_its_place():
    """The next device gets the lease at once, and the listening device is no longer in the queue."""
    leases = Leases(WINDOW_BYTES)
    assert leases.request("a", 0.0) == 0.0
    assert leases.request("b", 0.0) > 0.0
    leases.release("b", 0.0)
    assert leases.waiting == 0
    leases.release("a", 0.0)
    assert leases.request("c", 0.0) == 0.0
