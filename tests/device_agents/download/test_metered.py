"""A metered link: deployments wait, report the reason, and continue by themselves."""

import pytest

from device_agents.download.gate import Gate
from device_agents.download.metered import MeteredError, MeteredLink
from device_agents.download.options import DownloadOptions
from edgekit.bundle.manifest import BLOCK_BYTES
from edgekit.clock import SystemClock
from edgekit.mqtt import messages
from edgekit.settings import AgentSettings, load_settings
from edgekit.trust.envelopes import open_envelope
from tests.simulators.device import Device


def test_a_link_is_metered_by_setting_or_while_a_file_says_so(tmp_path):
    """The file may be a link to nowhere; a path that cannot be looked at counts as metered."""
    file = tmp_path / "metered"
    assert [MeteredLink(always).is_metered() for always in (False, True)] == [False, True]
    assert not MeteredLink(file=file).is_metered()
    file.symlink_to("nowhere")
    assert MeteredLink(file=file).is_metered()
    assert MeteredLink(file=tmp_path / ("x" * 300)).is_metered()


def test_a_deployment_has_its_share_of_a_metered_link():
    """And all it wants of another one."""
    link = MeteredLink(always=True, deployment_bytes=100)
    link.check(99)
    with pytest.raises(MeteredError, match=r"waiting: the link is metered .*100 bytes of a deployment"):
        link.check(100)
    MeteredLink(deployment_bytes=100).check(10**9)


async def test_the_gate_lets_nothing_through_and_hears_no_broadcast(tmp_path):
    """Until the link is another one."""
    gate = Gate(SystemClock(), metered=MeteredLink(file=tmp_path / "metered"))
    assert (await gate.pass_blocks(4, wait=True), gate.open) == (4, True)
    (tmp_path / "metered").touch()
    assert not gate.open
    with pytest.raises(MeteredError, match="nothing may be downloaded"):
        await gate.pass_blocks(4, wait=True)


def test_the_file_is_looked_for_beside_the_settings(tmp_path):
    """The path starts at the folder of agent.toml, like every other path."""
    (tmp_path / "agent.toml").write_text('device = "d"\nfleet = "f"\ntarget = "t"\nmetered_file = "metered"\n')
    settings = load_settings(AgentSettings, file=tmp_path / "agent.toml", environ={})
    assert settings.metered_file == tmp_path / "metered"


async def delays(device, desk, count=1):
    """The first events that say why a deployment waits."""
    await device.until(lambda: len(desk.said("event")) >= count)
    events = [open_envelope(p, messages.Event, device.signer.public_key) for p in desk.said("event")]
    return [event for event in events if event.kind == "deployment-delayed"]


async def test_a_deployment_waits_for_a_link_that_costs_nothing(tmp_path, desk):
    """Not even its manifest is fetched; the controller hears why; it goes on when the link has changed."""
    file = tmp_path / "metered"
    file.touch()
    device = Device(tmp_path / "device", desk.broker, desk.root)
    device.options = {"download": DownloadOptions(metered=MeteredLink(file=file))}
    await device.start()
    desk.assign(desk.publish("1.0.0"))
    (event,) = await delays(device, desk)
    assert (event.error, event.model) == ("MeteredError", "digits")
    assert event.message.startswith(f"waiting: the link is metered while {file} exists")
    assert desk.blocks_sent == 0
    file.unlink()
    await device.settled("1.0.0")
    await device.stop()


async def test_a_link_that_becomes_metered_in_a_transfer_stops_it(tmp_path, desk):
    """Fetched blocks are kept: each block is sent once in all."""
    file = tmp_path / "metered"
    device = Device(tmp_path / "device", desk.broker, desk.root)
    rate = 2 * BLOCK_BYTES
    device.options = {"download": DownloadOptions(metered=MeteredLink(file=file), download_bytes_per_second=rate)}

    def change(digest, index, data):
        if desk.blocks_sent == 2:
            file.touch()
        return data

    desk.tamper = change
    await device.start()
    desk.assign(desk.publish("1.0.0"))
    await delays(device, desk)
    sent = desk.blocks_sent
    assert 3 <= sent < 7
    desk.tamper = lambda digest, index, data: data
    file.unlink()
    await device.settled("1.0.0")
    assert desk.blocks_sent == 7 + 1  # five blocks of the model, one of its golden samples, the manifest twice
    await device.stop()


async def test_a_deployment_takes_its_share_and_then_waits(tmp_path, desk):
    """Small ones go through on a metered link; of a large one a part is there when the link changes."""
    file = tmp_path / "metered"
    file.touch()
    device = Device(tmp_path / "device", desk.broker, desk.root)
    device.options = {"download": DownloadOptions(metered=MeteredLink(file=file, deployment_bytes=3 * BLOCK_BYTES))}
    await device.start()
    desk.assign(desk.publish("1.0.0", model=bytes(range(256)) * 512))
    await device.settled("1.0.0")
    desk.assign(desk.publish("2.0.0"))
    (event,) = await delays(device, desk, 2)
    assert f"{3 * BLOCK_BYTES} bytes of a deployment" in event.message
    fetched = device.state.fetched
    assert 3 * BLOCK_BYTES <= fetched <= 4 * BLOCK_BYTES
    assert device.inference.live == {"digits": "1.0.0"}
    file.unlink()
    await device.settled("2.0.0")
    await device.stop()
