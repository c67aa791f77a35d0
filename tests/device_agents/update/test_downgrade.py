"""A downgrade happens only if the director orders it and the publisher allows it, both signed."""

import msgspec
import pytest

from device_agents.storage.slots import Slots
from edgekit.errors import DowngradeError
from edgekit.trust.assignment import check_agrees
from tests.simulators.device import Device


@pytest.fixture
async def device(tmp_path, desk):
    made = Device(tmp_path / "device", desk.broker, desk.root)
    await made.start()
    yield made
    await made.stop()


async def refusal(device, assignment):
    """How the deployment of one assignment was refused."""
    await device.until(lambda: device.state.failed is not None and device.state.failed.assignment == assignment)
    await device.settled()
    assert (device.state.outcome.result, device.state.outcome.error) == ("refused", "DowngradeError")
    return device.state.outcome.message


async def test_both_signatures_take_a_device_back_and_then_forward_again(desk, device):
    """Without the director's word, or without the publisher's, it is refused; the journal holds the new floor."""
    releases = [desk.publish(version) for version in ("1.0.0", "2.0.0", "3.0.0")]
    wanted = [msgspec.structs.replace(entry, downgrade=True) for entry in releases]
    desk.assign(releases[2])
    await device.settled("3.0.0")
    desk.assign(releases[1])
    assert "2.0.0 (release 2) is older than 3.0.0 (release 3)" in await refusal(device, 2)
    desk.assign(wanted[1])
    assert "publisher does not allow" in await refusal(device, 3)
    desk.repository.mark("digits", "2.0.0", downgrade=True)
    desk.assign(releases[1])
    assert "2.0.0 (release 2) is older than 3.0.0 (release 3)" in await refusal(device, 4)
    desk.assign(wanted[1])
    await device.settled("2.0.0")
    assert device.state.release == 2
    desk.assign(wanted[0])
    assert "publisher does not allow" in await refusal(device, 6)
    desk.assign(releases[2])
    await device.settled("3.0.0")
    assert device.state.release == 3
    assert Slots(device.disk, "digits").pointer().active == device.state.active.slot


def test_a_stolen_director_key_alone_takes_no_device_back(desk):
    """The permission is in the catalogue, which that key cannot sign."""
    old, _ = desk.publish("1.0.0"), desk.publish("2.0.0")
    paths = desk.repository.mark("digits", "1.0.0", downgrade=True, dry_run=True)
    assert paths == [old.path]
    state = desk.repository._committer.load()
    entry = msgspec.structs.replace(old, downgrade=True)
    with pytest.raises(DowngradeError, match="publisher does not allow"):
        check_agrees(entry, state.publisher("digits").targets[old.path], seen_release=2)
