"""The processes of the update benchmark: `python -m benchmarks.update_parts server|clients ...`.

The server is the block service of a controller. The clients are the block fetchers of N devices in one process; they
hash every block and store none.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import resource
import sys
import time
from pathlib import Path

import msgspec

from device_agents.control.requests import RequestClient
from device_agents.download.block_fetcher import BlockFetcher
from edgekit.bundle.manifest import FileEntry
from edgekit.clock import SystemClock
from edgekit.controller.blocks import BlockService
from edgekit.mqtt.transport import MqttTransport
from edgekit.protocols import Handler, Message
from edgekit.storage.stores import open_store

FLEET = "bench"
CONNECT_AT_ONCE = 50


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
    if kind == "server":
        asyncio.run(serve(url, rest[0], int(rest[1])))
    else:
        entry = msgspec.json.decode(Path(rest[0]).read_bytes(), type=FileEntry)
        asyncio.run(fetch(url, entry, int(rest[1]), waves=rest[2] == "waves", loss=float(rest[3])))


if __name__ == "__main__":
    main()
