"""Overload: three times the capacity for a minute, over HTTP, against the agent's endpoint.

Clients are open: each asks at its time, whatever became of the ones before, on a connection that is free. Capacity is
what a closed loop gets just before. The model is slow enough that the server, and not the client, is the limit.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

from benchmarks.results import Figure
from benchmarks.serve_load import process, pss_mb, wire
from device_agents.inference import InferenceService
from edgekit.serving import oip
from edgekit.serving.app import App
from edgekit.serving.options import ModelOptions
from edgekit.serving.server import serve
from tests.simulators.small_models import onnx_bundle

SECONDS = float(os.environ.get("EDGEKIT_OVERLOAD_SECONDS", "60"))
FACTOR = 3
WORK = 3000  # matrix products of the model, some milliseconds
CLIENTS = 48
QUEUE = 16


async def run_server(folder: Path) -> None:
    """The device's endpoint with a model of some milliseconds; prints its port."""
    manifest = onnx_bundle(folder / "slow", name="m", work=WORK)
    async with InferenceService(options=ModelOptions(queue_limit=QUEUE)) as service:
        await service.activate("m", manifest, folder / "slow")
        async with serve(App(service, max_request_bytes=2**20), http="127.0.0.1:0") as bound:
            print(bound.url.rpartition(":")[2], flush=True)
            await asyncio.Event().wait()


class Client:
    """One connection after the other; `ask` gives the status."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> int:
        """Ask and read the whole answer."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.partition(b":")[2]))
        return int(head.split(b" ", 2)[1])

    def close(self) -> None:
        """Hang up."""
        if self._streams is not None:
            self._streams[1].close()


async def closed(port: int, request: bytes, seconds: float) -> float:
    """Answers a second when as many clients as the queue holds ask as fast as they are answered."""
    clients, done = [Client(port) for _ in range(QUEUE)], 0
    end = time.monotonic() + seconds

    async def loop(client: Client) -> None:
        nonlocal done
        while time.monotonic() < end:
            done += await client.ask(request) == 200

    await asyncio.gather(*map(loop, clients))
    for client in clients:
        client.close()
    return done / seconds


async def overload(port: int, request: bytes, rate: float, seconds: float) -> tuple[Counter[int], list[float]]:
    """Statuses of `rate` requests a second, and the seconds that health took meanwhile."""
    free: asyncio.LifoQueue[Client] = asyncio.LifoQueue()
    clients = [Client(port) for _ in range(CLIENTS)]
    for client in clients:
        free.put_nowait(client)
    statuses: Counter[int] = Counter()
    health: list[float] = []
    asked = []

    async def one() -> None:
        client = await free.get()
        statuses[await client.ask(request)] += 1
        free.put_nowait(client)

    async def watch() -> None:
        client = Client(port)
        while True:
            begun = time.monotonic()
            await client.ask(b"GET /v2/health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n")
            health.append(time.monotonic() - begun)
            await asyncio.sleep(0.1)

    watching = asyncio.ensure_future(watch())
    begun = time.monotonic()
    while (spent := time.monotonic() - begun) < seconds:
        due = int(spent * rate) - len(asked)
        if free.qsize() or len(asked) - sum(statuses.values()) < 10 * CLIENTS:
            asked += [asyncio.ensure_future(one()) for _ in range(due)]
        await asyncio.sleep(0.002)
    await asyncio.gather(*asked)
    watching.cancel()
    for client in clients:
        client.close()
    return statuses, health


async def recovery(port: int, request: bytes, capacity: float) -> float:
    """Seconds until a request takes no more than four times what one takes alone."""
    client, begun = Client(port), time.monotonic()
    while True:
        asked = time.monotonic()
        status = await client.ask(request)
        if status == 200 and time.monotonic() - asked < 4 / capacity + 0.02:
            client.close()
            return asked - begun
        await asyncio.sleep(0.02)


def measure(folder: Path) -> list[Figure]:
    """The figures of overload."""
    body, length = oip.encode_request({"x": np.ones((1, 3), np.float32)})
    request = wire("/v2/models/m/infer", body, oip.Encoded(body, length).headers)
    with process([sys.executable, "-m", "benchmarks.serve_overload", str(folder)]) as own:
        assert own.stdout is not None
        port = int(own.stdout.readline())

        async def run() -> tuple[float, Counter[int], list[float], float, float, float]:
            await closed(port, request, 1)
            capacity = max([await closed(port, request, 2) for _ in range(4)])  # noise can only take from it
            before = pss_mb(own.pid)
            statuses, health = await overload(port, request, FACTOR * capacity, SECONDS)
            recovered = await recovery(port, request, capacity)
            return capacity, statuses, health, recovered, before, pss_mb(own.pid)

        capacity, statuses, health, recovered, before, after = asyncio.run(run())
    said = ", ".join(f"{status}: {count}" for status, count in sorted(statuses.items()))
    how = f"{FACTOR} times {capacity:.0f} requests/s for {SECONDS:.0f} s; {said}; client on the same two cores"
    return [
        Figure(
            "overload: answers of capacity", statuses[200] / SECONDS / capacity * 100, "%", 90, at_most=False, note=how
        ),
        Figure(
            "overload: answers that are neither 200 nor 429", statuses.total() - statuses[200] - statuses[429], "", 0
        ),
        Figure("overload: memory after, of before", after / before * 100, "%", 105),
        Figure("overload: recovery", recovered, "s", 2),
        Figure("overload: slowest of health", max(health) * 1000, "ms"),
    ]


if __name__ == "__main__":
    asyncio.run(run_server(Path(sys.argv[1])))
