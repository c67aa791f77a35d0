"""An agent with a damaged disk: it starts, serves whole bundles, reports the damage and repairs it."""

import asyncio

import msgspec
import pytest

from device_agents.options import AgentTimings
from device_agents.storage.slot_check import check_slot, installed_in
from edgekit.errors import DigestMismatchError, DiskError, ShortageError
from edgekit.mqtt import messages
from edgekit.trust.envelopes import open_envelope
from tests.simulators.device import Desk, Device
from tests.simulators.real_device import RealDevice, publish_real
from tests.simulators.transport import MemoryBroker


@pytest.fixture
async def desk(tmp_path):
    made = Desk(tmp_path / "desk", MemoryBroker())
    await made.start()
    return made


@pytest.fixture
async def device(tmp_path, desk):
    """At rest with version 1.0.0, and stopped."""
    made = RealDevice(tmp_path / "device", desk.broker, desk.root)
    made.timings = AgentTimings(metadata_timeout_seconds=0.3)
    await made.start()
    desk.assign(publish_real(desk, tmp_path / "made", "1.0.0"))
    await made.settled("1.0.0")
    await made.stop()
    yield made
    if not made.task.done():
        await made.stop()


def told(desk, device, kind):
    """Events of one kind."""
    events = [open_envelope(p, messages.Event, device.signer.public_key) for p in desk.said("event")]
    return [event for event in events if event.kind == kind]


def spoil(device, name, at=10):
    """One wrong byte."""
    path = device.folder / "state" / name
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


async def test_a_damaged_journal_does_not_stop_the_agent(desk, device):
    """The copies serve; the controller hears which files were damaged, and the next start finds them mended."""
    spoil(device, "journal/device.json")
    spoil(device, "journal/models/digits.json")
    await device.start()
    assert await device.answering() == "1.0.0"
    await device.until(lambda: len(told(desk, device, "journal-damaged")) == 2)
    assert device.reported().models["digits"].version == "1.0.0"
    assert device.reported().assignment == 1
    await device.stop()


async def test_without_any_journal_the_pointer_and_a_whole_slot_still_answer(desk, device, tmp_path):
    """Both copies of both records are gone; the device serves, is heard, and takes the next version."""
    for name in ("device", "models/digits"):
        spoil(device, f"journal/{name}.json")
        spoil(device, f"journal/copies/{name}.json")
    before = device.reported().number
    await device.start()
    assert await device.answering() == "1.0.0"
    await device.until(lambda: len(told(desk, device, "journal-damaged")) == 4)
    desk.assign(publish_real(desk, tmp_path / "made", "2.0.0"))
    await device.settled("2.0.0")
    assert device.reported().number > before
    device.check_rest()


@pytest.fixture
async def updated(desk, device, tmp_path):
    """At rest with 2.0.0 in slot b and 1.0.0 in slot a, and stopped."""
    await device.start()
    desk.assign(publish_real(desk, tmp_path / "made", "2.0.0"))
    await device.settled("2.0.0")
    await device.stop()
    desk.blocks_sent = 0
    return device


async def test_a_damaged_slot_is_told_the_other_one_answers_and_it_is_fetched_again(desk, updated):
    """At once from the slot that is whole; of the damaged one only the damaged block crosses the network."""
    spoil(updated, "models/digits/b/model.onnx", at=40)
    desk.silent = True
    await updated.start()
    await updated.until(lambda: updated.inference.provider("digits"))
    await updated.until(lambda: updated.state.known_good.version == "1.0.0" and updated.state.name.value == "IDLE")
    assert await updated.answering() == "1.0.0"
    (event,) = told(desk, updated, "slot-damaged")
    assert (event.error, event.detail["version"], event.detail["slot"]) == ("DigestMismatchError", "2.0.0", "b")
    await updated.until(lambda: updated.reported().models["digits"].version == "1.0.0")
    desk.silent = False
    await updated.settled("2.0.0")
    assert await updated.answering() == "2.0.0"
    assert desk.blocks_sent <= 2  # the manifest, and the block that was damaged
    updated.check_rest()


async def test_a_slot_that_cannot_be_read_for_want_of_descriptors_is_not_bad(tmp_path, desk):
    """Nothing is told, nothing is fetched again, and the newest version goes on."""
    device = Device(tmp_path / "small", desk.broker, desk.root)
    await device.start()
    for version in ("1.0.0", "2.0.0"):
        desk.assign(desk.publish(version))
        await device.settled(version)
    await device.stop()
    refused, read_at = [], device.disk.read_at

    def short(name, offset, length):
        refused.append(name)
        raise ShortageError(f"cannot read {name} at the moment")

    device.disk.read_at = short
    await device.start()
    await device.until(lambda: refused)
    device.disk.read_at = read_at
    desk.assign(desk.publish("3.0.0"))
    await device.settled("3.0.0")
    assert device.inference.history == ["1.0.0", "2.0.0", "2.0.0", "3.0.0"]  # the third by the restart
    assert told(desk, device, "slot-damaged") == []
    await device.stop()


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json", "golden.npz"])
async def test_a_slot_that_cannot_be_loaded_is_replaced_while_the_agent_starts(desk, updated, name):
    """A file is gone: when the agent is ready, the other slot answers already."""
    (updated.folder / "state/models/digits/b" / name).unlink()
    await updated.start()
    assert await updated.answering() == "1.0.0"
    await updated.settled("2.0.0")
    assert await updated.answering() == "2.0.0"
    updated.check_rest()


async def test_when_both_slots_are_damaged_the_cloud_is_left_and_the_bundle_comes_again(desk, updated):
    """Nothing answers locally, the report says so, and in the end the device has what it had."""
    for slot in "ab":
        (updated.folder / f"state/models/digits/{slot}/model.onnx").unlink()
    desk.silent = True
    await updated.start()
    assert await updated.answering() == ""
    await updated.until(lambda: updated.reported().models["digits"].version == "")
    desk.silent = False
    await updated.settled("2.0.0")
    assert await updated.answering() == "2.0.0"
    updated.check_rest()


async def test_what_answers_rightly_goes_on_while_its_slot_is_mended(desk, device):
    """A file that no answer needs is damaged, and there is no other slot: nothing is taken away meanwhile."""
    spoil(device, "models/digits/a/labels.bin", at=100)
    seen = set()

    async def ask():
        while True:
            seen.add(await device.answering())
            await asyncio.sleep(0.001)  # a fast model answers without giving way

    await device.start()
    asking = asyncio.ensure_future(ask())
    await device.until(lambda: told(desk, device, "slot-damaged"))
    await device.until(lambda: device.state.active.slot == "b" and device.rests())
    asking.cancel()
    assert seen == {"1.0.0"}
    device.check_rest()


async def test_a_bundle_that_ends_the_process_after_its_commit_is_rolled_back(desk, updated):
    """Three times within the watch: the bundle before it answers, the report says why, and it stays that way."""
    for _ in range(2):
        await updated.start()
        assert await updated.answering() == "2.0.0"
        await updated.kill()
    await updated.start()
    await updated.kill()
    await updated.start()
    assert await updated.answering() == "1.0.0"
    await updated.until(lambda: [one.error for one in updated.reported().outcomes.values()] == ["CrashLoop"])
    assert updated.reported().outcomes["digits"].result == "rolled-back"
    await updated.settled("1.0.0")
    await updated.stop()
    await updated.start()
    await updated.settled("1.0.0")
    assert updated.state.failed.version == "2.0.0"


async def test_after_a_quiet_time_a_commit_is_final(desk, updated):
    """Crashes later are not the bundle's fault."""
    updated.limits = msgspec.structs.replace(updated.limits, crash_watch_seconds=0.05)
    await updated.start()
    await updated.until(lambda: not updated.state.watching)
    for _ in range(5):
        await updated.kill()
        await updated.start()
    assert await updated.answering() == "2.0.0"


async def test_a_slot_is_whole_or_says_what_is_wrong(device):
    """To the last byte of every file."""
    installed = installed_in(device.disk, "digits", "a")
    assert installed.version == "1.0.0"
    spoil(device, "models/digits/a/labels.bin", at=140_000)
    with pytest.raises(DigestMismatchError, match=r"labels\.bin"):
        check_slot(device.disk, "digits", installed)
    (device.folder / "state/models/digits/a/labels.bin").unlink()
    with pytest.raises(DiskError, match=r"labels\.bin"):
        check_slot(device.disk, "digits", installed)
    with pytest.raises(DiskError, match="has no bundle"):
        installed_in(device.disk, "digits", "b")
