"""MqttTransport beyond the contract: versions, limits, failures of a broker, TLS, many at once."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from edgekit.errors import SettingsError, TransportError
from edgekit.mqtt.options import TransportOptions
from edgekit.mqtt.transport import MqttTransport, backoff
from edgekit.protocols import Clock, Message
from tests.simulators.scripted_broker import PUBLISH, SUBSCRIBE, UNSUBSCRIBE, ScriptedBroker

FLOOD = 4000  # messages
PATIENCE = 45.0


@pytest.fixture
async def broker() -> AsyncIterator[ScriptedBroker]:
    async with ScriptedBroker() as scripted:
        yield scripted


@pytest.fixture
async def make(broker: ScriptedBroker) -> AsyncIterator[Callable[..., MqttTransport]]:
    made: list[MqttTransport] = []

    def transport(
        url: str = "", *, clock: Clock | None = None, luck: Callable[[], float] = random.random, **options: float
    ) -> MqttTransport:
        chosen = TransportOptions(**{"backoff_seconds": 0.01, **options})  # type: ignore[arg-type]
        made.append(MqttTransport(url or broker.url, client_id="d1", clock=clock, options=chosen, luck=luck))
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
    """A broker that does not answer MQTT 5 is tried again with 3.1.1."""
    broker.silent = True
    transport = make(connect_timeout_seconds=0.2)
    await transport.start()
    await until(lambda: broker.connects[:2] == [5, 4])
    broker.silent = False
    await transport.wait_connected(PATIENCE)


async def test_a_broker_in_trouble_does_not_lose_mqtt_5(
    broker: ScriptedBroker, make: Callable[..., MqttTransport]
) -> None:
    """Once MQTT 5 worked, a broker that closes the connection is tried again with MQTT 5 only."""
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


async def test_many_filters_are_asked_for_in_small_packets(
    broker: ScriptedBroker, make: Callable[..., MqttTransport]
) -> None:
    """One SUBSCRIBE has at most 8 filters, a limit of hosted brokers; each filter is sent once."""
    transport = make()
    for number in range(20):
        await transport.subscribe(f"t{number:02}", lambda m: None)
    await connect(transport)
    counts = [packet.body.count(b"\x00\x03t") for packet in broker.of_kind(SUBSCRIBE)]
    assert counts == [8, 8, 4]


async def test_unsubscribe_reaches_the_broker(broker: ScriptedBroker, make: Callable[..., MqttTransport]) -> None:
    """The broker gets an UNSUBSCRIBE, and the next connect does not subscribe the filter."""
    transport = await connect(make())
    await transport.subscribe("a", lambda m: None)
    await transport.unsubscribe("a")
    (packet,) = broker.of_kind(UNSUBSCRIBE)
    assert packet.body.endswith(b"\x00\x01a")
    broker.drop()
    await until(lambda: len(broker.connects) == 2)
    await transport.wait_connected(PATIENCE)
    assert len(broker.of_kind(SUBSCRIBE)) == 1


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
    """A publish that waits for an acknowledgement fails at the loss of the connection, before its time limit."""
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
    """A publish that the broker's ACL refuses under MQTT 5 is an error."""
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
    """Without SUBACK the transport is not connected: it reconnects until one comes."""
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
    """With a full queue, QoS 0 waits and fails; queued messages are sent when the broker reads again."""
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
    assert 0 < transport._link.outbox.bytes <= 256 * 1024  # type: ignore[union-attr]
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
    """A payload over the broker's limit is an error; sent, it would make the broker close the connection."""
    broker.properties = b"\x27\x00\x00\x04\x00"
    transport = await connect(make())
    await transport.publish("a", bytes(512), qos=1)
    with pytest.raises(TransportError, match="the broker accepts"):
        await transport.publish("a", bytes(1024), qos=1)


@pytest.mark.parametrize(
    "garbage",
    [b"\x00\x00", b"\xf0\x00", b"\x30\xff\xff\xff\xff\xff", b"\x30\x01\x00", b"\x30\x04\x00\x02\xff\xfe", b"\x40\x00"],
    ids=["kind 0", "kind 15", "endless length", "cut topic", "topic not UTF-8", "empty PUBACK"],
)
async def test_garbage_ends_the_connection_at_most(
    broker: ScriptedBroker, make: Callable[..., MqttTransport], garbage: bytes
) -> None:
    """The transport survives any bytes of a broker, and works after reconnecting."""
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
    """A message that matches no subscription is counted and reaches no handler."""
    transport = await connect(make())
    got: list[str] = []
    await transport.subscribe("a", lambda m: got.append(m.topic))
    broker.send(b"\x30\x05\x00\x01b\x00x" + b"\x30\x05\x00\x01a\x00x")
    await until(lambda: bool(got))
    assert got == ["a"]
    assert transport.dropped_messages == 1


async def test_a_flood_of_messages_leaves_the_others_of_the_loop_their_turns(
    broker: ScriptedBroker, make: Callable[..., MqttTransport]
) -> None:
    """Answers to local clients run in the same loop as the connection to a broker that never stops."""
    transport = await connect(make())
    turns, seen = 0, []

    async def others() -> None:
        nonlocal turns
        while len(seen) < FLOOD:
            turns += 1
            await asyncio.sleep(0)

    await transport.subscribe("a", lambda message: seen.append(turns))
    running = asyncio.create_task(others())
    broker.send(b"\x30\x05\x00\x01a\x00x" * FLOOD)
    await asyncio.wait_for(running, PATIENCE)
    most_in_one_turn = max(seen.count(turn) for turn in set(seen))
    assert most_in_one_turn <= 200


async def test_stop_while_connecting_ends_at_once(broker: ScriptedBroker, make: Callable[..., MqttTransport]) -> None:
    """Stop does not wait for a broker that does not answer."""
    broker.silent = True
    transport = make(connect_timeout_seconds=1000.0)
    await transport.start()
    await until(lambda: broker.connects == [5])
    await asyncio.wait_for(transport.stop(), PATIENCE)
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("mqtt ")]


async def test_stop_at_any_moment_ends(broker: ScriptedBroker, make: Callable[..., MqttTransport]) -> None:
    """Stop works at any moment of a connection that reconnects all the time: 100 moments are tried."""
    broker.closing = True
    transport = make(backoff_seconds=0.0)
    await transport.subscribe("a", lambda m: None)
    for moment in range(100):
        await transport.start()
        await until(lambda moment=moment: len(broker.connects) > moment)
        broker.connects = broker.connects[-1:] * (moment + 1)
        for _ in range(moment % 10):
            await asyncio.sleep(0)
        await asyncio.wait_for(transport.stop(), PATIENCE)
        assert not transport.connected


@pytest.mark.parametrize("bad", ["", "a/b#", "a/#/b", "a+/b", "$share/g/a", "a\0b"])
async def test_a_bad_filter_is_refused_before_the_broker_sees_it(make: Callable[..., MqttTransport], bad: str) -> None:
    """A malformed filter is a ValueError, connected or not."""
    with pytest.raises(ValueError, match="topic filter"):
        await make().subscribe(bad, lambda m: None)


# --- reconnecting


def test_backoff_is_full_jitter_under_a_cap() -> None:
    """The wait is random between 0 and the doubled base, never over the cap, whatever the number of failures."""
    assert [backoff(n, 1.0, 60.0, 1.0) for n in (0, 1, 2, 5, 6, 7, 10_000)] == [1, 2, 4, 32, 60, 60, 60]
    assert backoff(10, 1.0, 60.0, 0.0) == 0.0
    assert backoff(3, 0.5, 60.0, 0.25) == 1.0


class LeapingClock:
    """A clock that advances by `step` seconds at each reading."""

    def __init__(self, step: float) -> None:
        self.now = 0.0
        self.step = step

    def monotonic(self) -> float:
        self.now += self.step
        return self.now

    def wall(self) -> float:
        return self.now


async def test_a_stable_minute_resets_the_backoff(broker: ScriptedBroker, make: Callable[..., MqttTransport]) -> None:
    """Connections of over a minute are renewed without delay, 30 times; a growing wait would reach 124 days."""
    broker.closing = True
    transport = make(clock=LeapingClock(61.0), backoff_cap_seconds=1e9)
    await transport.start()
    await until(lambda: len(broker.connects) >= 30)


async def test_an_unstable_connection_is_renewed_ever_later(
    broker: ScriptedBroker, make: Callable[..., MqttTransport]
) -> None:
    """Short connections count as failures; without the growing wait there would be about 200 and not 20."""
    broker.closing = True
    transport = make(clock=LeapingClock(1.0), backoff_seconds=0.002, backoff_cap_seconds=1e9)
    await transport.start()
    await asyncio.sleep(0.5)
    assert 1 <= len(broker.connects) < 40


async def test_each_wait_before_a_reconnect_is_drawn_anew(
    broker: ScriptedBroker, make: Callable[..., MqttTransport]
) -> None:
    """Devices that a broker disconnects together do not come back together: the whole wait is random, and each is."""
    broker.closing, drawn = True, []

    def luck() -> float:
        drawn.append(0.0)
        return 0.0

    transport = make(clock=LeapingClock(1.0), backoff_seconds=3600.0, backoff_cap_seconds=3600.0, luck=luck)
    await transport.start()
    await until(lambda: len(broker.connects) >= 5)
    assert len(drawn) >= 4
    assert MqttTransport(broker.url, client_id="d2")._luck is random.random


async def test_an_error_that_nobody_foresaw_is_counted_and_the_connection_renewed(
    broker: ScriptedBroker, make: Callable[..., MqttTransport]
) -> None:
    """An unexpected error ends one connection, is counted, and the transport reconnects."""

    class FailingClock:
        failures = 2

        def monotonic(self) -> float:
            if self.failures:
                self.failures -= 1
                raise RuntimeError("can't start new thread")
            return 0.0

        def wall(self) -> float:
            return 0.0

    transport = await connect(make(clock=FailingClock()))
    assert transport.unexpected_errors == 2
    await transport.publish("t", b"x", qos=1)


async def test_small_packets_are_not_held_back(broker: ScriptedBroker, make: Callable[..., MqttTransport]) -> None:
    """TCP_NODELAY is set: without it each QoS 1 round trip waits for a delayed acknowledgement (40 to 90 ms)."""
    transport = await connect(make())
    assert transport._link is not None  # from outside only time would tell
    sock = transport._link._client.socket()
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)  # type: ignore[union-attr]


async def test_a_takeover_is_named_and_counted(broker: ScriptedBroker, make: Callable[..., MqttTransport]) -> None:
    """The reason "session taken over" of MQTT 5 becomes a sentence; other losses are not counted."""
    transport = await connect(make())
    broker.drop()
    await until(lambda: len(broker.connects) == 2 and transport.connected)
    assert transport.takeovers == 0
    broker.send(b"\xe0\x02\x8e\x00")
    await until(lambda: transport.takeovers == 1)
    assert "another client connected under this name (d1)" in transport._last_failure


async def test_clients_of_a_broker_that_restarts_come_back_over_a_time(
    broker: ScriptedBroker, make: Callable[..., MqttTransport]
) -> None:
    """The first attempt after an accepted connection waits its share of the spread, also after a stable minute."""
    broker.closing = True
    late = make(clock=LeapingClock(61.0), luck=lambda: 0.9)
    late.spread_reconnects(300.0)
    await late.start()
    await until(lambda: len(broker.connects) == 1)
    soon = make(clock=LeapingClock(61.0), luck=lambda: 0.0)
    soon.spread_reconnects(300.0)
    await soon.start()
    await until(lambda: len(broker.connects) >= 6)
    assert not late.connected


async def test_a_client_without_a_spread_comes_back_at_once(
    broker: ScriptedBroker, make: Callable[..., MqttTransport]
) -> None:
    """After the jitter of the backoff only; before a hint, no fleet is assumed."""
    transport = await connect(make(luck=lambda: 0.9))
    broker.drop()
    await until(lambda: len(broker.connects) == 2 and transport.connected)
