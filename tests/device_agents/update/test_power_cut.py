"""A power cut or a disk fault before every change of a disk in memory."""

import random

import pytest

from device_agents.deployment import UpdateState
from device_agents.download.block_file import SYNC_EVERY_BLOCKS
from device_agents.options import AgentTimings
from device_agents.storage.slots import Slots, verify_file
from edgekit.errors import DiskError
from edgekit.mqtt import messages, topics
from edgekit.trust.envelopes import open_envelope
from tests.simulators.device import DEVICE, FLEET, Device
from tests.simulators.disk import FaultyDisk, PowerCut, full


async def ended_or_off(device, version):
    """Run until the update is done or the power goes."""
    await device.until(lambda: device.disk.off or device.rests(version))


async def restart(device, *, cut_at=0):
    await device.kill()
    device.disk = device.disk.after_power_cut(cut_at=cut_at)
    device.inference.live.clear()
    await device.start()


def check_whole(device):
    """The pointer always names a whole bundle."""
    slots = Slots(device.disk, "digits")
    pointer = slots.pointer()
    state = device.state
    assert pointer.active == pointer.known_good == state.active.slot
    assert state.active == state.known_good
    manifest = slots.manifest(pointer.active, state.active.digest)
    for entry in manifest.files:
        verify_file(device.disk, f"{slots.folder(pointer.active)}/{entry.path}", entry)


async def changes_of_an_update(desk, folder):
    """How many changes one undisturbed update makes to the disk: (before it, after it)."""
    device = Device(folder, desk.broker, desk.root)
    await device.start()
    await device.settled("1.0.0")
    before = device.disk.changes
    desk.assign(desk.publish("2.0.0"))
    await device.settled("2.0.0")
    await device.kill()
    return before, device.disk.changes


async def test_power_may_go_at_every_change_of_the_disk(desk, tmp_path):
    """Cut before each change of an update in turn: after the restart an old or new bundle answers, then the new one."""
    first = desk.publish("1.0.0")
    desk.assign(first)
    before, after = await changes_of_an_update(desk, tmp_path / "counted")
    assert after - before > 25
    second = desk.publish("2.1.0")
    for change in range(before + 1, after + 1):
        desk.assign(first)
        device = Device(tmp_path / f"cut{change}", desk.broker, desk.root)
        await device.start()
        await device.settled("1.0.0")
        device.disk.cut_at = device.disk.changes + change - before
        desk.assign(second)
        await ended_or_off(device, "2.1.0")
        await restart(device)
        assert device.inference.live["digits"] in ("1.0.0", "2.1.0"), f"at change {change}"
        await device.settled("2.1.0")
        check_whole(device)
        await device.stop()


async def changes_of_a_rollback(desk, folder):
    """Numbers of the changes, counted from 1.0.0 at rest: the activation of a bundle that fails, and the end."""
    device = Device(folder, desk.broker, desk.root)
    device.inference.dying.add("2.0.0")
    await device.start()
    await device.settled("1.0.0")
    before, activated = device.disk.changes, []
    device.disk.fault = lambda change, method, name: name == "models/digits/active" and activated.append(change)
    desk.assign(desk.publish("2.0.0"))
    await device.until(lambda: device.state.outcome.version == "2.0.0" and device.rests("1.0.0"))
    await device.kill()
    return activated[0] - before, device.disk.changes - before


async def power_off_and_on(device, *, cut_at):
    """A restart, with the next power cut after `cut_at` changes; it may come while the agent starts."""
    device.inference.live.clear()
    await device.kill()
    device.disk = device.disk.after_power_cut(cut_at=cut_at)
    try:
        await device.start()
    except PowerCut:
        return
    assert device.inference.live["digits"] == device.state.active.version
    await device.until(lambda: device.disk.off or device.rests("1.0.0"))


async def test_power_may_go_twice_at_every_change_of_a_rollback(desk, tmp_path):
    """The old bundle answers after each cut, and it stays. The second cut comes within the rollback that follows."""
    first = desk.publish("1.0.0")
    desk.assign(first)
    begin, end = await changes_of_a_rollback(desk, tmp_path / "counted")
    assert end - begin > 8
    second = desk.publish("2.1.0")
    for change in range(begin, end + 1):
        desk.assign(first)
        device = Device(tmp_path / f"cut{change}", desk.broker, desk.root)
        device.inference.dying.add("2.1.0")
        await device.start()
        await device.settled("1.0.0")
        device.disk.cut_at = device.disk.changes + change
        desk.assign(second)
        await device.until(lambda d=device: d.disk.off or (d.rests("1.0.0") and d.state.outcome.version == "2.1.0"))
        await power_off_and_on(device, cut_at=1 + change % 9)
        await restart(device)
        assert device.inference.live["digits"] == "1.0.0", f"at change {change}"
        await device.until(lambda d=device: d.state.outcome.version == "2.1.0" and d.rests("1.0.0"))
        assert device.state.outcome.result == "rolled-back"
        check_whole(device)
        await device.stop()


async def test_a_disk_that_fails_at_any_change_ends_in_the_old_or_the_new_bundle(desk, tmp_path):
    """An effect that fails half-way is cleaned up or rolled back, never left."""
    first = desk.publish("1.0.0")
    desk.assign(first)
    before, after = await changes_of_an_update(desk, tmp_path / "counted")
    second = desk.publish("2.1.0")
    for change in range(1, after - before, 2):
        desk.assign(first)
        device = Device(tmp_path / f"fail{change}", desk.broker, desk.root)
        await device.start()
        await device.settled("1.0.0")
        at = device.disk.changes + change

        def fail(number, method, name, at=at):
            if number == at and not name.startswith("journal"):
                raise DiskError(f"input/output error at {method} {name}")

        device.disk.fault = fail
        desk.assign(second)
        await device.until(lambda d=device: d.state.outcome.version == "2.1.0")
        await device.settled()
        assert device.inference.live["digits"] == device.state.active.version
        check_whole(device)
        await device.stop()


@pytest.mark.parametrize("fills_at", ["model.onnx", "model.onnx.map", "manifest.json"])
async def test_a_disk_that_fills_during_an_update_makes_it_wait_for_space(desk, tmp_path, fills_at):
    """Other programs write too. The old model answers, and the device says that it waits."""
    desk.assign(desk.publish("1.0.0"))
    device = Device(tmp_path / "device", desk.broker, desk.root)
    await device.start()
    await device.settled("1.0.0")
    filled = []

    def fill(change, method, name):
        if filled or (name.endswith(f"/{fills_at}") and method != "preallocate"):
            filled.append(name)
            if not name.startswith("journal"):  # which has space of its own in reserve
                full(change, method, name)

    device.disk.fault = fill
    desk.blocks_sent = 0
    desk.assign(desk.publish("2.0.0"))
    await device.until(lambda: device.state.waits is not None)
    assert device.state.waits.reason == "disk"
    assert "no space left" in device.state.note
    assert device.inference.history == ["1.0.0"]
    device.disk.fault = None
    await device.settled("2.0.0")
    assert device.state.waits is None
    check_whole(device)
    await device.stop()


async def test_too_little_space_is_found_before_the_first_byte(desk, tmp_path):
    """The device waits for space and says so; the old slot is given up only where that helps."""
    desk.assign(desk.publish("1.0.0"))
    device = Device(tmp_path / "device", desk.broker, desk.root, FaultyDisk(capacity=1_500_000))
    await device.start()
    await device.settled("1.0.0")
    desk.blocks_sent = 0
    desk.assign(desk.publish("2.0.0"))
    await device.until(lambda: device.state.waits is not None)
    assert (device.state.waits.reason, device.state.tried) == ("disk", 0)
    assert "needs" in device.state.note
    assert desk.blocks_sent == 1  # the manifest
    assert device.inference.live["digits"] == "1.0.0"
    device.disk.capacity = 50_000_000
    await device.settled("2.0.0")
    assert device.state.waits is None
    await device.stop()


def third_block_written(disk):
    written = [data for name, data in disk.files.items() if name.endswith("model.onnx")]
    return written and any(written[0][2 * 65536 : 3 * 65536])


async def test_a_restart_keeps_the_blocks_that_were_durable(desk, tmp_path):
    """Only what the map does not name is fetched again."""
    device = Device(tmp_path / "device", desk.broker, desk.root)
    await device.start()
    desk.tamper = lambda digest, index, data: data if index < 3 else None
    desk.assign(desk.publish("1.0.0"))
    await device.until(lambda: third_block_written(device.disk))
    await device.stop()
    assert any(name.endswith(".map") for name in device.disk.files)
    desk.tamper, desk.blocks_sent = lambda digest, index, data: data, 0
    await device.start()
    await device.settled("1.0.0")
    assert desk.blocks_sent <= 3
    await device.stop()


async def test_a_power_cut_in_a_download_loses_the_last_blocks_only(desk, tmp_path):
    """The map is made durable during the transfer, not only at its end: 64 of 80 blocks are not fetched again."""
    device = Device(tmp_path / "device", desk.broker, desk.root)
    await device.start()
    desk.tamper = lambda digest, index, data: data if index < SYNC_EVERY_BLOCKS else None
    desk.assign(desk.publish("1.0.0", random.Random(1).randbytes(80 * 65536)))
    await device.until(lambda: any(name.endswith("model.onnx.map") for name in device.disk.durable))
    desk.tamper, desk.blocks_sent = lambda digest, index, data: data, 0
    await restart(device)
    await device.settled("1.0.0")
    assert desk.blocks_sent <= 80 - SYNC_EVERY_BLOCKS + 1  # and the golden samples
    await device.stop()


async def test_a_restart_on_a_full_disk_answers_and_goes_on_when_there_is_space(desk, tmp_path):
    """In the middle of an update, not even the journal takes a byte: the old model answers, changes wait."""
    desk.assign(desk.publish("1.0.0"))
    device = Device(tmp_path / "device", desk.broker, desk.root)
    device.timings = AgentTimings(journal_retry_seconds=0.02)
    await device.start()
    await device.settled("1.0.0")
    desk.tamper = lambda digest, index, data: None if index else data
    desk.assign(desk.publish("2.0.0"))
    await device.until(lambda: device.state.name is UpdateState.DOWNLOADING)
    await restart(device)
    await device.until(lambda: device.state.name is UpdateState.DOWNLOADING)
    await device.kill()
    device.disk = device.disk.after_power_cut()
    device.disk.remove("journal/reserve")
    device.disk.fault = full
    device.inference.live.clear()
    await device.start()
    assert device.inference.live == {"digits": "1.0.0"}
    desk.assign(desk.publish("3.0.0"))
    await device.until(lambda: any(e.kind == "assignment-delayed" and e.error == "SpaceError" for e in events(device)))
    device.disk.fault = None
    desk.tamper = lambda digest, index, data: data
    await device.settled("3.0.0")
    await device.stop()


def events(device):
    topic = topics.device(FLEET, DEVICE, "event")
    sent = [message.payload for message in device.broker.published if message.topic == topic]
    return [open_envelope(payload, messages.Event, device.signer.public_key) for payload in sent]
