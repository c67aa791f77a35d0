"""Overload of the agent's HTTP endpoint: three times its capacity for a minute.

The load is an open loop: each request is sent at its time on a free connection, whether or not earlier requests have
been answered. The capacity is the rate of a closed loop just before. The model is slow enough that the server, not the
client, is the limit.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.results import Figure
from benchmarks.serve_load import cpu_ns, process, pss_mb, wire
from device_agents.inference.service import InferenceService
from edgekit.serving.http.app import App
from edgekit.serving.http.server import serve
from edgekit.serving.models.options import ModelOptions
from edgekit.serving.oip import codec as oip
from tests.simulators.small_models import onnx_bundle

SECONDS = float(os.environ.get("EDGEKIT_OVERLOAD_SECONDS", "60"))
ROUNDS = 6
CLOSED_SECONDS = 2.0
FACTOR = 3
WORK = 15_000  # matrix products of the model, some milliseconds: inference, not refusals, must load the cores
CLIENTS = 48
QUEUE = 16


async def run_server(folder: Path) -> None:
    """Run the agent's endpoint with a model that takes some milliseconds; prints its port."""
    manifest = onnx_bundle(folder / "slow", name="m", work=WORK)
    async with InferenceService(options=ModelOptions(queue_limit=QUEUE)) as service:
        await service.activate("m", manifest, folder / "slow")
        async with serve(App(service, max_request_bytes=2**20), http="127.0.0.1:0") as bound:
            print(bound.url.rpartition(":")[2], flush=True)
            await asyncio.Event().wait()


class Client:
    """One HTTP client with one connection."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> int:
        """Send a request and read the whole answer. Returns the status."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.partition(b":")[2]))
        return int(head.split(b" ", 2)[1])

    def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].close()


async def closed(port: int, request: bytes, seconds: float) -> float:
    """Answers per second of a closed loop: QUEUE clients, each sending a request after each answer."""
    clients, done = [Client(port) for _ in range(QUEUE)], 0
    end = time.monotonic() + seconds

    async def loop(client: Client) -> None:
        nonlocal done
        while time.monotonic() < end:
            answered = await client.ask(request) == 200  # not `done += await ...`: other clients count meanwhile
            done += answered

    await asyncio.gather(*map(loop, clients))
    for client in clients:
        client.close()
    return done / seconds


async def overload(port: int, request: bytes, rate: float, seconds: float) -> tuple[Counter[int], list[float]]:
    """Send `rate` requests per second. Returns the counts of statuses, and the seconds of each health request."""
    free: asyncio.LifoQueue[Client] = asyncio.LifoQueue()
    clients = [Client(port) for _ in range(CLIENTS)]
    for client in clients:
        free.put_nowait(client)
    statuses: Counter[int] = Counter()
    health: list[float] = []
    sent: list[asyncio.Future[None]] = []

    async def one() -> None:
        client = await free.get()
        status = await client.ask(request)
        statuses[status] += 1
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
        due = int(spent * rate) - len(sent)
        if free.qsize() or len(sent) - sum(statuses.values()) < 10 * CLIENTS:
            sent += [asyncio.ensure_future(one()) for _ in range(due)]
        await asyncio.sleep(0.002)
    await asyncio.gather(*sent)
    watching.cancel()
    for client in clients:
        client.close()
    return statuses, health


async def recovery(port: int, request: bytes, capacity: float) -> float:
    """Seconds until a request takes no more than four times the time of a request without other load."""
    client, begun = Client(port), time.monotonic()
    while True:
        sent = time.monotonic()
        status = await client.ask(request)
        if status == 200 and time.monotonic() - sent < 4 / capacity + 0.02:
            client.close()
            return sent - begun
        await asyncio.sleep(0.02)


class Round(NamedTuple):
    """Results of one period at capacity and one period of overload.

    Attributes:
        capacity, goodput: Successful answers per second, at capacity and under overload.
        at_capacity, over: Successful answers per CPU second of the server, at capacity and under overload.
        statuses: Counts of HTTP statuses under overload.
        health: Seconds of each health request under overload.
        recovered: Seconds from the end of the overload to the first request of normal duration.
    """

    capacity: float
    goodput: float
    at_capacity: float
    over: float
    statuses: Counter[int]
    health: list[float]
    recovered: float


async def one_round(port: int, pid: int, request: bytes, seconds: float) -> Round:
    """Measure one period at capacity, one of overload, and the recovery."""
    before = cpu_ns(pid)
    capacity = await closed(port, request, CLOSED_SECONDS)
    at_capacity = capacity * CLOSED_SECONDS / (cpu_ns(pid) - before) * 1e9
    before = cpu_ns(pid)
    statuses, health = await overload(port, request, FACTOR * capacity, seconds)
    over = statuses[200] / (cpu_ns(pid) - before) * 1e9
    recovered = await recovery(port, request, capacity)
    return Round(capacity, statuses[200] / seconds, at_capacity, over, statuses, health, recovered)


def measure(folder: Path) -> list[Figure]:
    """Figures of overload: medians over the rounds, because other load on the machine varies."""
    body, length = oip.encode_request({"x": np.ones((1, 3), np.float32)})
    request = wire("/v2/models/m/infer", body, oip.Encoded(body, length).headers)
    with process([sys.executable, "-m", "benchmarks.serve_overload", str(folder)]) as own:
        assert own.stdout is not None
        port = int(own.stdout.readline())

        async def run() -> tuple[list[Round], float]:
            rounds = [await one_round(port, own.pid, request, SECONDS / ROUNDS)]
            before = pss_mb(own.pid)  # after warm-up
            for _ in range(ROUNDS - 1):
                rounds.append(await one_round(port, own.pid, request, SECONDS / ROUNDS))
            return rounds, before

        rounds, before = asyncio.run(run())
        after = pss_mb(own.pid)
    statuses = sum((one.statuses for one in rounds), Counter[int]())
    counts = ", ".join(f"{status}: {count}" for status, count in sorted(statuses.items()))
    capacity = statistics.median(one.capacity for one in rounds)
    how = f"{FACTOR} times {capacity:.0f}/s for {SECONDS:.0f} s in {ROUNDS} rounds; {counts}; client on the same cores"
    goodput = statistics.median(one.goodput / one.capacity for one in rounds) * 100
    work = statistics.median(one.over / one.at_capacity for one in rounds) * 100
    others = sum(statuses.values()) - statuses[200] - statuses[429]
    return [
        Figure("overload: answers of capacity", goodput, "%", 90, at_most=False, note=how),
        Figure("overload: answers for the server's CPU, of those at capacity", work, "%", at_most=False),
        Figure("overload: answers that are neither 200 nor 429", others, "", 0),
        Figure("overload: memory after, of before", after / before * 100, "%", 105, note="after the first round"),
        Figure("overload: recovery, longest", max(one.recovered for one in rounds), "s", 2),
        Figure("overload: health, longest", max(max(one.health) for one in rounds) * 1000, "ms"),
    ]


if __name__ == "__main__":
    asyncio.run(run_server(Path(sys.argv[1])))
