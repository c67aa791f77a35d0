"""The outcome of a deployment reaches the controller, however late; a withdrawn assignment stops a transfer."""

import pytest

from device_agents.deployment import UpdateState
from device_agents.download.metered import MeteredLink
from device_agents.download.options import DownloadOptions
from edgekit.mqtt import topics
from tests.simulators.device import DEVICE, FLEET


async def test_an_outcome_met_while_the_broker_was_away_is_told_after_a_restart(desk, device):
    """The outcome is in the journal and in every report, until a newer outcome replaces it."""
    desk.assign(desk.publish("1.0.0"))
    await device.settled("1.0.0")
    device.refused.add("2.0.0")
    desk.tamper = lambda digest, index, data: (desk.broker.stop() if index == 4 else None) or data
    desk.assign(desk.publish("2.0.0"))
    await device.until(lambda: not device.transport.connected)
    desk.tamper = lambda digest, index, data: data
    await device.kill()
    desk.broker.start()
    await device.start()
    await device.until(lambda: [one.version for one in device.reported().outcomes.values()] == ["2.0.0"])
    first = device.reported()
    assert (first.outcomes["digits"].result, first.outcomes["digits"].error) == ("refused", "SelfTestError")
    desk.broker.stop()
    await device.until(lambda: not device.transport.connected)
    desk.broker.retained.clear()  # a broker that forgot everything
    desk.broker.start()
    await device.until(lambda: topics.device(FLEET, DEVICE, "reported") in desk.broker.retained)
    assert device.reported().number > first.number
    assert device.reported().outcomes == first.outcomes


async def test_a_withdrawn_order_ends_a_transfer_and_leaves_nothing(desk, device):
    """The device does not finish what nobody wants, and keeps none of its bytes."""
    desk.assign(desk.publish("1.0.0"))
    await device.settled("1.0.0")
    entry = desk.publish("2.0.0")
    desk.tamper = lambda digest, index, data: data if digest == entry.sha256 or index < 2 else None
    desk.assign(entry)
    await device.until(lambda: device.state.name is UpdateState.DOWNLOADING)
    desk.assign()
    await device.settled("1.0.0")
    assert device.disk.list("incoming") == []
    assert device.inference.history == ["1.0.0"]


@pytest.mark.parametrize("instead", ["nothing", "what runs"])
async def test_a_withdrawn_order_that_waits_leaves_nothing_either(desk, device, tmp_path, instead):
    """Its blocks would hold the space of a whole bundle until the next deployment of the model."""
    first = desk.publish("1.0.0")
    desk.assign(first)
    await device.settled("1.0.0")
    await device.stop()
    (tmp_path / "metered").touch()
    link = MeteredLink(file=tmp_path / "metered", deployment_bytes=3 * 65536)
    device.options = {"download": DownloadOptions(metered=link)}
    await device.start()
    desk.assign(desk.publish("2.0.0"))
    await device.until(lambda: device.state.waits is not None and device.disk.list("incoming/digits"))
    desk.assign(*([first] if instead == "what runs" else []))
    await device.until(lambda: device.rests("1.0.0") and not device.disk.list("incoming"))
    assert device.inference.live == {"digits": "1.0.0"}
