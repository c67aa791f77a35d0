"""What MqttTransport does beyond the contract: versions, limits, failures of a broker, TLS, many at once."""

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
from edgekit.errors import SettingsError, TransportError
from edgekit.mqtt import MqttTransport, backoff
from edgekit.protocols import Message
from tests.simulators.scripted_broker import PUBLISH, SUBSCRIBE, ScriptedBroker

PATIENCE = 15.0
needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")


@pytest.fixture
async def broker() -> AsyncIterator[ScriptedBroker]:
    async with ScriptedBroker() as scripted:
        yield scripted


@pytest.fixture
async def make(broker: ScriptedBroker) -> AsyncIterator[Callable[..., MqttTransport]]:
    made: list[MqttTransport] = []

    def transport(url: str = "", **options: object) -> MqttTransport:
        options = {"client_id": "d1", "backoff_seconds": 0.01, **options}
        made.append(MqttTransport(url or broker.url, **options))  # type: ignore[arg-type]
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


# --- addresses


def test_a_url_gives_host_port_tls_and_credentials() -> None:
    """Ports have defaults, credentials are decoded, keywords win, and the address shows no password."""
    plain = MqttTransport("mqtt://u%40x:p%2Fw@example.org", client_id="d")
    assert plain.address == ("example.org", 1883, False, "u@x", "p/w")
    assert str(plain.address) == "mqtt://example.org:1883"
    assert str(MqttTransport("mqtts://[::1]", client_id="d").address) == "mqtts://[::1]:8883"


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:1883", "http://h", "mqtt://", "mqtt://h:99999", "mqtt://h:x", "mqtt://h/topic", "mqtt://h?a=1"],
)
def test_a_url_that_is_no_brokers_is_a_settings_error(url: str) -> None:
    """The error says what is expected."""
    with pytest.raises(SettingsError, match="broker URL") as caught:
        MqttTransport(url, client_id="d")
    assert "mqtt://host" in caught.value.advice


def test_an_error_about_a_url_hides_its_password() -> None:
    """A password in a URL does not reach logs through an error."""
    with pytest.raises(SettingsError) as caught:
        MqttTransport("mqtt://user:secret@host/path", client_id="d")
    assert "secret" not in str(caught.value)


def test_tls_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    """A missing or damaged file is a settings error at once, not a failed connection later."""
    (tmp_path / "bad.pem").write_text("not a certificate")
    for name in ("missing.pem", "bad.pem"):
        with pytest.raises(SettingsError, match=name):
            MqttTransport("mqtts://host", client_id="d", ca=tmp_path / name)


async def test_nobody_listening_is_told_as_connection_refused(make: Callable[..., MqttTransport]) -> None:
    """The error of wait_connected names the address and the reason, in words."""
    async with ScriptedBroker() as gone:
        url = gone.url
    transport = make(url)
    await transport.start()
    with pytest.raises(TransportError, match=f"cannot reach broker {url}: connection refused"):
        await transport.wait_connected(0.3)


async def test_an_unknown_host_is_told_as_such(make: Callable[..., MqttTransport]) -> None:
    """A name that does not resolve is named so."""
    transport = make("mqtt://broker.invalid")
    reasons: list[str] = []
    await transport.start()
    for _ in range(50):
        try:
            await transport.wait_connected(0.2)
        except TransportError as error:
            reasons.append(str(error))
            if "no attempt" not in reasons[-1]:
                break
    assert "host name cannot be resolved" in reasons[-1]


# --- versions


@pytest.mark.parametrize("hang_up", [False, True])
async def test_a_broker_without_mqtt_5_is_spoken_to_in_3_1_1(
    broker: ScriptedBroker, make: Callable[..., MqttTransport], hang_up: bool
) -> None:
    """Whether the broker says so or hangs up, 3.1.1 follows, and is remembered for the next connect."""
    broker.levels = {4}
    broker.hang_up = hang_up
    transport = await connect(make())
    assert transport.protocol == "3.1.1"
    broker.drop()
    await until(lambda: len(broker.connects) == 3)
    assert broker.connects == [5, 4, 4]


async def test_silence_after_connect_is_followed_by_3_1_1(
    broker: ScriptedBroker, make: Callable[..., MqttTransport]
) -> None:
    """A broker that chokes on MQTT 5 and says nothing is asked again in 3.1.1."""
    broker.silent = True
    transport = make(connect_timeout_seconds=0.2)
    await transport.start()
    await until(lambda: broker.connects[:2] == [5, 4])
    broker.silent = False
    await transport.wait_connected(PATIENCE)


async def test_a_broker_in_trouble_does_not_lose_mqtt_5(
    broker: ScriptedBroker, make: Callable[..., MqttTransport]
) -> None:
    """Once MQTT 5 worked, a broker that hangs up is tried again in MQTT 5 only."""
    transport = await connect(make())
    broker.levels, broker.hang_up = set(), True
    broker.drop()
    await until(lambda: len(broker.connects) >= 4)
    broker.levels = {4, 5}
    await transport.wait_connected(PATIENCE)
    assert set(broker.connects) == {5}
    assert transport.protocol == "5"


@pytest.mark.parametrize(("reason", "text"), [(0x86, "bad user name or password"), (0x87, "not authorized")])
async def test_a_refused_client_is_told_why(
    broker: ScriptedBroker, make: Callable[..., MqttTransport], reason: int, text: str
) -> None:
    """The broker's reason is in the error, and it is tried again."""
    broker.reason = reason
    transport = make()
    await transport.start()
    with pytest.raises(TransportError, match=text):
        await transport.wait_connected(0.3)
    broker.reason = 0
    await transport.wait_connected(PATIENCE)


async def test_expiry_travels_in_mqtt_5_only(broker: ScriptedBroker, make: Callable[..., MqttTransport]) -> None:
    """Under MQTT 5 the message carries its expiry in seconds; under 3.1.1 it is sent without."""
    five = await connect(make())
    await five.publish("a", b"x", qos=1, retain=True, expiry_seconds=7)
    await five.stop()
    broker.levels = {4}
    three = await connect(make())
    await three.publish("a", b"x", qos=1, retain=True, expiry_seconds=7)
    bodies = [packet.body[5:] for packet in broker.of_kind(PUBLISH)]
    assert bodies == [b"\x05\x02\x00\x00\x00\x07x", b"x"]


@pytest.mark.parametrize(
    ("levels", "properties", "expected"),
    [({4, 5}, b"", b"$share/g/a"), ({4, 5}, b"\x2a\x00", b"a"), ({4}, b"", b"a")],
    ids=["shared", "forbidden", "3.1.1"],
)
async def test_a_group_is_shared_only_where_the_broker_can(
    broker: ScriptedBroker,
    make: Callable[..., MqttTransport],
    levels: set[int],
    properties: bytes,
    expected: bytes,
) -> None:
    """`$share` is used under MQTT 5 unless CONNACK says that it is not available."""
    broker.levels, broker.properties = levels, properties
    transport = await connect(make())
    await transport.subscribe("a", lambda m: None, group="g")
    (packet,) = broker.of_kind(SUBSCRIBE)
    assert expected + bytes([1]) == packet.body[-len(expected) - 1 :]
    assert bytes([0, len(expected)]) + expected in packet.body


# --- a broker that fails


async def test_a_message_without_acknowledgement_is_an_error(
    broker: ScriptedBroker, make: Callable[..., MqttTransport]
) -> None:
    """QoS 1 gives up after its time; QoS 0 needs no answer."""
    broker.puback = None
    transport = await connect(make(publish_timeout_seconds=0.1))
    with pytest.raises(TransportError, match="no acknowledgement"):
        await transport.publish("a", b"x", qos=1)
    await transport.publish("a", b"x", qos=0)
    await until(lambda: len(broker.of_kind(PUBLISH)) == 2)


async def test_a_connection_lost_while_publishing_is_an_error_at_once(
    broker: ScriptedBroker, make: Callable[..., MqttTransport]
) -> None:
    """Who waits for an acknowledgement hears of the loss, and does not wait for the time to pass."""
    broker.puback = None
    transport = await connect(make(publish_timeout_seconds=1000.0))
    task = asyncio.create_task(transport.publish("a", b"x", qos=1))
    await until(lambda: len(broker.of_kind(PUBLISH)) == 1)
    broker.drop()
    with pytest.raises(TransportError, match="lost"):
        await asyncio.wait_for(task, PATIENCE)
    await transport.wait_connected(PATIENCE)
    assert len(broker.of_kind(PUBLISH)) == 1, "nothing is sent again behind the caller's back"


async def test_a_refused_message_and_a_refused_subscription_are_errors(
    broker: ScriptedBroker, make: Callable[..., MqttTransport]
) -> None:
    """An ACL that says no under MQTT 5 is heard."""
    broker.puback = broker.suback = 0x87
    transport = await connect(make())
    with pytest.raises(TransportError, match="refused the message: not authorized"):
        await transport.publish("a", b"x", qos=1)
    with pytest.raises(TransportError, match=r"refused to subscribe 'a/\+': not authorized"):
        await transport.subscribe("a/+", lambda m: None)
    assert transport.connected


async def test_a_broker_that_acknowledges_no_subscription_is_left(
    broker: ScriptedBroker, make: Callable[..., MqttTransport]
) -> None:
    """Without SUBACK the transport is not connected: it tries anew until one comes."""
    broker.suback = None
    transport = make(publish_timeout_seconds=0.1)
    await transport.subscribe("a", lambda m: None)
    await transport.start()
    await until(lambda: len(broker.connects) >= 2)
    assert not transport.connected
    broker.suback = 0
    await transport.wait_connected(PATIENCE)


async def test_a_broker_that_reads_nothing_fills_a_bounded_queue(
    broker: ScriptedBroker, make: Callable[..., MqttTransport]
) -> None:
    """At QoS 0 publishing is held back and ends in an error; what is queued goes out when the broker reads again."""
    transport = await connect(make(publish_timeout_seconds=0.2, max_queued_bytes=256 * 1024))
    broker.reading.clear()
    sent, failure = 0, ""
    while not failure and sent < 1000:
        try:
            await transport.publish("a", bytes(65536))
            sent += 1
        except TransportError as error:
            failure = str(error)
    assert "queue is full" in failure
    assert sent >= 4
    broker.reading.set()
    await until(lambda: len(broker.of_kind(PUBLISH)) == sent)
    await transport.publish("a", b"last")


async def test_the_brokers_receive_maximum_is_kept(broker: ScriptedBroker, make: Callable[..., MqttTransport]) -> None:
    """With a receive maximum of 2, a third QoS 1 message waits for the first acknowledgement."""
    broker.properties = b"\x21\x00\x02"
    broker.puback = None
    transport = await connect(make())
    tasks = [asyncio.create_task(transport.publish("a", b"%d" % i, qos=1)) for i in range(5)]
    await until(lambda: len(broker.of_kind(PUBLISH)) == 2)
    await asyncio.sleep(0.05)
    assert len(broker.of_kind(PUBLISH)) == 2
    broker.puback = 0
    for packet in broker.of_kind(PUBLISH):
        broker.send(b"\x40\x02" + packet.body[3:5])
    await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE)
    assert [packet.body[-1:] for packet in broker.of_kind(PUBLISH)] == [b"0", b"1", b"2", b"3", b"4"]


async def test_the_brokers_packet_limit_is_kept(broker: ScriptedBroker, make: Callable[..., MqttTransport]) -> None:
    """A payload over the broker's own limit is an error, instead of a connection that is thrown out."""
    broker.properties = b"\x27\x00\x00\x04\x00"
    transport = await connect(make())
    await transport.publish("a", bytes(512), qos=1)
    with pytest.raises(TransportError, match="more than broker"):
        await transport.publish("a", bytes(1024), qos=1)


@pytest.mark.parametrize(
    "garbage",
    [b"\x00\x00", b"\xf0\x00", b"\x30\xff\xff\xff\xff\xff", b"\x30\x01\x00", b"\x30\x04\x00\x02\xff\xfe", b"\x40\x00"],
    ids=["kind 0", "kind 15", "endless length", "cut topic", "topic not UTF-8", "empty PUBACK"],
)
async def test_garbage_ends_the_connection_at_most(
    broker: ScriptedBroker, make: Callable[..., MqttTransport], garbage: bytes
) -> None:
    """Whatever a broker sends, the transport lives, and works after reconnecting."""
    transport = await connect(make())
    got: list[Message] = []
    await transport.subscribe("a", got.append)
    broker.send(garbage)
    broker.send(b"\x30\x05\x00\x01a\x00x")
    await until(lambda: bool(got) or len(broker.connects) > 1)
    await transport.wait_connected(PATIENCE)
    await transport.publish("b", b"x", qos=1)


async def test_a_message_that_nobody_asked_for_is_dropped(
    broker: ScriptedBroker, make: Callable[..., MqttTransport]
) -> None:
    """It reaches no handler and is counted."""
    transport = await connect(make())
    got: list[str] = []
    await transport.subscribe("a", lambda m: got.append(m.topic))
    broker.send(b"\x30\x05\x00\x01b\x00x" + b"\x30\x05\x00\x01a\x00x")
    await until(lambda: bool(got))
    assert got == ["a"]
    assert transport.dropped_messages == 1


async def test_stop_while_connecting_ends_at_once(broker: ScriptedBroker, make: Callable[..., MqttTransport]) -> None:
    """Stop does not wait for a broker that does not answer."""
    broker.silent = True
    transport = make(connect_timeout_seconds=1000.0)
    await transport.start()
    await until(lambda: broker.connects == [5])
    await asyncio.wait_for(transport.stop(), PATIENCE)
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("mqtt ")]


@pytest.mark.parametrize("bad", ["", "a/b#", "a/#/b", "a+/b", "$share/g/a", "a\0b"])
async def test_a_bad_filter_is_refused_before_the_broker_sees_it(make: Callable[..., MqttTransport], bad: str) -> None:
    """A filter that no broker takes is a mistake of the program, connected or not."""
    with pytest.raises(ValueError, match="topic filter"):
        await make().subscribe(bad, lambda m: None)


# --- reconnecting


def test_backoff_is_full_jitter_under_a_cap() -> None:
    """The wait is random between 0 and the doubled base, never over the cap, whatever the number of failures."""
    assert [backoff(n, 1.0, 60.0, 1.0) for n in (0, 1, 2, 5, 6, 7, 10_000)] == [1, 2, 4, 32, 60, 60, 60]
    assert backoff(10, 1.0, 60.0, 0.0) == 0.0
    assert backoff(3, 0.5, 60.0, 0.25) == 1.0


class LeapingClock:
    """Each look at it is `step` seconds later than the last."""

    def __init__(self, step: float) -> None:
        self.now = 0.0
        self.step = step

    def monotonic(self) -> float:
        self.now += self.step
        return self.now

    def wall(self) -> float:
        return self.now


async def test_a_stable_minute_resets_the_backoff(broker: ScriptedBroker, make: Callable[..., MqttTransport]) -> None:
    """Connections that last over a minute are renewed without delay, 30 times: 2^30 times the base is 124 days."""
    broker.closing = True
    transport = make(clock=LeapingClock(61.0), backoff_cap_seconds=1e9)
    await transport.start()
    await until(lambda: len(broker.connects) >= 30)


# --- many at once, high descriptors, TLS


@needs_mosquitto
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


@needs_mosquitto
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


@needs_mosquitto
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


@needs_mosquitto
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
