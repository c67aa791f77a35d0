"""MqttTransport on a real mosquitto: a hundred at once, high file descriptors, mutual TLS."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import os
import resource
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edgekit.broker import find_mosquitto, start_broker
from edgekit.errors import TransportError
from edgekit.mqtt import MqttTransport

PATIENCE = 15.0
SIGNS_CERTIFICATES = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)
pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., MqttTransport]]:
    made: list[MqttTransport] = []

    def transport(url: str, **options: object) -> MqttTransport:
        made.append(MqttTransport(url, client_id="d1", backoff_seconds=0.01, **options))  # type: ignore[arg-type]
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
    """Where paho's own loop would fail, in select, this one does not."""
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


class Pki:
    """A throw-away authority that signs a broker and a client."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test authority")])
        self.ca = self._write("ca", self._certificate(self._name, self._key, ca=True))
        for common_name in ("broker", "controller"):
            key = ec.generate_private_key(ec.SECP256R1())
            name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])
            self._write(common_name, self._certificate(name, key, ca=False))
            private = key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            (folder / f"{common_name}.key").write_bytes(private)

    def _certificate(self, name: x509.Name, key: ec.EllipticCurvePrivateKey, *, ca: bool) -> x509.Certificate:
        now = datetime.datetime.now(datetime.timezone.utc)
        address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(self._name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
        builder = builder.not_valid_after(now + datetime.timedelta(days=1)).add_extension(address, critical=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        # Python 3.13 checks as RFC 5280 demands: key identifiers, and a usage for an authority's key.
        own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(own, critical=False).add_extension(issuer, critical=False)
        if ca:
            builder = builder.add_extension(SIGNS_CERTIFICATES, critical=True)
        return builder.sign(self._key, hashes.SHA256())

    def _write(self, name: str, certificate: x509.Certificate) -> Path:
        path = self.folder / f"{name}.pem"
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return path


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
    """With a certificate of its own the client connects, and no byte stays behind in TLS's buffers."""
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
    """The certificate is checked, always; the error says so."""
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
