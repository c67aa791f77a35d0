"""What the agent does about a disk that damaged something: it starts, serves what is whole, tells, and mends."""

import pytest

from device_agents.healing import check_slot, installed_in
from edgekit import messages
from edgekit.errors import DigestMismatchError, DiskError
from edgekit.trust.envelopes import open_envelope
from tests.simulators.device import Desk
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
    device.first_number = 1_000_000
    await device.start()
    assert await device.answering() == "1.0.0"
    await device.until(lambda: len(told(desk, device, "journal-damaged")) == 4)
    desk.assign(publish_real(desk, tmp_path / "made", "2.0.0"))
    await device.settled("2.0.0")
    assert device.reported().number > 1_000_000
    device.check_rest()


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
    with pytest.raises(DiskError, match="holds no bundle"):
        installed_in(device.disk, "digits", "b")
