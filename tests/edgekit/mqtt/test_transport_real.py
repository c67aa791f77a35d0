"""MqttTransport on a real mosquitto: a hundred at once, high file descriptors, mutual TLS."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from edgekit.errors import TransportError
from edgekit.mqtt import silences
from edgekit.mqtt.broker import find_mosquitto, start_broker
from edgekit.mqtt.options import TransportOptions
from edgekit.mqtt.transport import MqttTransport
from tests.simulators.pki import Pki
from tests.simulators.wire import Wire

PATIENCE = 45.0
pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., MqttTransport]]:
    made: list[MqttTransport] = []

    def transport(url: str, **options: object) -> MqttTransport:
        quick = TransportOptions(backoff_seconds=0.01)
        made.append(MqttTransport(url, client_id="d1", options=quick, **options))  # type: ignore[arg-type]
        return made[-1]

    yield transport
    for one in made:
        await one.stop()


async def connect(transport: MqttTransport) -> MqttTransport:
    await transport.start()
    await transport.wait_connected(PATIENCE)
    return transport


async def until(condition: Callable[[], bool]) -> None:
    async def poll() -> None:
        while not condition():  # noqa: ASYNC110  what is awaited happens in a library or the kernel
            await asyncio.sleep(0.005)

    await asyncio.wait_for(poll(), PATIENCE)


async def test_a_proxy_that_closes_silent_connections_is_named(tmp_path, caplog, monkeypatch) -> None:
    """Devices connected again and again, and nothing said why; with a shorter keepalive the connection stays."""
    monkeypatch.setattr(silences, "LEAST_SILENCE", 0.3)
    async with (
        await start_broker("127.0.0.1", 0, tmp_path, kind="mosquitto") as broker,
        Wire("127.0.0.1", int(broker.url.rpartition(":")[2]), idle_seconds=0.5) as proxy,
    ):
        silent = MqttTransport(proxy.url, client_id="d1", options=TransportOptions(backoff_seconds=0.01))
        await connect(silent)
        await until(lambda: "closes silent ones" in caplog.text)
        await silent.stop()
        assert "without traffic: a proxy or NAT on the way" in caplog.text
        assert "Set broker_keepalive_seconds to 5 (it is 30)" in caplog.text
        proxy.idle_seconds, before = 3.0, proxy.connections
        lively = MqttTransport(proxy.url, client_id="d2", options=TransportOptions(keepalive_seconds=1))
        await connect(lively)
        await asyncio.sleep(7.0)
        assert lively.connected
        assert proxy.connections == before + 1
        await lively.stop()


async def test_a_hundred_transports_live_in_one_process(tmp_path: Path) -> None:
    """100 connections each get their own message, and stop leaves no descriptor behind."""
    async with await start_broker("127.0.0.1", 0, tmp_path, kind="mosquitto") as broker:
        before = len(os.listdir("/proc/self/fd"))
        transports = [MqttTransport(broker.url, client_id=f"d{n}", username="controller") for n in range(100)]
        got: list[str] = []
        for number, transport in enumerate(transports):
            await transport.subscribe(f"edgekit/v1/f/answer/d{number}", lambda m: got.append(m.topic))
            await transport.start()
        for transport in transports:
            await transport.wait_connected(PATIENCE)
        for number in range(100):
            await transports[0].publish(f"edgekit/v1/f/answer/d{number}", b"", qos=1)
        await until(lambda: len(got) == 100)
        assert len(set(got)) == 100
        await asyncio.gather(*(transport.stop() for transport in transports))
        await until(lambda: len(os.listdir("/proc/self/fd")) <= before)


async def test_descriptors_past_1023_work(tmp_path: Path) -> None:
    """Past file descriptor 1023, where paho's own loop fails, the transport works."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1300:
        pytest.skip(f"the limit of open files is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1300), hard))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        async with await start_broker("127.0.0.1", 0, tmp_path, kind="mosquitto") as broker:
            transport = await connect(MqttTransport(broker.url, client_id="d", username="controller"))
            got: list[bytes] = []
            await transport.subscribe("edgekit/v1/f/fleet", lambda m: got.append(m.payload))
            await transport.publish("edgekit/v1/f/fleet", bytes(200_000), qos=1)
            await until(lambda: got == [bytes(200_000)])
            await transport.stop()
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def tls_broker(tmp_path: Path) -> Iterator[tuple[str, Pki]]:
    pki = Pki(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = tmp_path / "tls.conf"
    config.write_text(
        f"listener {port} 127.0.0.1\ncafile {pki.ca}\ncertfile {tmp_path}/broker.pem\nkeyfile {tmp_path}/broker.key\n"
        "require_certificate true\nuse_identity_as_username true\nset_tcp_nodelay true\n"
        + ("user root\n" if os.geteuid() == 0 else "")
    )
    program = find_mosquitto()
    assert program is not None
    process = subprocess.Popen([program, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"mqtts://127.0.0.1:{port}", pki
    finally:
        process.terminate()
        process.wait()


async def test_mutual_tls_carries_large_messages(
    tls_broker: tuple[str, Pki], make: Callable[..., MqttTransport], tmp_path: Path
) -> None:
    """The client connects with its own certificate, and no byte remains in TLS's buffers."""
    url, pki = tls_broker
    files = {"ca": pki.ca, "certificate": tmp_path / "controller.pem", "key": tmp_path / "controller.key"}
    transport = await connect(make(url, **files))
    got: list[int] = []
    await transport.subscribe("a", lambda m: got.append(len(m.payload)), qos=0)
    sizes = [1, 100, 16_384, 65_536, 200_000] * 4
    for size in sizes:
        await transport.publish("a", bytes(size))
    await until(lambda: got == sizes)


async def test_a_broker_that_the_authority_did_not_sign_is_not_trusted(
    tls_broker: tuple[str, Pki], make: Callable[..., MqttTransport], tmp_path: Path
) -> None:
    """The broker's certificate is always checked; the error says so."""
    (tmp_path / "other").mkdir()
    transport = make(tls_broker[0], ca=Pki(tmp_path / "other").ca)
    await transport.start()
    reasons = ""
    for _ in range(50):
        with pytest.raises(TransportError) as caught:
            await transport.wait_connected(0.2)
        reasons = str(caught.value)
        if "certificate" in reasons:
            break
    assert "TLS certificate is not trusted" in reasons
