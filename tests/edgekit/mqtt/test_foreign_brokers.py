"""Brokers of other makers or with less on offer: what they lack is named, and users of URLs are kept."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from edgekit.errors import TransportError
from edgekit.mqtt.address import without_user
from edgekit.mqtt.limits import missing_service
from edgekit.mqtt.mosquitto import find_mosquitto
from edgekit.mqtt.options import TransportOptions
from edgekit.mqtt.transport import MqttTransport
from edgekit.protocols import Will
from tests.simulators.mosquitto import free_port, running_mosquitto
from tests.simulators.scripted_broker import ScriptedBroker

QUICK = TransportOptions(backoff_seconds=0.01)
needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")


def test_whatever_a_broker_lacks_has_a_line_of_its_own() -> None:
    """A broker with all of it has no fault; each missing service is named with what to do."""
    assert not missing_service(qos=1, retains=True, wildcards=True)
    assert "retain_available true" in missing_service(qos=2, retains=False, wildcards=True)
    assert "QoS 0 only" in missing_service(qos=0, retains=True, wildcards=True)
    assert "wildcards" in missing_service(qos=2, retains=True, wildcards=False)


@needs_mosquitto
@pytest.mark.parametrize("will", [None, Will("t", b"off", retain=True)])
@pytest.mark.parametrize(("line", "says"), [("retain_available false", "retained messages"), ("max_qos 0", "QoS 0")])
async def test_a_broker_that_lacks_what_edgekit_needs_is_refused(
    tmp_path: Path, line: str, says: str, will: Will | None
) -> None:
    """With and without a will, mosquitto's limits are named before anything is published; no connection is reported."""
    port = free_port()
    config = f"listener {port} 127.0.0.1\nallow_anonymous true\n{line}\n"
    with running_mosquitto(tmp_path, config, port):
        transport = MqttTransport(f"mqtt://127.0.0.1:{port}", client_id="d", will=will, options=QUICK)
        seen: list[bool] = []
        transport.on_connection(seen.append)
        await transport.start()
        try:
            with pytest.raises(TransportError, match=f"the broker cannot be used: it .*{says}"):
                await transport.wait_connected(1.5)
        finally:
            await transport.stop()
    assert seen == []


@needs_mosquitto
async def test_the_user_of_the_url_comes_before_the_programs_own(tmp_path: Path) -> None:
    """Access rules of the URL's user hold; a program's usual name is for URLs that name no user."""
    port = free_port()
    (tmp_path / "acl").write_text("user ann\ntopic readwrite a\n")
    config = f"listener {port} 127.0.0.1\nallow_anonymous true\nacl_file {tmp_path / 'acl'}\n"
    with running_mosquitto(tmp_path, config, port):
        transport = MqttTransport(f"mqtt://ann:x@127.0.0.1:{port}", client_id="c", username="controller", options=QUICK)
        got = asyncio.Event()
        await transport.start()
        try:
            await transport.wait_connected(20)
            await transport.subscribe("a", lambda message: got.set())
            await transport.publish("a", b"1", qos=1)
            await asyncio.wait_for(got.wait(), 20)
        finally:
            await transport.stop()


async def test_the_definite_refusal_of_the_older_version_is_reported() -> None:
    """A broker that hangs up on MQTT 5 and refuses the client in 3.1.1 has said why: this is the error."""
    async with ScriptedBroker() as broker:
        broker.levels, broker.hang_up, broker.reason = {4}, True, 5
        transport = MqttTransport(broker.url, client_id="d", options=QUICK)
        await transport.start()
        try:
            with pytest.raises(TransportError, match="refused this client: not authorized"):
                await transport.wait_connected(1)
        finally:
            await transport.stop()


def test_a_url_for_others_has_no_password() -> None:
    """Host, port and TLS stay."""
    assert without_user("mqtts://ann:secret@broker.example:8884") == "mqtts://broker.example:8884"
    assert without_user("mqtt://127.0.0.1") == "mqtt://127.0.0.1"
