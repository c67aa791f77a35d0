"""Simulated devices: the real agent without models."""

import functools

import pytest

from device_agents.agent import AgentOptions
from device_agents.control.link import presence_will
from device_agents.simulator import SimulatedFleet, versions_reached
from device_agents.storage.journal import Journal
from edgekit.cli.main import edgekit, run
from edgekit.clock import SystemClock
from edgekit.mqtt import topics
from edgekit.storage.disk import MemoryDisk
from edgekit.trust.client import TrustClient
from edgekit.trust.keys import generate_key
from tests.simulators.device import FLEET, QUICK, TARGET, Desk
from tests.simulators.transport import MemoryBroker, MemoryTransport


@pytest.mark.parametrize(("share", "runs", "failures"), [(0.0, "digits 1.0.0", 0), (1.0, "digits none", 3)])
async def test_simulated_devices_update_over_a_real_transport(tmp_path, share, runs, failures):
    """The real machine with a pretended model: all reach the version, or all refuse it."""
    desk = Desk(tmp_path / "desk", MemoryBroker())
    await desk.start()
    fleet, entry = SimulatedFleet(), desk.publish("1.0.0")
    for name in ("sim-1", "sim-2", "sim-3"):
        payload = desk.assign(entry, device=name)
        desk.broker.publish(topics.device(FLEET, name, "desired"), payload, qos=1, retain=True)
        disk = MemoryDisk()
        journal = Journal(disk)
        will = presence_will(FLEET, name, journal.begin_session())
        fleet.add(
            AgentOptions(device=name, fleet=FLEET, limits=QUICK),
            target=TARGET,
            disk=disk,
            journal=journal,
            transport=MemoryTransport(desk.broker, name, will=will),
            trust=functools.partial(TrustClient, tmp_path / name, desk.root),
            signer=generate_key(tmp_path / f"{name}.key"),
            clock=SystemClock(),
            fail_share=share,
        )
    shown = []
    end = SystemClock().monotonic() + 120

    def done(progress):
        assert SystemClock().monotonic() < end, progress
        return versions_reached(progress, "1.0.0")

    found = await fleet.run(done=done, show=shown.append, seconds=0.01)
    assert found.versions == {runs: 3}
    assert sum(found.failures.values()) == failures
    assert shown


def test_devices_that_are_not_enrolled_are_named_with_what_to_do(tmp_path, monkeypatch, capsys):
    """Before anything is started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["edgekit", "simulate", "2"])
    assert run(edgekit, "edgekit") == 1
    said = capsys.readouterr().err
    assert "sim-1, sim-2" in said
    assert "edgekit device enroll sim-1" in said
