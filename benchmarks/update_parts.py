"""The processes of the update benchmark: `python -m benchmarks.update_parts server|clients|bare-... ...`.

The server is the block service of a controller. The clients are the block fetchers of N devices in one process; they
hash every block and store none. The bare server sends windows of blocks of the same size with paho alone to N bare
clients that ask for them, and reads no file: any server on this broker pays as much.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import resource
import selectors
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from device_agents.control.requests import RequestClient
from device_agents.download.block_fetcher import BlockFetcher
from edgekit.bundle.manifest import BLOCK_BYTES, FileEntry
from edgekit.clock import SystemClock
from edgekit.controller.blocks import BlockService
from edgekit.mqtt.transport import MqttTransport
from edgekit.protocols import Handler, Message
from edgekit.storage.stores import open_store

FLEET = "bench"
CONNECT_AT_ONCE = 50
TOPIC = "edgekit/v1/bare"  # which the broker lets the user controller read and write
WINDOW_BLOCKS = 16
BARE_SECONDS = 30.0


class LossyTransport(MqttTransport):
    """An MqttTransport that drops a share of the messages that arrive, like a broker with slow readers.

    Attributes:
        loss: Share of messages that are dropped.
        arrived_bytes: Bytes of all payloads that arrived, dropped ones included.
    """

    loss = 0.0
    arrived_bytes = 0

    async def subscribe(self, topic_filter: str, handler: Handler, *, qos: int = 1, group: str = "") -> None:
        """Subscribe with a handler that drops the share `loss` of the messages."""

        def deliver(message: Message) -> None:
            self.arrived_bytes += len(message.payload)
            if random.random() >= self.loss:
                handler(message)

        await super().subscribe(topic_filter, deliver, qos=qos, group=group)


async def serve(url: str, store: str, budget: int) -> None:
    """Run the block service until killed."""
    transport = MqttTransport(url, client_id="controller", username="controller")
    service = BlockService(
        fleet=FLEET, transport=transport, store=open_store(store), clock=SystemClock(), broker_budget_bytes=budget
    )
    await transport.start()
    await transport.wait_connected(10)
    await service.start()
    print("ready", flush=True)
    await asyncio.Event().wait()


async def fetch(url: str, entry: FileEntry, devices: int, *, waves: bool, loss: float) -> None:
    """Fetch a blob on every device: print "connected", wait for a line on stdin, fetch, and print the result."""
    LossyTransport.loss = loss
    names = [f"d{number}" for number in range(devices)]
    transports = [LossyTransport(url, client_id=name, username=name) for name in names]
    fetchers = []
    for at in range(0, devices, CONNECT_AT_ONCE):
        group = slice(at, at + CONNECT_AT_ONCE)
        for name, transport in zip(names[group], transports[group], strict=True):
            client = RequestClient(transport, fleet=FLEET, device=name)
            await client.start()
            await transport.start()
            fetchers.append(BlockFetcher(client, SystemClock()))
        await asyncio.gather(*(transport.wait_connected(30) for transport in transports[group]))
    print("connected", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    begun = time.monotonic()
    await asyncio.gather(*(_fetch_one(fetcher, entry, waves=waves) for fetcher in fetchers))
    wall = time.monotonic() - begun
    arrived = sum(transport.arrived_bytes for transport in transports)
    heard = sum(fetcher.counters["wave_blocks"] for fetcher in fetchers)
    print(json.dumps({"wall": wall, "arrived": arrived, "wave_blocks": heard}), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await asyncio.gather(*(transport.stop() for transport in transports))


def serve_bare(url: str, devices: int, blocks: int) -> None:
    """Publish the next WINDOW_BLOCKS blocks to each device that asks, with paho alone, until killed."""
    client, data, sent = _bare_client(url), random.randbytes(BLOCK_BYTES), [0] * devices

    def asked(_client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        device = int(message.payload)
        for _ in range(min(WINDOW_BLOCKS, blocks - sent[device])):
            sent[device] += 1
            client.publish(f"{TOPIC}/{device}", data)

    client.on_message = asked
    client.on_subscribe = lambda *_: print("ready", flush=True)
    client.subscribe(f"{TOPIC}/ask")
    client.loop_forever()


def fetch_bare(url: str, devices: int, blocks: int) -> None:
    """Ask `serve_bare` for all blocks with N clients; prints and waits as `fetch`."""
    selector, seen, ready = selectors.DefaultSelector(), [0] * devices, [0]

    def ask(client: paho.Client, device: int) -> None:
        if seen[device] < blocks:
            client.publish(f"{TOPIC}/ask", str(device))

    def arrived(client: paho.Client, device: int, _message: paho.MQTTMessage) -> None:
        seen[device] += 1
        if seen[device] % WINDOW_BLOCKS == 0:
            ask(client, device)

    def subscribed(*_: object) -> None:
        ready[0] += 1

    clients = [_bare_client(url, device) for device in range(devices)]
    for device, client in enumerate(clients):
        client.on_message, client.on_subscribe = arrived, subscribed
        client.subscribe(f"{TOPIC}/{device}")
        connection = client.socket()
        assert connection is not None
        selector.register(connection.fileno(), selectors.EVENT_READ, client)
    _read_until(selector, lambda: ready[0] == devices)
    print("connected", flush=True)
    sys.stdin.readline()
    begun = time.monotonic()
    for device, client in enumerate(clients):
        ask(client, device)
    _read_until(selector, lambda: sum(seen) == devices * blocks)
    arrived_bytes = sum(seen) * BLOCK_BYTES
    print(json.dumps({"wall": time.monotonic() - begun, "arrived": arrived_bytes, "wave_blocks": 0}), flush=True)
    sys.stdin.readline()


def _read_until(selector: selectors.BaseSelector, done: Callable[[], bool]) -> None:
    while not done():
        found = selector.select(BARE_SECONDS)
        if not found:
            raise SystemExit("the broker lost messages of the bare publisher")
        for key, _ in found:
            key.data.loop_read()
            if key.data.want_write():  # what a callback published
                key.data.loop_write()


def _bare_client(url: str, device: int | None = None) -> paho.Client:
    host, _, port = url.removeprefix("mqtt://").partition(":")
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5, userdata=device)
    client.username_pw_set("controller")
    client.max_queued_messages_set(0)
    client.connect(host, int(port))
    return client


async def _fetch_one(fetcher: BlockFetcher, entry: FileEntry, *, waves: bool) -> None:
    missing = set(range(len(entry.blocks)))
    async for index, data in fetcher.blocks(entry.sha256, sorted(missing), entry.blocks if waves else ()):
        if waves or hashlib.sha256(data).hexdigest() == entry.blocks[index]:  # broadcast blocks are already verified
            missing.discard(index)
    if missing:
        raise SystemExit(f"{len(missing)} blocks are missing after the transfer")


def main() -> None:
    """Run the server or the clients."""
    kind, url, *rest = sys.argv[1:]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    if kind == "bare-server":
        serve_bare(url, int(rest[0]), int(rest[1]))
    elif kind == "bare-clients":
        fetch_bare(url, int(rest[0]), int(rest[1]))
    elif kind == "server":
        asyncio.run(serve(url, rest[0], int(rest[1])))
    else:
        entry = msgspec.json.decode(Path(rest[0]).read_bytes(), type=FileEntry)
        asyncio.run(fetch(url, entry, int(rest[1]), waves=rest[2] == "waves", loss=float(rest[3])))


if __name__ == "__main__":
    main()
