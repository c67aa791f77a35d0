"""A device makes missing blocks from a delta and a file that it has. A bad delta costs only its own bytes."""

import hashlib
from collections import Counter

import msgspec
import pytest

from device_agents.download.bundle import BundleDownload
from device_agents.download.deltas import OFFERS_NAME, load_offers, save_offers
from device_agents.storage.slots import Slots
from edgekit.bundle.manifest import BLOCK_BYTES
from edgekit.deltas.description import Offer
from edgekit.deltas.making import make_delta
from edgekit.errors import NotFoundError, RefusedError, TransportError
from edgekit.storage.disk import MemoryDisk
from tests.simulators.bundles import manifest_of
from tests.simulators.weights import int8_weights, onnx_file, retrained

WEIGHTS = int8_weights(1, 400_000, 1_100_000)
OLD = onnx_file(WEIGHTS)
NEW = onnx_file(retrained(WEIGHTS, 2))
DELTA, PAYLOAD = make_delta(OLD, NEW)
DESCRIPTION = DELTA.to_bytes()
GOLDEN = b"golden"
BLOCKS = -(-len(NEW) // BLOCK_BYTES)


def digest_of(data):
    return hashlib.sha256(data).hexdigest()


OFFER = Offer(DELTA.base, DELTA.result, digest_of(DESCRIPTION), len(DESCRIPTION), len(PAYLOAD))


class Source:
    """BlockSource over bytes by digest; counts what it sent, and fails after `limit` bytes."""

    def __init__(self, *files, limit=1 << 40):
        self.files = {digest_of(data): data for data in files}
        self.sent = Counter()
        self.limit = limit

    async def blocks(self, digest, wanted, hashes=(), *, wasted=None):
        if digest not in self.files:
            raise NotFoundError(f"no blob {digest}")
        for index in list(wanted):
            data = self.files[digest][index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
            if self.sent.total() + len(data) > self.limit:
                raise TransportError("the broker is away")
            self.sent[digest] += len(data)
            yield index, data


@pytest.fixture
def disk():
    made = MemoryDisk()
    made.write("in/model.onnx", OLD)
    made.write("in/golden.npz", GOLDEN)
    Slots(made, "digits").stage("a", manifest_of(model=OLD).canonical_bytes(), "in")
    return made


async def update(disk, source, *offers, budget=None):
    counters = Counter()
    download = BundleDownload(disk, source, counters, offers=offers or (OFFER,), budget=budget)
    await download.run(manifest_of(version="1.1.0", model=NEW), "to", make_room=lambda: None)
    assert disk.read("to/model.onnx") == NEW
    assert not [name for name in disk.list("to") if name.startswith("_payload")]
    return counters


async def test_an_update_costs_its_delta(disk):
    """No whole block of the new file is fetched."""
    source = Source(NEW, GOLDEN, DESCRIPTION, PAYLOAD)
    counters = await update(disk, source)
    assert source.sent.total() == len(DESCRIPTION) + len(PAYLOAD) < 0.06 * len(NEW)  # the golden samples are reused
    assert counters["blocks_made"] == BLOCKS
    assert counters["bytes_fetched"] == source.sent.total()


async def test_blocks_that_are_here_already_need_no_payload(disk):
    """A download of whole blocks that was cut goes on with the delta for the rest only."""
    with pytest.raises(TransportError):
        await BundleDownload(disk, Source(NEW, limit=20 * BLOCK_BYTES), Counter()).run(
            manifest_of(version="1.1.0", model=NEW), "to", make_room=lambda: None
        )
    counters = await update(disk, Source(NEW, GOLDEN, DESCRIPTION, PAYLOAD))
    assert 0 < counters["blocks_made"] == BLOCKS - 20


async def test_a_cut_in_the_payload_loses_none_of_it(disk):
    """Fetched blocks of the delta stay on the disk for the next attempt."""
    first = Source(NEW, GOLDEN, DESCRIPTION, PAYLOAD, limit=len(DESCRIPTION) + BLOCK_BYTES)
    with pytest.raises(TransportError):
        await update(disk, first)
    assert first.sent[digest_of(PAYLOAD)] == BLOCK_BYTES
    second = Source(NEW, GOLDEN, DESCRIPTION, PAYLOAD)
    await update(disk, second)
    assert second.sent[digest_of(PAYLOAD)] == len(PAYLOAD) - BLOCK_BYTES
    assert digest_of(NEW) not in second.sent


def lying(**fields):
    """A signed description that lies, and its offer."""
    data = msgspec.structs.replace(DELTA, **fields).to_bytes()
    return data, Offer(DELTA.base, DELTA.result, digest_of(data), len(data), len(PAYLOAD))


async def test_a_delta_that_makes_wrong_blocks_costs_its_bytes_and_no_right_block(disk):
    """Its first segment is right and stays; the rest comes whole, and the delta is not tried again."""
    first, second = DELTA.segments
    spans = (msgspec.structs.replace(second.spans[0], offset=0), *second.spans[1:])
    data, offer = lying(segments=(first, msgspec.structs.replace(second, spans=spans)))
    save_offers(disk, "to", (offer,))
    source = Source(NEW, GOLDEN, data, PAYLOAD)
    counters = await update(disk, source, offer)
    assert counters["deltas_failed"] == 1
    assert counters["blocks_made"] == 16
    assert source.sent[digest_of(NEW)] == len(NEW) - 16 * BLOCK_BYTES
    assert load_offers(disk, "to") == ()


@pytest.mark.parametrize("fault", ["no description", "no payload", "lies", "cut payload", "garbage"])
async def test_a_delta_that_fails_leaves_whole_blocks(disk, fault):
    """The update succeeds all the same."""
    files, offer = [NEW, GOLDEN, DESCRIPTION, PAYLOAD], OFFER
    if fault == "no description":
        files.remove(DESCRIPTION)
    elif fault == "no payload":
        files.remove(PAYLOAD)
    elif fault == "lies":
        data, offer = lying(result_size=1 << 60)
        files.append(data)
    elif fault == "garbage":
        data = bytes(1000)
        offer = msgspec.structs.replace(OFFER, description=digest_of(data), length=1000)
        files.append(data)
    source = Source(*files)
    if fault == "cut payload":
        source.files[digest_of(PAYLOAD)] = PAYLOAD[:-1]
    counters = await update(disk, source, offer)
    assert counters["deltas_failed"] == 1
    assert source.sent[digest_of(NEW)] >= len(NEW) - 16 * BLOCK_BYTES


@pytest.mark.parametrize("damage", ["gone", "changed", "other"])
async def test_a_base_that_is_not_proven_is_not_used(disk, damage):
    """Nothing of the delta is asked for where its base is not here byte for byte."""
    if damage == "gone":
        disk.remove("models/digits/a")
    elif damage == "changed":
        disk.write_at("models/digits/a/model.onnx", 5, b"?")
    offer = msgspec.structs.replace(OFFER, base="1" * 64) if damage == "other" else OFFER
    source = Source(NEW, GOLDEN, DESCRIPTION, PAYLOAD)
    await update(disk, source, offer)
    assert digest_of(DESCRIPTION) not in source.sent
    assert source.sent[digest_of(NEW)] == len(NEW)


async def test_a_disk_that_cannot_hold_the_payload_takes_whole_blocks(disk):
    """The new bundle fits, and nothing more."""
    disk.capacity = sum(map(len, disk.files.values())) + len(NEW) + 1024**2 + 2000
    source = Source(NEW, GOLDEN, DESCRIPTION, PAYLOAD)
    await update(disk, source)
    assert digest_of(PAYLOAD) not in source.sent


async def test_the_smallest_fitting_delta_is_taken(disk):
    """Others name larger payloads, other results, other bases."""
    others = (
        msgspec.structs.replace(OFFER, size=OFFER.size + 1, description="2" * 64),
        msgspec.structs.replace(OFFER, result="3" * 64, size=1),
        msgspec.structs.replace(OFFER, base="4" * 64, size=1),
    )
    counters = await update(disk, Source(NEW, GOLDEN, DESCRIPTION, PAYLOAD), *others, OFFER)
    assert (counters["blocks_made"], counters["deltas_failed"]) == (BLOCKS, 0)


async def test_a_delta_counts_into_the_budget(disk):
    """Its description and payload are fetched like blocks."""
    with pytest.raises(RefusedError, match="budget"):
        await update(disk, Source(NEW, GOLDEN, DESCRIPTION, PAYLOAD), budget=len(PAYLOAD) // 2)


def test_load_offers_that_are_damaged_are_none():
    """They are only a help."""
    disk = MemoryDisk()
    assert load_offers(disk, "to") == ()
    save_offers(disk, "to", (OFFER,))
    assert load_offers(disk, "to") == (OFFER,)
    for damage in (b"\xc1", b"\x91\x81\xa4base\xa1\xff"):  # no MessagePack; text that is not UTF-8
        disk.write(f"to/{OFFERS_NAME}", damage)
        assert load_offers(disk, "to") == ()
