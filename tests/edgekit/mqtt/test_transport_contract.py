"""The contract of every Transport, checked in memory and on real brokers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from edgekit.errors import TransportError
from edgekit.mqtt.broker import Broker, find_mosquitto, start_broker
from edgekit.mqtt.options import TransportOptions
from edgekit.mqtt.transport import MqttTransport
from edgekit.protocols import Message, Transport, Will
from tests.simulators.transport import MemoryBroker, MemoryTransport
from tests.simulators.wire import Wire

PATIENCE = 45.0
USER = "controller"  # may use every topic of edgekit
ROOT = "edgekit/v1/test"


class MemoryRig:
    """Transports in memory."""

    keeps_retained = True
    shares = True

    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self._transports: list[Transport] = []

    async def transport(self, client_id: str, *, will: Will | None = None) -> Transport:
        transport = MemoryTransport(self.broker, client_id, will=will)
        self._transports.append(transport)
        return transport

    async def cut(self, client_id: str) -> None:
        self.broker.cut(client_id)

    async def stop_broker(self) -> None:
        self.broker.stop()

    async def start_broker(self) -> None:
        self.broker.start()

    async def close(self) -> None:
        for transport in self._transports:
            await transport.stop()


class BrokerRig:
    """MqttTransports on a real broker; each has its own wire, so that it can be cut."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.keeps_retained = kind == "mosquitto"
        self.shares = kind == "mosquitto"
        self._folder = folder
        self._broker: Broker | None = None
        self._port = 0
        self._transports: list[Transport] = []
        self._wires: dict[str, Wire] = {}

    async def transport(self, client_id: str, *, will: Will | None = None) -> Transport:
        wire = self._wires[client_id] = await Wire("127.0.0.1", self._port).__aenter__()
        quick = TransportOptions(backoff_seconds=0.05)
        transport = MqttTransport(wire.url, client_id=client_id, will=will, username=USER, options=quick)
        self._transports.append(transport)
        return transport

    async def cut(self, client_id: str) -> None:
        self._wires[client_id].cut()

    async def stop_broker(self) -> None:
        assert self._broker is not None
        await self._broker.stop()

    async def start_broker(self) -> None:
        self._broker = await start_broker("127.0.0.1", self._port, self._folder, kind=self.kind)
        self._port = urlsplit(self._broker.url).port or 0

    async def close(self) -> None:
        for transport in self._transports:
            await transport.stop()
        for wire in self._wires.values():
            await wire.__aexit__(None, None, None)
        await self.stop_broker()


Rig = MemoryRig | BrokerRig


@pytest.fixture(params=["memory", "mosquitto", "amqtt"])
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    if request.param == "memory":
        memory = MemoryRig()
        yield memory
        await memory.close()
        return
    if request.param == "mosquitto" and find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    real = BrokerRig(request.param, tmp_path)
    await real.start_broker()
    yield real
    await real.close()


async def connected(rig: Rig, *names: str) -> list[Transport]:
    transports = [await rig.transport(name) for name in names]
    for transport in transports:
        await transport.start()
        await transport.wait_connected(PATIENCE)
    return transports


async def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds; fails after PATIENCE."""

    async def poll() -> None:
        while not condition():  # noqa: ASYNC110  what is awaited has no event: it happens in a library or the kernel
            await asyncio.sleep(0.005)

    await asyncio.wait_for(poll(), PATIENCE)


async def quiet(publisher: Transport, subscriber: Transport) -> None:
    """Wait until a later message of `publisher` arrives at `subscriber`, and so all earlier ones."""
    arrived: list[Message] = []
    await subscriber.subscribe(f"{ROOT}/marker", arrived.append)
    await publisher.publish(f"{ROOT}/marker", b"", qos=1)
    await until(lambda: bool(arrived))
    await subscriber.unsubscribe(f"{ROOT}/marker")


@pytest.mark.parametrize("qos", [0, 1])
async def test_a_message_arrives_once_and_whole_at_an_exact_filter(rig: Rig, qos: int) -> None:
    """A published message reaches the handler of its exact topic, with its bytes, and not marked as retained."""
    here, there = await connected(rig, "here", "there")
    got: list[Message] = []
    await there.subscribe(f"{ROOT}/a/b", got.append, qos=qos)
    await here.publish(f"{ROOT}/a/b", b"\x00\xff", qos=qos)
    await here.publish(f"{ROOT}/a/c", b"other", qos=qos)
    await quiet(here, there)
    assert got == [Message(f"{ROOT}/a/b", b"\x00\xff", False)]


async def test_a_plus_matches_one_level_and_a_hash_all(rig: Rig) -> None:
    """`+` stands for exactly one level and `#` for the rest."""
    here, there = await connected(rig, "here", "there")
    one: list[str] = []
    rest: list[str] = []
    await there.subscribe(f"{ROOT}/x/+/z", lambda m: one.append(m.topic))
    await there.subscribe(f"{ROOT}/y/#", lambda m: rest.append(m.topic))
    for topic in ("x/1/z", "x/1/2/z", "x/z", "y/1", "y/1/2"):
        await here.publish(f"{ROOT}/{topic}", b"", qos=1)
    await quiet(here, there)
    assert one == [f"{ROOT}/x/1/z"]
    assert rest == [f"{ROOT}/y/1", f"{ROOT}/y/1/2"]


async def test_a_retained_message_is_seen_by_a_late_subscriber(rig: Rig) -> None:
    """The newest retained message arrives on subscribing, marked as retained; an empty payload deletes it."""
    here, there = await connected(rig, "here", "there")
    for payload in (b"old", b"new"):
        await here.publish(f"{ROOT}/state/1", payload, qos=1, retain=True)
    await here.publish(f"{ROOT}/state/2", b"gone", qos=1, retain=True)
    await here.publish(f"{ROOT}/state/2", b"", qos=1, retain=True)
    got: list[Message] = []
    await there.subscribe(f"{ROOT}/state/+", got.append)
    await until(lambda: bool(got))
    await quiet(here, there)
    assert got == [Message(f"{ROOT}/state/1", b"new", True)]


async def test_subscriptions_made_before_the_connection_are_in_place_with_it(rig: Rig) -> None:
    """A filter that was added before start is subscribed when the listener is called."""
    (here,) = await connected(rig, "here")
    there = await rig.transport("there")
    got: list[bytes] = []
    changes: list[bool] = []
    there.on_connection(changes.append)
    for number in range(20):
        await there.subscribe(f"{ROOT}/{number}", lambda m: got.append(m.payload))
    await there.start()
    await until(lambda: changes == [True])
    for number in range(20):
        await here.publish(f"{ROOT}/{number}", b"%d" % number, qos=1)
    await until(lambda: len(got) == 20)
    assert sorted(got, key=int) == [b"%d" % number for number in range(20)]


async def test_the_will_is_published_when_the_connection_breaks(rig: Rig) -> None:
    """When a client is lost without a DISCONNECT, its will is published and retained; it reconnects by itself."""
    (watcher,) = await connected(rig, "watcher")
    lost = await rig.transport("lost", will=Will(f"{ROOT}/presence", b"offline"))
    got: list[Message] = []
    changes: list[bool] = []
    lost.on_connection(changes.append)
    await watcher.subscribe(f"{ROOT}/presence", got.append)
    await lost.start()
    await lost.wait_connected(PATIENCE)
    await rig.cut("lost")
    await until(lambda: [m.payload for m in got] == [b"offline"])
    await until(lambda: changes == [True, False, True])


async def test_a_clean_stop_leaves_no_will(rig: Rig) -> None:
    """After stop the will is not published, and the listeners were called."""
    (watcher,) = await connected(rig, "watcher")
    leaving = await rig.transport("leaving", will=Will(f"{ROOT}/presence", b"offline"))
    got: list[Message] = []
    changes: list[bool] = []
    leaving.on_connection(changes.append)
    await watcher.subscribe(f"{ROOT}/presence", got.append)
    await leaving.start()
    await leaving.wait_connected(PATIENCE)
    await leaving.publish(f"{ROOT}/presence", b"bye")
    await leaving.stop()
    await until(lambda: bool(got))
    await quiet(watcher, watcher)
    assert [m.payload for m in got] == [b"bye"]
    assert changes == [True, False]


async def test_a_restarted_broker_is_found_again_with_all_subscriptions(rig: Rig) -> None:
    """After an outage of the broker both sides reconnect, and messages arrive as before."""
    here, there = await connected(rig, "here", "there")
    got: list[Message] = []
    await there.subscribe(f"{ROOT}/a/+", got.append)
    await here.publish(f"{ROOT}/a/kept", b"1", qos=1, retain=True)
    await until(lambda: len(got) == 1)
    await rig.stop_broker()
    await until(lambda: not here.connected and not there.connected)
    await rig.start_broker()
    await here.wait_connected(PATIENCE)
    await there.wait_connected(PATIENCE)
    await here.publish(f"{ROOT}/a/new", b"2", qos=1)
    await until(lambda: any(m.topic == f"{ROOT}/a/new" for m in got))
    if rig.keeps_retained:
        await until(lambda: Message(f"{ROOT}/a/kept", b"1", True) in got)


async def test_a_handler_that_raises_harms_nobody(rig: Rig) -> None:
    """An exception in a handler or listener is counted; other handlers and later messages are served."""
    here, there = await connected(rig, "here", "there")
    got: list[bytes] = []

    def broken(_: object) -> None:
        raise RuntimeError("a bug in a handler")

    there.on_connection(broken)
    await there.subscribe(f"{ROOT}/bad", broken)
    await there.subscribe(f"{ROOT}/good", lambda m: got.append(m.payload))
    for _ in range(3):
        await here.publish(f"{ROOT}/bad", b"", qos=1)
    await here.publish(f"{ROOT}/good", b"1", qos=1)
    await until(lambda: got == [b"1"])
    assert there.handler_errors == 3  # type: ignore[attr-defined]
    await there.stop()
    assert there.handler_errors == 4  # type: ignore[attr-defined]


async def test_a_hundred_blocks_arrive_in_a_window(rig: Rig) -> None:
    """100 blocks of 64 KiB at QoS 0 arrive complete, with at most 8 in flight."""
    here, there = await connected(rig, "here", "there")
    got: dict[int, bytes] = {}
    credit = asyncio.Semaphore(8)

    def take(message: Message) -> None:
        got[int(message.topic.rpartition("/")[2])] = message.payload
        credit.release()

    await there.subscribe(f"{ROOT}/block/+", take, qos=0)
    blocks = {number: bytes([number]) * 65536 for number in range(100)}
    for number, block in blocks.items():
        await asyncio.wait_for(credit.acquire(), PATIENCE)
        await here.publish(f"{ROOT}/block/{number}", block)
    await until(lambda: len(got) == 100)
    assert got == blocks


async def test_publishing_while_away_is_an_error_at_once(rig: Rig) -> None:
    """Publishing without a connection fails at both QoS levels, and nothing is sent later."""
    here, there = await connected(rig, "here", "there")
    never = await rig.transport("never")
    got: list[Message] = []
    await there.subscribe(f"{ROOT}/a", got.append)
    with pytest.raises(TransportError):
        await never.publish(f"{ROOT}/a", b"never started")
    await here.stop()
    for qos in (0, 1):
        with pytest.raises(TransportError):
            await here.publish(f"{ROOT}/a", b"stopped", qos=qos)
    await here.start()
    await here.wait_connected(PATIENCE)
    await quiet(here, there)
    assert got == []


async def test_a_payload_over_the_limit_is_refused(rig: Rig) -> None:
    """A payload of 256 KiB arrives; one byte more is an error, and the connection stays."""
    here, there = await connected(rig, "here", "there")
    got: list[int] = []
    await there.subscribe(f"{ROOT}/big", lambda m: got.append(len(m.payload)))
    await here.publish(f"{ROOT}/big", bytes(256 * 1024), qos=1)
    with pytest.raises(TransportError, match="262145"):
        await here.publish(f"{ROOT}/big", bytes(256 * 1024 + 1), qos=1)
    await until(lambda: got == [256 * 1024])
    assert here.connected


async def test_a_wildcard_is_no_topic_to_publish_on(rig: Rig) -> None:
    """Publishing on a filter is a ValueError."""
    (here,) = await connected(rig, "here")
    for topic in ("", f"{ROOT}/+", f"{ROOT}/#"):
        with pytest.raises(ValueError, match="topic"):
            await here.publish(topic, b"")


async def test_unsubscribed_means_silent(rig: Rig) -> None:
    """After unsubscribe the handler is not called, other filters still are; twice is no error."""
    here, there = await connected(rig, "here", "there")
    got: list[str] = []
    for name in ("a", "b"):
        await there.subscribe(f"{ROOT}/{name}", lambda m: got.append(m.topic))
    await there.unsubscribe(f"{ROOT}/a")
    await there.unsubscribe(f"{ROOT}/a")
    for name in ("a", "b"):
        await here.publish(f"{ROOT}/{name}", b"", qos=1)
    await quiet(here, there)
    assert got == [f"{ROOT}/b"]


async def test_a_second_subscribe_replaces_the_handler_and_replays_what_is_retained(rig: Rig) -> None:
    """Subscribing a known filter again gives the new handler the retained message, and the old one nothing more."""
    here, there = await connected(rig, "here", "there")
    await here.publish(f"{ROOT}/s", b"1", qos=1, retain=True)
    old: list[bytes] = []
    new: list[bytes] = []
    await there.subscribe(f"{ROOT}/s", lambda m: old.append(m.payload))
    await until(lambda: old == [b"1"])
    await there.subscribe(f"{ROOT}/s", lambda m: new.append(m.payload))
    await until(lambda: new == [b"1"])
    await here.publish(f"{ROOT}/s", b"2", qos=1)
    await until(lambda: new == [b"1", b"2"])
    assert old == [b"1"]


async def test_a_group_shares_messages_where_the_broker_can(rig: Rig) -> None:
    """In a group each message reaches one member; on a broker that cannot share, every member gets it."""
    here, first, second = await connected(rig, "here", "first", "second")
    got: dict[str, list[bytes]] = {"first": [], "second": []}
    for name, member in (("first", first), ("second", second)):
        await member.subscribe(f"{ROOT}/request/+", lambda m, name=name: got[name].append(m.payload), group="servers")
    for number in range(10):
        await here.publish(f"{ROOT}/request/{number}", b"%d" % number, qos=1)
    for member in (first, second):
        await quiet(here, member)
    everything = [b"%d" % number for number in range(10)]
    if rig.shares:
        assert sorted(got["first"] + got["second"]) == everything
        assert got["first"]
        assert got["second"]
    else:
        assert sorted(got["first"]) == sorted(got["second"]) == everything


async def test_a_stopped_transport_can_start_again_and_leaves_nothing_open(rig: Rig) -> None:
    """Start and stop are repeatable, stop twice is no error, and no file descriptor or task stays."""
    (here,) = await connected(rig, "here")
    got: list[bytes] = []
    await here.subscribe(f"{ROOT}/a", lambda m: got.append(m.payload))
    await here.stop()
    await asyncio.sleep(0.05)  # the wire's other half ends, too
    tasks, files = len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))
    for number in range(5):
        await here.start()
        await here.start()
        await here.wait_connected(PATIENCE)
        await here.publish(f"{ROOT}/a", b"%d" % number, qos=1)
        await until(lambda number=number: len(got) == number + 1)
        await here.stop()
        await here.stop()
        assert not here.connected
    await until(lambda: len(asyncio.all_tasks()) <= tasks + 1)  # and the one that waits here
    await until(lambda: len(os.listdir("/proc/self/fd")) <= files)


async def test_waiting_for_a_broker_that_is_away_says_so(rig: Rig) -> None:
    """`wait_connected` ends with an error that names the broker and the reason."""
    await rig.stop_broker()
    lonely = await rig.transport("lonely")
    await lonely.start()
    with pytest.raises(TransportError, match="cannot reach broker"):
        await lonely.wait_connected(0.3)
    await rig.start_broker()
    await lonely.wait_connected(PATIENCE)
