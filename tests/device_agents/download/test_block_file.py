"""Downloads block by block: interrupted, repeated, damaged, and with blocks that are already on the device."""

import random
from collections import Counter

import pytest

from device_agents.download.block_file import SPARE_BYTES, BlockFile
from device_agents.download.bundle import BundleDownload
from device_agents.storage.slots import CHUNK_BYTES, Slots
from edgekit.bundle.manifest import BLOCK_BYTES, file_entry
from edgekit.errors import DigestMismatchError, DiskError
from edgekit.storage.disk import MemoryDisk
from tests.simulators.bundles import manifest_of
from tests.simulators.device import Device
from tests.simulators.disk import FaultyDisk


def blocks(*seeds):
    """Bytes of whole blocks; the same seed gives the same block."""
    return b"".join(random.Random(seed).randbytes(BLOCK_BYTES) for seed in seeds)


class Source:
    """BlockSource over bytes by digest; remembers what was asked for."""

    def __init__(self, *files):
        self.files = {file_entry("x", "model", data).sha256: data for data in files}
        self.asked = []

    async def blocks(self, digest, wanted, hashes=(), *, wasted=None):
        for index in list(wanted):
            self.asked.append(index)
            yield index, self.files[digest][index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]


def install(disk, name, slot, model, version="1.0.0"):
    manifest = manifest_of(name=name, version=version, model=model)
    disk.write("in/model.onnx", model)
    disk.write("in/golden.npz", b"golden")
    Slots(disk, name).stage(slot, manifest.canonical_bytes(), "in")


async def download(disk, model, source=None):
    source, counters = source or Source(model, b"golden"), Counter()
    await BundleDownload(disk, source, counters).run(
        manifest_of(version="9.0.0", model=model), "to", make_room=lambda: None
    )
    assert disk.read("to/model.onnx") == model
    return source.asked, counters


async def test_blocks_are_found_in_any_slot_of_any_model_wherever_they_stand():
    """Moved within the file, in either slot, or of another model: none of them is fetched."""
    disk = MemoryDisk()
    install(disk, "digits", "a", blocks(1, 2, 3))
    install(disk, "digits", "b", blocks(4, 5), version="2.0.0")
    install(disk, "other", "a", blocks(6) + b"short end")
    asked, counters = await download(disk, blocks(3, 5, 7, 6, 1) + b"short end")
    assert asked == [2]
    assert counters == {"blocks_reused": 5 + 1, "blocks_fetched": 1, "bytes_fetched": BLOCK_BYTES}


async def test_a_block_that_comes_several_times_is_fetched_once():
    """Zeros between tensors cost one block."""
    asked, counters = await download(MemoryDisk(), blocks(1, 2, 1, 2, 1) + b"end")
    assert asked == [0, 1, 5, 0]
    assert counters["bytes_fetched"] == 2 * BLOCK_BYTES + 3 + len(b"golden")


async def test_the_space_of_every_file_is_reserved_before_the_first_block():
    """Another model's download cannot take the space of a file whose turn comes later."""
    disk, model, free = MemoryDisk(capacity=10 * BLOCK_BYTES + SPARE_BYTES), blocks(*range(8)), []

    class Watching(Source):
        async def blocks(self, digest, wanted, hashes=(), *, wasted=None):
            free.append(disk.free_bytes())
            async for index, data in super().blocks(digest, wanted, hashes):
                yield index, data

    await download(disk, model, Watching(model, b"golden"))
    assert free[0] <= disk.capacity - len(model) - len(b"golden")


def test_a_block_that_is_here_already_is_hashed_once():
    """Finding 40 unchanged blocks hashes each of them once, and none of the other blocks in the slot."""

    class Counting(BlockFile):
        hashed = 0

        def _matches(self, index, data):
            self.hashed += 1
            return super()._matches(index, data)

    disk, model = MemoryDisk(), blocks(*range(40))
    install(disk, "digits", "a", model + blocks(*range(100, 120)))
    file = Counting(disk, "f", file_entry("model.onnx", "model", model + blocks(99)))
    file.open()
    assert file.reuse() == 40
    assert file.hashed == 40
    assert file.wanted() == [40]


async def test_no_step_of_an_update_reads_a_whole_file(desk, tmp_path):
    """A bundle larger than the memory is fetched, verified, staged and checked at the next start."""
    sizes = {}

    class Measured(FaultyDisk):
        def read(self, name):
            data = super().read(name)
            sizes[name] = max(sizes.get(name, 0), len(data))
            return data

        def read_at(self, name, offset, length):
            data = super().read_at(name, offset, length)
            sizes[name] = max(sizes.get(name, 0), len(data))
            return data

    device = Device(tmp_path / "device", desk.broker, desk.root, Measured())
    await device.start()
    desk.assign(desk.publish("1.0.0", random.Random(1).randbytes(3 * CHUNK_BYTES)))
    await device.settled("1.0.0")
    await device.stop()
    seen = {name for name in sizes if name.endswith("model.onnx")}
    assert max(sizes[name] for name in seen) == CHUNK_BYTES
    sizes.clear()
    await device.start()
    await device.until(lambda: sizes.get("models/digits/a/model.onnx"))  # the check of the slot after a start
    await device.stop()
    assert sizes["models/digits/a/model.onnx"] == CHUNK_BYTES


@pytest.mark.parametrize("damage", ["manifest", "file", "gone", "unreadable"])
async def test_a_slot_that_is_damaged_gives_nothing_and_harms_nothing(damage):
    """A block from a slot is hashed before it is used."""
    disk = MemoryDisk()
    install(disk, "digits", "a", blocks(1, 2))
    if damage == "manifest":
        disk.write("models/digits/a/manifest.json", b"{")
    elif damage == "file":
        disk.write("models/digits/a/model.onnx", bytes(2 * BLOCK_BYTES))
    elif damage == "gone":
        disk.remove("models/digits/a/model.onnx")
    else:
        read_at = disk.read_at

        def fail(name, offset, length):
            if name.startswith("models"):
                raise DiskError("bad sector")
            return read_at(name, offset, length)

        disk.read_at = fail
    asked, _ = await download(disk, blocks(1, 2))
    assert asked[:2] == [0, 1]


def test_a_wrong_block_is_not_written():
    """Both digests are named."""
    disk, data = MemoryDisk(), blocks(1)
    entry = file_entry("model.onnx", "model", data)
    file = BlockFile(disk, "f", entry)
    file.open()
    with pytest.raises(DigestMismatchError, match=entry.blocks[0]):
        file.put(0, blocks(2))
    assert disk.read("f") == bytes(BLOCK_BYTES)
    assert file.wanted() == [0]
