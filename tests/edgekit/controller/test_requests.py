"""The block and metadata services: requests of devices, and hostile requests."""

import asyncio
import hashlib
import json

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.bundle.manifest import BLOCK_BYTES
from edgekit.controller.blocks import MAX_CREDIT, BlockCache, BlockService
from edgekit.controller.metadata import MAX_METADATA_BYTES, MetadataService
from edgekit.mqtt import topics
from edgekit.mqtt.messages import Answer, BlocksRequest, MetadataRequest, Range, decode, encode
from edgekit.registry import blob_name
from edgekit.storage.stores import open_store
from tests.simulators.transport import MemoryBroker, MemoryTransport, connect

FLEET = "test"
BLOB = bytes(range(256)) * 256 * 20 + b"tail"  # 20 whole blocks and a short one
DIGEST = hashlib.sha256(BLOB).hexdigest()


class Clock:
    now = 100.0

    def monotonic(self):
        return self.now

    def wall(self):
        return self.now


class CountingStore:
    """A real store that counts reads."""

    def __init__(self, store):
        self._store = store
        self.reads = 0

    def get_range(self, name, start, length):
        self.reads += 1
        return self._store.get_range(name, start, length)

    def __getattr__(self, name):
        return getattr(self._store, name)


class Desk:
    """Both services, and devices that send requests to them."""

    def __init__(self, folder, **options):
        self.broker = MemoryBroker()
        self.store = CountingStore(open_store(f"file://{folder}"))
        self.store.put(blob_name(DIGEST), BLOB)
        self.store.put("metadata/timestamp.json", b"{}")
        self.store.put("metadata/7.snapshot.json", b"s" * (2 * BLOCK_BYTES + 1))
        self.clock = Clock()
        transport = MemoryTransport(self.broker, "controller")
        self.blocks = BlockService(
            fleet=FLEET,
            transport=transport,
            store=self.store,
            clock=self.clock,
            broker_budget_bytes=options.get("broker_budget_bytes", 4 * 2**20),
        )
        self.metadata = MetadataService(fleet=FLEET, transport=transport, store=self.store, clock=self.clock)
        self.transports = {"controller": transport}
        self.answers = {}

    async def __aenter__(self):
        await connect(self.transports["controller"])
        await self.blocks.start()
        await self.metadata.start()
        return self

    async def __aexit__(self, *_):
        await self.blocks.stop()
        await self.metadata.stop()
        for transport in self.transports.values():
            await transport.stop()

    async def ask(self, kind, request, device="pi-1", count=1):
        """Send a request; returns the next `count` answers that the device gets."""
        if device not in self.transports:
            self.transports[device] = MemoryTransport(self.broker, device)
            await connect(self.transports[device])
            self.answers[device] = asyncio.Queue()
            queue = self.answers[device]
            await self.transports[device].subscribe(
                topics.answer(FLEET, device), lambda m: queue.put_nowait(decode(m.payload, Answer))
            )
        payload = request if isinstance(request, bytes) else encode(request)
        await self.transports[device].publish(topics.request(FLEET, kind, device), payload, qos=1)
        return [await asyncio.wait_for(self.answers[device].get(), 10) for _ in range(count)]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store"


def want(*ranges, credit=MAX_CREDIT, digest=DIGEST, request_id="r1"):
    return BlocksRequest(request_id, digest, tuple(Range(*pair) for pair in ranges), credit)


# --- blocks


async def test_blocks_come_as_asked(folder):
    """Each block carries its index, the number of blocks and the request's id; the last one is short."""
    async with Desk(folder) as desk:
        answers = await desk.ask("blocks", want((19, 20), (3, 3)), count=3)
    assert [(a.id, a.index, a.total) for a in answers] == [("r1", 19, 21), ("r1", 20, 21), ("r1", 3, 21)]
    assert [a.data for a in answers] == [BLOB[i * BLOCK_BYTES : (i + 1) * BLOCK_BYTES] for i in (19, 20, 3)]


async def test_credit_bounds_the_answers(folder):
    """The service sends no more blocks than the device's credit and its own limit allow."""
    async with Desk(folder) as desk:
        await desk.ask("blocks", want((0, 20), credit=2), count=2)
        last = await desk.ask("blocks", want((0, 20), credit=10**9, request_id="r2"), count=MAX_CREDIT)
        assert [a.index for a in last] == list(range(MAX_CREDIT))
        assert desk.answers["pi-1"].empty()


async def test_neighbouring_blocks_are_one_read_and_hot_ones_none(folder):
    """Consecutive blocks cost one read of the store; the same blocks for the next device cost none."""
    async with Desk(folder) as desk:
        await desk.ask("blocks", want((0, 15)), count=16)
        assert desk.store.reads == 1
        await desk.ask("blocks", want((0, 15)), device="pi-2", count=16)
        assert desk.store.reads == 1


async def test_mended_blob_is_served_after_a_while(folder):
    """Cached blocks expire, so a blob that was repaired in the store is served correctly."""
    async with Desk(folder) as desk:
        desk.store.put(blob_name(DIGEST), b"x" * len(BLOB))
        (damaged,) = await desk.ask("blocks", want((0, 0)))
        desk.store.put(blob_name(DIGEST), BLOB)
        desk.clock.now += 60
        (mended,) = await desk.ask("blocks", want((0, 0)))
    assert damaged.data == b"x" * BLOCK_BYTES
    assert mended.data == BLOB[:BLOCK_BYTES]


async def test_missing_blob_is_not_found(folder):
    """An unknown digest is answered with not-found."""
    async with Desk(folder) as desk:
        (answer,) = await desk.ask("blocks", want((0, 0), digest="0" * 64))
    assert (answer.id, answer.error, answer.data) == ("r1", "not-found", b"")
    assert "/" not in answer.message  # where the store is, is nobody's business


@pytest.mark.parametrize(
    "request_",
    [
        want((0, 0), digest="../../keys/root"),
        want((0, 0), digest="A" * 64),
        want((0, 21)),
        want((5, 4)),
        want((-1, 0)),
        want((0, 2**62)),
        want(),
        want(*[(0, 0)] * 1025),
        want((0, 0), credit=0),
        want((0, 0), request_id="r" * 65),
        want((0, 0), request_id=""),
        MetadataRequest("r1", "timestamp.json"),
        b"",
        b"\xc1",
        b"\xff" * 1000,
        msgspec.msgpack.encode({"id": 7}),
    ],
)
async def test_hostile_block_requests_get_an_error_answer(folder, request_):
    """A malformed request is answered with bad-request, and the next good request is served."""
    async with Desk(folder) as desk:
        (answer,) = await desk.ask("blocks", request_)
        assert answer.error == "bad-request"
        assert answer.data == b""
        (good,) = await desk.ask("blocks", want((0, 0)))
        assert good.error == ""
        assert desk.blocks.failures == 0


async def test_transfers_beyond_the_cap_are_told_busy(folder):
    """The number of served devices is limited; another one is served when one has been idle."""
    async with Desk(folder, broker_budget_bytes=2 * 2**20) as desk:
        for device in ("pi-1", "pi-2"):
            assert (await desk.ask("blocks", want((0, 0)), device))[0].error == ""
        assert (await desk.ask("blocks", want((0, 0)), "pi-3"))[0].error == "busy"
        assert (await desk.ask("blocks", want((1, 1)), "pi-1"))[0].error == ""
        desk.clock.now += 11
        assert (await desk.ask("blocks", want((0, 0)), "pi-3"))[0].error == ""


async def test_flood_of_one_device_is_bounded(folder):
    """A device with too many requests at once gets busy for the excess, and the number of answers stays limited."""
    async with Desk(folder) as desk:
        await desk.ask("blocks", want((0, 0)))
        topic = topics.request(FLEET, "blocks", "pi-1")
        for i in range(40):
            desk.broker.publish(topic, encode(want((0, 20), request_id=f"f{i}")), qos=1)
        answers = []
        while len({a.id for a in answers}) < 40:
            answers.append(await asyncio.wait_for(desk.answers["pi-1"].get(), 10))
        busy = [a for a in answers if a.error == "busy"]
        assert 0 < len(busy) < 40
        assert len(answers) - len(busy) <= (40 - len(busy)) * MAX_CREDIT


async def test_empty_blob_has_no_blocks(folder):
    """A request for a block of an empty blob is a bad request."""
    async with Desk(folder) as desk:
        digest = hashlib.sha256(b"").hexdigest()
        desk.store.put(blob_name(digest), b"")
        (answer,) = await desk.ask("blocks", want((0, 0), digest=digest))
    assert answer.error == "bad-request"


def test_cache_stays_within_its_bytes():
    """The least recently used blocks are dropped."""
    cache = BlockCache(100, 10.0, Clock())
    for index in range(10):
        cache.put("d", index, b"x" * 30)
    assert cache.bytes <= 100
    assert cache.get("d", 9) == b"x" * 30
    assert cache.get("d", 0) is None
    cache.put("d", 9, b"y")
    assert cache.get("d", 9) == b"y"
    assert cache.bytes == 61


# --- metadata


async def test_metadata_comes_in_parts(folder):
    """A file larger than a block is sent in numbered parts."""
    async with Desk(folder) as desk:
        parts = await desk.ask("metadata", MetadataRequest("m1", "7.snapshot.json"), count=3)
    assert [(p.id, p.index, p.total) for p in parts] == [("m1", i, 3) for i in range(3)]
    assert b"".join(p.data for p in parts) == b"s" * (2 * BLOCK_BYTES + 1)
    assert max(len(p.data) for p in parts) == BLOCK_BYTES


async def test_devices_in_step_share_one_copy_of_a_metadata_file(folder):
    """200 requests at once hold one copy in memory; the timestamp, which changes, is read again each time."""
    async with Desk(folder) as desk:
        snapshot = [desk.metadata._file("7.snapshot.json") for _ in range(200)]
        copies = await asyncio.gather(*snapshot, desk.metadata._file("7.snapshot.json"))
        assert len({id(copy) for copy in copies}) == 1
        assert await desk.metadata._file("7.snapshot.json") is copies[0]
        desk.store.put("metadata/timestamp.json", b"{1}")
        assert await desk.metadata._file("timestamp.json") == b"{1}"
        desk.store.put("metadata/timestamp.json", b"{2}")
        assert await desk.metadata._file("timestamp.json") == b"{2}"
        desk.store.put("metadata/8.targets.json", bytes(MAX_METADATA_BYTES + 1))
        (answer,) = await desk.ask("metadata", MetadataRequest("m1", "8.targets.json"))
    assert answer.error == "busy"
    assert "more than" in answer.message


async def test_missing_metadata_is_not_found(folder):
    """A request for a root that does not exist yet is answered, so that the device does not wait for a time-out."""
    async with Desk(folder) as desk:
        (answer,) = await desk.ask("metadata", MetadataRequest("m1", "2.root.json"))
    assert answer.error == "not-found"


@pytest.mark.parametrize(
    "name", ["../keys/root.json", "/etc/passwd", "a/b.json", "timestamp.txt", "", "..json", "X.json", "a\n.json"]
)
async def test_names_that_leave_the_folder_are_refused(folder, name):
    """Only a plain metadata file name reaches the store."""
    async with Desk(folder) as desk:
        desk.store.put("keys/root.json", b"secret")
        (answer,) = await desk.ask("metadata", MetadataRequest("m1", name))
    assert answer.error in ("not-found", "bad-request")
    assert answer.data == b""


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["blocks", "metadata"]), st.binary(max_size=200))
def test_garbage_never_breaks_a_service(tmp_path_factory, kind, payload):
    """Any garbage gets exactly one error answer."""

    async def story():
        async with Desk(tmp_path_factory.mktemp("store")) as desk:
            (answer,) = await desk.ask(kind, payload)
            assert answer.error
            assert desk.blocks.failures == desk.metadata.failures == 0

    asyncio.run(story())


async def test_a_standby_leaves_requests_to_the_leader_where_the_broker_does_not_share_them(folder):
    """Both get the request; the one that leads answers it."""
    async with Desk(folder) as desk:
        desk.blocks._answers_here = lambda: False
        desk.metadata._answers_here = lambda: False
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(desk.ask("blocks", want((0, 0))), 0.3)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(desk.ask("metadata", MetadataRequest("r1", "timestamp.json")), 0.3)
        desk.blocks._answers_here = lambda: True
        (answer,) = await desk.ask("blocks", want((3, 3)))
        assert answer.index == 3


def listing(**versions):
    return json.dumps(
        {"signed": {"meta": {f"{role}.json": {"version": one} for role, one in versions.items()}}}
    ).encode()


async def test_with_the_timestamp_come_the_newer_files_that_a_device_needs(folder):
    """One answer has all of a refresh; devices that name no versions get the file alone, as before."""
    async with Desk(folder) as desk:
        snapshot = listing(targets=3, digits=2, other=9)
        files = {"timestamp.json": listing(snapshot=8), "8.snapshot.json": snapshot}
        files |= {name: name.encode() for name in ("2.root.json", "3.root.json", "3.targets.json", "2.digits.json")}
        for name, data in files.items():
            desk.store.put(f"metadata/{name}", data)
        have = {"root": 1, "snapshot": 7, "targets": 3, "digits": 0, "unknown": 0}
        (answer,) = await desk.ask("metadata", MetadataRequest("m1", "timestamp.json", have))
        assert answer.data == files["timestamp.json"]
        expected = {name: files[name] for name in ("2.root.json", "3.root.json", "8.snapshot.json", "2.digits.json")}
        assert answer.files == expected
        assert answer.absent == ("4.root.json",)
        (answer,) = await desk.ask("metadata", MetadataRequest("m2", "timestamp.json"))
        assert (answer.data, answer.files, answer.absent) == (files["timestamp.json"], {}, ())
        desk.store.put("metadata/timestamp.json", listing(snapshot=9))  # a change is seen at once
        desk.store.put("metadata/9.snapshot.json", b"9")
        (answer,) = await desk.ask("metadata", MetadataRequest("m3", "timestamp.json", {"snapshot": 8, "root": 3}))
        assert answer.files == {}  # this one is no snapshot: the device requests the file and finds that out
        assert desk.metadata.failures == 0


async def test_what_does_not_fit_one_message_is_left_to_requests(folder):
    """Also the question for the next root, so that none is passed over."""
    async with Desk(folder) as desk:
        desk.store.put("metadata/timestamp.json", listing(snapshot=8))
        desk.store.put("metadata/8.snapshot.json", listing(targets=1) + b" " * BLOCK_BYTES)
        (answer,) = await desk.ask("metadata", MetadataRequest("m1", "timestamp.json", {"root": 1, "snapshot": 1}))
        assert (answer.data, answer.files, answer.absent) == (listing(snapshot=8), {}, ())
        many = {f"role-{number}": 0 for number in range(101)}
        (answer,) = await desk.ask("metadata", MetadataRequest("m2", "timestamp.json", many))
        assert answer.error == "bad-request"
