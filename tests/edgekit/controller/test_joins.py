"""Certificates by the running service: renewal and joining of devices that are revoked or in quarantine; the watch."""

import asyncio
import contextlib
import time
from types import SimpleNamespace

import pytest

from device_agents.control.joining import join_fleet
from device_agents.control.requests import RequestClient
from edgekit.controller.certificates import CertificateWatch
from edgekit.controller.clocks import DeviceClocks
from edgekit.controller.joins import JoinService
from edgekit.errors import RefusedError
from edgekit.identity.authority import Authority, Issued, generate_tls_key, make_request
from edgekit.identity.join import StoredCode, make_code
from edgekit.mqtt import topics
from edgekit.mqtt.joining_messages import CertificateRequest
from edgekit.mqtt.messages import Answer, decode
from edgekit.rollout.cohort import Device
from edgekit.state import open_fleet_state
from edgekit.trust.envelopes import seal
from tests.simulators.control import FLEET, TARGET, ControlSide
from tests.simulators.transport import MemoryTransport, connect

DAY = 86_400.0


@contextlib.asynccontextmanager
async def joins(side):
    transport = MemoryTransport(side.broker, "joins")
    await connect(transport)
    service = JoinService(
        fleet=FLEET,
        transport=transport,
        state=side.state,
        clock=side.clock,
        authority=Authority.create(side.folder / "keys", FLEET, time.time()),
        root=side.root,
        days=90,
        broker="",
        known_target=lambda name: name == TARGET,
    )
    await service.start()
    try:
        yield service
    finally:
        await service.stop()
        await transport.stop()


async def renewed(side, device):
    """The controller's answer to a request for a certificate."""
    device.answers.clear()
    request = CertificateRequest("r", device.name, FLEET, make_request(generate_tls_key(), device.name))
    topic = topics.request(FLEET, "certificate", device.name)
    await device.transport.publish(topic, seal(request, device.signer), qos=1)
    await side.until(lambda: device.answers)
    return decode(device.answers[0], Answer)


async def test_an_agent_that_starts_asks_when_it_has_connected(tmp_path):
    """A certificate that is due is looked at before there is a connection; the request must not wait for an hour."""
    async with ControlSide(tmp_path) as side, joins(side):
        device = await side.device("pi-1")
        transport = MemoryTransport(side.broker, "late")
        requests = RequestClient(transport, fleet=FLEET, device="pi-1")
        await requests.start()
        csr = make_request(generate_tls_key(), "pi-1")

        def sign(request_id):
            return seal(CertificateRequest(request_id, "pi-1", FLEET, csr), device.signer)

        asked = asyncio.create_task(requests.certificate(sign))
        await asyncio.sleep(0.05)
        await connect(transport)
        assert await asyncio.wait_for(asked, 30)
        await transport.stop()


async def test_a_controller_whose_clock_is_wrong_signs_no_certificate(tmp_path):
    """Devices that took one would be shut out as soon as the clock is right again; they ask again later."""
    async with ControlSide(tmp_path) as side, joins(side) as service:
        device = await side.device("pi-1")
        clocks, now = DeviceClocks(), side.clock.monotonic()
        service.check_clock(lambda: clocks.difference(now).message)
        for name in ("pi-1", "pi-2", "pi-3"):
            clocks.note(name, side.clock.wall() - 30 * DAY, side.clock.wall(), now)
        answer = await renewed(side, device)
        assert (answer.error, answer.data) == ("bad-request", b"")
        assert "720.0 h ahead of the clocks of 3 devices" in answer.message
        _, code = make_code(FLEET, bytes(range(25)))
        side.state.certificates.add_code(StoredCode(code.token, code.key, time.time() + 60, 5), time.time())
        csr = make_request(generate_tls_key(), "pi-1")
        guest = MemoryTransport(side.broker, "guest")
        with pytest.raises(RefusedError, match=r"720\.0 h ahead"):
            await join_fleet(guest, code, "pi-1", TARGET, signer=device.signer, csr=csr, seconds=30)
        clocks.clear()
        assert (await renewed(side, device)).data


async def test_a_revoked_certificate_renews_nothing_until_its_device_joins_anew(tmp_path):
    """Its connection may still be open, so the controller looks; a code lets the device in, unless in quarantine."""
    async with ControlSide(tmp_path) as side, joins(side):
        device = await side.device("pi-1")
        assert (await renewed(side, device)).data
        side.state.certificates.revoke("pi-1", time.time())
        answer = await renewed(side, device)
        assert (answer.error, answer.data) == ("bad-request", b"")
        assert "its certificate was revoked" in answer.message
        _, code = make_code(FLEET, bytes(range(25)))
        side.state.certificates.add_code(StoredCode(code.token, code.key, time.time() + 60, 5), time.time())

        async def join():
            csr = make_request(generate_tls_key(), "pi-1")
            guest = MemoryTransport(side.broker, "guest")
            return await join_fleet(guest, code, "pi-1", TARGET, signer=device.signer, csr=csr, seconds=30)

        assert (await join()).certificate
        assert (await renewed(side, device)).data
        side.state.lifecycle.quarantine("pi-1", "two devices", time.time())
        with pytest.raises(RefusedError, match="two devices"):
            await join()


async def test_certificates_of_brokers_and_controllers_that_end_are_named_once_a_day(tmp_path, caplog):
    """Those that have a successor, end later, ended long ago, or are of a device are not."""
    state = open_fleet_state(f"sqlite:///{tmp_path / 'fleet.db'}", "f")
    now = 1_800_000_000.0
    state.devices.enroll(Device("pi-1", "t", "pem", enrolled=now))
    for serial, (name, days) in enumerate(
        [("b.example", 10), ("controller", -1), ("c.example", 5), ("c.example", 400), ("old", -40), ("pi-1", 3)]
    ):
        state.certificates.add(Issued(name, f"{serial:x}", "pem", now - 500 * DAY, now + days * DAY))
    clock = SimpleNamespace(wall=lambda: now, monotonic=lambda: seconds)
    watch, seconds = CertificateWatch(state=state, clock=clock), 0.0
    await watch.tick()
    said = [record.getMessage() for record in caplog.records]
    assert [text.partition(";")[0] for text in said] == [
        "the certificate of b.example ends on 2027-01-25",
        "the certificate of controller ended on 2027-01-14",
    ]
    assert said[0].endswith("edgekit ca broker b.example -o NEW-FOLDER")
    assert said[1].endswith("edgekit ca controller -o NEW-FOLDER")
    seconds = DAY - 1
    await watch.tick()
    assert len(caplog.records) == 2
    seconds = DAY
    await watch.tick()
    assert len(caplog.records) == 4
    state.close()
