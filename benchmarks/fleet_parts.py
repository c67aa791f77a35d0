"""Parts of the fleet benchmark: final reports, the broker's messages after a restart, and the cost of telemetry.

`python -m benchmarks.fleet_parts URL MESSAGES` is the bare paho subscriber; with DEVICES and `send` it is the sender.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import paho.mqtt.client as paho
import sqlalchemy as sa
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks.processes import cpu_of, pids_of
from benchmarks.results import Figure
from edgekit.demo.processes import Processes
from edgekit.mqtt import topics
from edgekit.mqtt.messages import Telemetry, encode
from edgekit.mqtt.transport import MqttTransport
from edgekit.rollout.values import DeviceState, Rollout
from edgekit.sketches.sketch import Sketch
from edgekit.state import FleetState
from edgekit.state.tables import telemetry_marks

FLEET = "bench"
WINDOW_SECONDS = 10
STEADY_WINDOWS, RESTARTED_WINDOWS = 3, 6
ROUNDS = 2
SESSION = 10**9  # above that of the agents
GROUPS = ("sim-a", "sim-b")  # one process of simulated devices for each of two cores


def group_sizes(devices: int) -> dict[str, int]:
    """Devices of each group, by the prefix of their names; groups without devices are left out."""
    sizes = {prefix: (devices + at) // len(GROUPS) for at, prefix in enumerate(reversed(GROUPS))}
    return {prefix: count for prefix, count in sizes.items() if count}


def device_names(devices: int) -> list[str]:
    """Names of a fleet's devices."""
    return [f"{prefix}-{n}" for prefix, count in group_sizes(devices).items() for n in range(1, count + 1)]


def count_lost(rollout: Rollout, state: FleetState) -> int:
    """Devices that did not succeed, or whose last report does not name the bundle of the rollout."""
    running = {view.device: view.models.get(rollout.model) for view in state.devices.views(time.time(), 1e9)}
    lost = 0
    for name, progress in rollout.devices.items():
        model = running.get(name)
        true = model is not None and model.digest == progress.digest
        lost += not (true and progress.state is DeviceState.SUCCEEDED)
    return lost


# --- messages of the broker


def broker_counts(url: str, kill: Callable[[str], None], devices: int) -> list[Figure]:
    """Most messages a second that the broker gets in WINDOW_SECONDS after a restart, over its steady rate."""
    steady = [_window(url) for _ in range(STEADY_WINDOWS)]
    kill("broker")
    after = [_window(url) for _ in range(RESTARTED_WINDOWS)]
    usual = sum(steady) / len(steady)
    note = f"{devices} devices, windows of {WINDOW_SECONDS} s: {', '.join(f'{rate:.0f}' for rate in after)}"
    return [
        Figure("messages at the broker, steady", usual, "messages/s", note=f"{devices} devices"),
        Figure("messages after a broker restart over steady", max(after) / max(usual, 0.1), "times", 3.0, note=note),
    ]


def _window(url: str) -> float:
    """Messages a second that the broker receives, over one window."""
    return asyncio.run(_received(url))


async def _received(url: str) -> float:
    counts: list[tuple[float, int]] = []
    transport = MqttTransport(url, client_id="counter", username="counter")
    await transport.subscribe(
        "$SYS/broker/messages/received", lambda m: counts.append((time.monotonic(), int(m.payload)))
    )
    await transport.start()
    try:
        await transport.wait_connected(30.0)
        await asyncio.sleep(WINDOW_SECONDS + 1.5)
    finally:
        await transport.stop()
    (begun, first), (ended, last) = counts[0], counts[-1]
    return (last - first) / (ended - begun)


# --- telemetry


def telemetry_cpu(folder: Path, url: str, state: FleetState, devices: int, processes: Processes) -> Figure:
    """CPU of the controller for the telemetry of all devices, over that of a bare subscriber that decodes it."""
    for prefix in group_sizes(devices):
        processes.stop(prefix)
    _until_quiet(folder)
    messages = ROUNDS * devices
    command = [sys.executable, "-m", "benchmarks.fleet_parts", url, str(messages)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as bare:
        assert bare.stdout is not None
        bare.stdout.readline()
        pid = pids_of(folder)["controller"]
        before = cpu_of(pid), cpu_of(bare.pid)
        subprocess.run([sys.executable, "-m", "benchmarks.fleet_parts", url, str(devices), "send"], check=True)
        bare.stdout.readline()
        subscriber = cpu_of(bare.pid) - before[1]
        stored = _until_stored(state, devices)
        controller = cpu_of(pid) - before[0]
        bare.kill()
    note = f"{messages} messages of {devices} devices, {stored} devices stored: {controller:.2f} CPU s over "
    note += f"{subscriber:.2f}"
    return Figure("telemetry, controller over a bare subscriber", controller / subscriber, "times", 3.0, note=note)


def _until_quiet(folder: Path) -> None:
    """Wait until the controller has handled what the devices sent at their end."""
    pid = pids_of(folder)["controller"]
    end = time.monotonic() + 120.0
    while time.monotonic() < end:
        before = cpu_of(pid)
        time.sleep(3.0)
        if cpu_of(pid) - before < 0.3:
            return


def _until_stored(state: FleetState, devices: int) -> int:
    """Wait until the last message of each device is stored; returns how many are."""
    query = sa.select(sa.func.count()).where(telemetry_marks.c.session == SESSION, telemetry_marks.c.number == ROUNDS)
    end, stored = time.monotonic() + 300.0, 0
    while time.monotonic() < end and stored < devices:
        with state.telemetry._reading() as connection:
            stored = connection.execute(query).scalar() or 0
        time.sleep(0.2)
    return stored


async def _send(url: str, devices: int) -> None:
    transport = MqttTransport(url, client_id="sender", username="sender")
    await transport.start()
    await transport.wait_connected(30.0)
    counts = tuple(range(1, 30))
    sketches = {"latency/digits": Sketch(-2, 4, counts, 1.1, 8.1, sum(counts))}
    for number in range(1, ROUNDS + 1):
        for name in device_names(devices):
            counters = {f"requests_{route}": 10.0 for route in ("local", "cloud", "degraded")}
            sent = Telemetry(name, time.time(), 60.0, counters, sketches, SESSION, number)
            await transport.publish(topics.device(FLEET, name, "telemetry"), encode(sent), qos=1)
    await transport.stop()


def _listen(url: str, messages: int) -> None:
    """Subscribe with paho alone, decode each message, and print a line when ready and when done."""
    decoder, seen = msgspec.msgpack.Decoder(Telemetry), 0
    host, _, port = url.removeprefix("mqtt://").partition(":")
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)

    def arrived(client: paho.Client, data: object, message: paho.MQTTMessage) -> None:
        nonlocal seen
        decoder.decode(message.payload)
        seen += 1
        if seen == messages:
            print("done", flush=True)

    client.on_message = arrived
    client.on_subscribe = lambda *_: print("ready", flush=True)
    client.connect(host, int(port))
    client.subscribe(topics.device(FLEET, "+", "telemetry"), qos=1)
    client.loop_forever()


def main() -> None:
    """Run the bare subscriber or the sender."""
    url, count, *rest = sys.argv[1:]
    if rest:
        asyncio.run(_send(url, int(count)))
    else:
        _listen(url, int(count))


if __name__ == "__main__":
    main()
