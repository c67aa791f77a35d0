"""The private broker: mosquitto's configuration and ACL, the embedded amqtt, and the command that runs either."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from edgekit.errors import SettingsError, TransportError
from edgekit.mqtt import topics
from edgekit.mqtt.broker import Broker, find_mosquitto, start_broker
from edgekit.mqtt.transport import MqttTransport
from edgekit.protocols import Message

PATIENCE = 90.0
FLEET = "f"
needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
both = pytest.mark.parametrize("kind", [pytest.param("mosquitto", marks=needs_mosquitto), "amqtt"])


async def until(condition: Callable[[], bool]) -> None:
    async def poll() -> None:
        while not condition():  # noqa: ASYNC110  what is awaited happens in another process
            await asyncio.sleep(0.01)

    await asyncio.wait_for(poll(), PATIENCE)


@pytest.fixture
async def mosquitto(tmp_path: Path) -> AsyncIterator[Broker]:
    async with await start_broker("127.0.0.1", 0, tmp_path / "a folder", kind="mosquitto") as broker:
        yield broker


class Users:
    """Connected transports by user name; "" is an anonymous client."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._transports: list[MqttTransport] = []

    async def __call__(self, name: str) -> MqttTransport:
        transport = MqttTransport(self._broker.url, client_id=f"c{len(self._transports)}", username=name or None)
        self._transports.append(transport)
        await transport.start()
        await transport.wait_connected(PATIENCE)
        return transport

    async def stop(self) -> None:
        for transport in self._transports:
            await transport.stop()


@pytest.fixture
async def users(mosquitto: Broker) -> AsyncIterator[Users]:
    made = Users(mosquitto)
    yield made
    await made.stop()


# --- starting and stopping


@both
async def test_a_broker_listens_from_start_to_stop(tmp_path: Path, kind: str) -> None:
    """It accepts connections when start returns, names itself, and ends with stop; a second stop is no error."""
    broker = await start_broker("127.0.0.1", 0, tmp_path, kind=kind)
    port = int(broker.url.rpartition(":")[2])
    socket.create_connection(("127.0.0.1", port)).close()
    assert broker.kind == kind
    assert broker.title.startswith(kind)
    await broker.stop()
    await broker.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


@both
async def test_a_taken_port_is_named(tmp_path: Path, kind: str) -> None:
    """A port that something listens on is an error with the address, and nothing is started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(TransportError, match=f"127.0.0.1:{port}") as caught:
            await start_broker("127.0.0.1", port, tmp_path, kind=kind)
    assert "another port" in caught.value.advice


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.org", ""])
async def test_only_loopback_is_listened_on(tmp_path: Path, host: str) -> None:
    """A broker that does not authenticate clients listens on loopback only."""
    with pytest.raises(SettingsError, match="not a loopback address"):
        await start_broker(host, 0, tmp_path)


async def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    """The error lists the kinds."""
    with pytest.raises(SettingsError, match="auto, mosquitto, amqtt"):
        await start_broker("127.0.0.1", 0, tmp_path, kind="rabbitmq")


async def test_without_mosquitto_auto_takes_amqtt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without mosquitto, `auto` takes the embedded broker, and kind mosquitto is an error with advice."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("edgekit.mqtt.mosquitto.SYSTEM_FOLDERS", ())
    async with await start_broker("127.0.0.1", 0, tmp_path) as broker:
        assert broker.kind == "amqtt"
    with pytest.raises(TransportError) as caught:
        await start_broker("127.0.0.1", 0, tmp_path, kind="mosquitto")
    assert "apt install mosquitto" in caught.value.advice


async def test_a_mosquitto_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the last line of mosquitto's log."""
    fake = tmp_path / "bin" / "mosquitto"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\n[ \"$1\" = -h ] && exit 3\necho 'Error: it is raining' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    with pytest.raises(TransportError, match="it is raining"):
        await start_broker("127.0.0.1", 0, tmp_path / "folder", kind="mosquitto")


async def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A file where the folder should be is a settings error."""
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="file"):
        await start_broker("127.0.0.1", 0, tmp_path / "file", kind="mosquitto")


async def test_amqtt_answers_mqtt_5_with_unacceptable_version(tmp_path: Path) -> None:
    """A CONNECT of MQTT 5, which blocks amqtt, gets CONNACK 1 at once; a connection without MQTT is closed."""
    connect = b"\x10\x14\x00\x04MQTT\x05\xc2\x00\x1e\x00\x00\x01d\x00\x01u\x00\x01p"
    async with await start_broker("127.0.0.1", 0, tmp_path, kind="amqtt") as broker:
        for sent, expected in ((connect, b"\x20\x02\x00\x01"), (b"GET / HTTP/1.1\r\n\r\n", b"")):
            reader, writer = await asyncio.open_connection("127.0.0.1", int(broker.url.rpartition(":")[2]))
            writer.write(sent)
            assert await asyncio.wait_for(reader.read(), PATIENCE) == expected
            writer.close()
            await writer.wait_closed()


# --- who may do what (mosquitto)


@needs_mosquitto
async def test_a_device_writes_its_own_topics_only(users: Users) -> None:
    """A device may publish reports and requests under its own name, and nothing under other names."""
    device = await users("d1")
    own = [topics.device(FLEET, "d1", kind) for kind in ("reported", "presence", "telemetry", "event", "result")]
    own += [topics.request(FLEET, kind, "d1") for kind in ("metadata", "blocks")]
    for topic in own:
        await device.publish(topic, b"x", qos=1)
    foreign = [topic.replace("d1", "d2") for topic in own]
    foreign += [topics.device(FLEET, "d1", kind) for kind in ("desired", "command")]
    foreign += [topics.answer(FLEET, "d1"), topics.broadcast(FLEET, "0" * 64), topics.fleet_hints(FLEET), "other"]
    for topic in foreign:
        with pytest.raises(TransportError, match="not authorized"):
            await device.publish(topic, b"x", qos=1)


async def heard(users: Users, name: str, published: list[str]) -> list[str]:
    """The topics of `published` that reach the user `name`, who subscribes to everything."""
    listener, controller = await users(name), await users("controller")
    got: list[str] = []
    done: list[Message] = []
    watcher = await users("controller")
    await listener.subscribe("#", lambda m: got.append(m.topic))
    await watcher.subscribe("edgekit/v1/f/fleet", done.append)
    for topic in published:
        await controller.publish(topic, b"x", qos=1)
    await controller.publish("edgekit/v1/f/fleet", b"x", qos=1)
    await until(lambda: bool(done))
    await listener.subscribe("nothing/+", lambda m: None)  # its answer comes after what was sent before
    return got


@needs_mosquitto
async def test_a_device_reads_its_own_topics_and_the_fleets(users: Users) -> None:
    """Even with a filter for all topics, a device receives no other device's assignments and answers."""
    for_it = [topics.device(FLEET, "d1", "desired"), topics.device(FLEET, "d1", "command"), topics.answer(FLEET, "d1")]
    for_all = [topics.broadcast(FLEET, "0" * 64)]
    for_others = [topic.replace("d1", "d2") for topic in for_it] + [topics.device(FLEET, "d1", "event")]
    got = await heard(users, "d1", for_it + for_all + for_others)
    assert sorted(got) == sorted([*for_it, *for_all, topics.fleet_hints(FLEET)])


@needs_mosquitto
@pytest.mark.parametrize("name", ["", "#", "+", "d2"])
async def test_nobody_and_strangers_read_no_orders(users: Users, name: str) -> None:
    """Without a name, or with a wildcard as name, a client reads nothing; with another name, not this device's."""
    mine = [topics.device(FLEET, "d1", "desired"), topics.answer(FLEET, "d1")]
    got = await heard(users, name, mine)
    assert not set(mine) & set(got)
    if name == "":
        assert got == []


@needs_mosquitto
async def test_nobody_may_publish_nothing(users: Users) -> None:
    """An anonymous client is connected and can do nothing."""
    nobody = await users("")
    for topic in (topics.device(FLEET, "d1", "reported"), topics.fleet_hints(FLEET), "other"):
        with pytest.raises(TransportError, match="not authorized"):
            await nobody.publish(topic, b"x", qos=1)


@needs_mosquitto
async def test_retained_state_survives_a_restart(tmp_path: Path) -> None:
    """Retained messages of mosquitto survive a stop and a start in the same folder."""
    topic = topics.device(FLEET, "d1", "desired")
    got: list[bytes] = []
    for turn in range(2):
        async with await start_broker("127.0.0.1", 0, tmp_path, kind="mosquitto") as broker:
            transport = MqttTransport(broker.url, client_id="c", username="controller")
            await transport.start()
            await transport.wait_connected(PATIENCE)
            if turn == 0:
                await transport.publish(topic, b"order", qos=1, retain=True)
            await transport.subscribe(topic, lambda m: got.append(m.payload))
            await until(lambda turn=turn: got == [b"order"] * (turn + 1))
            await transport.stop()


# --- the command


class Command:
    """`edgekit broker run` as a child process."""

    def __init__(self, *args: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from edgekit.cli.main import main; main()", "broker", "run", "--port", "0", *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ready(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def end(self, number: int) -> tuple[int, str, str]:
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out, err


@both
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_prints_one_line_and_ends_cleanly(tmp_path: Path, kind: str, number: int) -> None:
    """It prints one line with the URL when it is ready, exits 0 on a signal, and nothing listens afterwards."""
    command = Command("--kind", kind, "--folder", str(tmp_path))
    line = command.ready()
    port = int(line.strip().rpartition(":")[2])
    socket.create_connection(("127.0.0.1", port)).close()
    status, rest, err = command.end(number)
    assert (status, rest) == (0, "")
    assert line.startswith(f"broker ({kind} ")
    assert ") ready at mqtt://127.0.0.1:" in line
    assert ("apt install mosquitto" in err) == (kind == "amqtt")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


@needs_mosquitto
def test_the_command_ends_when_its_mosquitto_does(tmp_path: Path) -> None:
    """When the broker dies, the command exits 1 with a message."""
    command = Command("--kind", "mosquitto", "--folder", str(tmp_path))
    command.ready()
    (child,) = children(command.process.pid)
    os.kill(child, signal.SIGKILL)
    _, err = command.process.communicate(timeout=PATIENCE)
    assert command.process.returncode == 1
    assert "mosquitto ended with status -9" in err


@needs_mosquitto
@pytest.mark.skipif(sys.platform != "linux", reason="the system's death signal is Linux's")
def test_a_killed_command_leaves_no_mosquitto_behind(tmp_path: Path) -> None:
    """The broker ends even when the command is killed by SIGKILL, so that the next start finds the port free."""
    command = Command("--kind", "mosquitto", "--folder", str(tmp_path))
    port = int(command.ready().strip().rpartition(":")[2])
    assert children(command.process.pid)
    command.end(signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.02)
    pytest.fail("mosquitto still listens")


def children(pid: int) -> list[int]:
    """Process ids of the children of `pid`."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found
