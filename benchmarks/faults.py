"""Faults of the cloud tier, seen from devices: local answers in time, the load on the tier, recovery, goodput.

The tier is a process of its own, and a front before it fails: refused connections, silence, 10 s of delay, errors,
wrong answers, forgotten connections. A device's inference service sends it each of its answers (`fallback_threshold =
"all"`), with a deadline. 1,000 devices are calls of `Fallback`, each with a client, a breaker and a budget of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import logging
import random
import resource
import ssl
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.cloud_tier import running_tier
from benchmarks.faults_front import MODES, Front
from benchmarks.results import Figure, publish
from device_agents.inference.cloud.answer_rules import Expected
from device_agents.inference.cloud.budget_rules import Budget
from device_agents.inference.cloud.budgets import Budgets
from device_agents.inference.cloud.endpoints import CloudEndpoint, CloudEndpoints
from device_agents.inference.cloud.retry_budget import RetryBudget
from device_agents.inference.cloud_client import CloudClient
from device_agents.inference.fallback import Fallback
from device_agents.inference.options import CloudOptions, ServiceOptions
from device_agents.inference.request import Outgoing
from device_agents.inference.service import InferenceService
from edgekit.bundle.manifest import Manifest
from edgekit.clock import SystemClock
from edgekit.errors import CloudError
from edgekit.tensors import Array
from tests.simulators.small_models import UNSURE, onnx_bundle, softmax

MODEL, DEADLINE_MS, RATE = "small", 400.0, 20.0
BEFORE, FAULT, AFTER = 3.0, 9.0, 3.0  # seconds of one trace
DEVICES, INTERVAL = 1000, 40.0  # seconds between two requests of one device, in the mean
STEADY, OUTAGE, RECOVERY, WINDOW = 20.0, 20.0, 20.0, 5.0
MANY, OVERLOAD, RUN_SECONDS, LOADED = 64, 3.0, 0.1, 12.0
PAUSE_SECONDS = 0.02
LOAD_REACH, WINDOW_REACH, GOODPUT_REACH = 1.1, 1.5, 0.9
LOCAL = {"scores": softmax(UNSURE), "tag": np.zeros((1, 1), np.float32)}


class Trace(NamedTuple):
    """What a device saw: seconds of each answer, errors, and answers of the cloud tier; and the tier's load."""

    seconds: list[float]
    errors: int
    cloud: int
    load: int


async def trace(
    bundle: tuple[Manifest, Path], url: str, load: Callable[[], int], turn: Callable[[float], object]
) -> Trace:
    """Send RATE requests a second for the whole trace; `turn` is told the time of each, and changes the fault."""
    retries, before = RetryBudget(), load()
    tls = ssl.create_default_context() if url.startswith("https") else None  # as the agent does when it starts
    client = CloudClient(url, tls=tls, may_retry=retries.take)
    endpoints = CloudEndpoints((CloudEndpoint("", client),), retries=retries)
    spent, routes, errors, tasks = list[float](), list[str](), 0, list[asyncio.Task[None]]()
    options = ServiceOptions(fallback_threshold="all")
    async with InferenceService(cloud=endpoints, service=options) as service:
        await service.activate(MODEL, *bundle)

        async def one() -> None:
            nonlocal errors
            begun = time.monotonic()
            try:
                answer = await service.infer(MODEL, {"x": UNSURE}, deadline_ms=DEADLINE_MS)
            except Exception:
                errors += 1
                return
            spent.append(time.monotonic() - begun)
            routes.append(answer.parameters["edgekit_route"])

        begun = time.monotonic()
        for number in range(int((BEFORE + FAULT + AFTER) * RATE)):
            await asyncio.sleep(max(begun + number / RATE - time.monotonic(), 0.0))
            made = turn(number / RATE)
            if asyncio.iscoroutine(made):
                await made
            tasks.append(asyncio.ensure_future(one()))
        await asyncio.gather(*tasks)
    client.close()
    return Trace(spent, errors, routes.count("cloud"), load() - before)


async def one_fault(bundle: tuple[Manifest, Path], front: Front, mode: str) -> Trace:
    """A trace through the front, which is in `mode` for FAULT seconds."""

    async def turn(at: float) -> None:
        wanted = mode if BEFORE <= at < BEFORE + FAULT else "healthy"
        if front.mode != wanted:
            await front.set_mode(wanted)

    return await trace(bundle, front.url, lambda: len(front.arrivals), turn)


async def expired(bundle: tuple[Manifest, Path], folder: Path) -> Trace:
    """A trace against a TLS server whose certificate has expired; its load is that of handshakes."""
    context, hellos = _expired_context(folder), [0]

    def hello(*_: object) -> None:
        hellos[0] += 1

    context.sni_callback = hello
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=context)
    async with server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return await trace(bundle, url, lambda: hellos[0], lambda at: None)


def _expired_context(folder: Path) -> ssl.SSLContext:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    end = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, end - datetime.timedelta(days=9), end)
    signed = made.add_extension(address, critical=True).sign(key, hashes.SHA256())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "tier.pem").write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tier.pem")
    return context


class Device:
    """One simulated device: a client, breakers and a budget of retries."""

    def __init__(self, url: str, timeout: float) -> None:
        clock, retries = SystemClock(), RetryBudget()
        self.client = CloudClient(url, may_retry=retries.take)
        endpoints = CloudEndpoints((CloudEndpoint("", self.client),), retries=retries)
        budgets = Budgets(Budget(), lambda _: Budget(), clock, None)
        self._fallback = Fallback(endpoints, clock, timeout, lambda _: CloudOptions(), random.random, budgets)

    async def ask(self, left: float | None) -> bool:
        """True where the tier answered in time."""
        expected = Expected(local=LOCAL, wanted=("scores",))
        with contextlib.suppress(CloudError):
            await self._fallback.ask(MODEL, Outgoing({"x": UNSURE}), left_seconds=left, expected=expected)
            return True
        return False


async def recovery(front: Front) -> list[Figure]:
    """DEVICES devices before, in and after an outage; the tier's busiest window after it, against the steady rate."""
    devices, rng = [Device(front.url, 2.0) for _ in range(DEVICES)], random.Random(5)
    answered, turns = list[tuple[float, bool]](), list[float]()

    async def live(device: Device) -> None:
        while True:
            await asyncio.sleep(rng.expovariate(1 / INTERVAL))
            begun = time.monotonic()
            answered.append((begun, await device.ask(DEADLINE_MS / 1000)))

    async def fail() -> None:
        for mode, seconds in (("healthy", STEADY), ("down", OUTAGE), ("healthy", RECOVERY)):
            await front.set_mode(mode)
            turns.append(time.monotonic())
            await asyncio.sleep(seconds)
        turns.append(time.monotonic())

    tasks = [asyncio.ensure_future(live(device)) for device in devices]
    await fail()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for device in devices:
        device.client.close()
    begun, down, up, end = turns
    at = np.array(front.arrivals)
    steady = float(np.sum((at >= begun) & (at < down))) / (down - begun)
    starts = np.arange(up, end - WINDOW, 0.5)
    busiest = max(float(np.sum((at >= start) & (at < start + WINDOW))) / WINDOW for start in starts)
    late = [good for one, good in answered if (up + end) / 2 <= one < end]
    note = f"{DEVICES} devices, {steady:.0f} requests a second, {down - begun:.0f} s steady, {up - down:.0f} s outage"
    return [
        Figure("busiest 5 s after the outage", busiest / steady, "times the steady rate", WINDOW_REACH, note=note),
        Figure("answered in the second half of the recovery", sum(late) / max(len(late), 1), "share of requests"),
    ]


async def _capacity(few: list[Device]) -> float:
    """Answers a second in a closed loop of few devices."""
    begun, done = time.monotonic(), [0]

    async def closed(device: Device) -> None:
        while time.monotonic() - begun < LOADED / 2:
            answered = await device.ask(None)  # not `done += await ...`: other devices count meanwhile
            done[0] += answered
            if not answered:
                await asyncio.sleep(PAUSE_SECONDS)  # a call that the device itself refuses takes no time

    await asyncio.gather(*map(closed, few))
    return done[0] / (time.monotonic() - begun)


async def goodput(url: str) -> Figure:
    """MANY devices offer OVERLOAD times the capacity; answers a second against the capacity, before and after."""
    few = [Device(url, 2.0) for _ in range(3)]
    capacity = await _capacity(few)
    many, rng, good = [Device(url, 1.0) for _ in range(MANY)], random.Random(6), [0]
    begun = time.monotonic()

    async def offered(device: Device) -> None:
        tasks = set()
        while time.monotonic() - begun < LOADED:
            await asyncio.sleep(rng.expovariate(OVERLOAD * capacity / MANY))
            task = asyncio.ensure_future(count(device))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)

    async def count(device: Device) -> None:
        answered = await device.ask(1.0)
        good[0] += answered and time.monotonic() - begun < LOADED

    await asyncio.gather(*map(offered, many))
    after = await _capacity(few)
    for device in (*few, *many):
        device.client.close()
    note = f"{MANY} devices, capacity {capacity:.1f} answers a second, {after:.1f} after it"
    value = good[0] / LOADED / ((capacity + after) / 2)
    return Figure(
        f"goodput at {OVERLOAD:g} times the capacity", value, "capacity", GOODPUT_REACH, at_most=False, note=note
    )


def _fault_figures(traces: dict[str, Trace]) -> list[Figure]:
    plain, figures = traces["healthy"], []
    for name, one in traces.items():
        total = len(one.seconds) + one.errors
        late = sum(spent > DEADLINE_MS / 1000 for spent in one.seconds) + one.errors
        note = f"of {total} requests, deadline {DEADLINE_MS:g} ms; the tier answered {one.cloud}"
        figures.append(Figure(f"{name}: late or failed answers", late, "requests", 0, note=note))
        p99 = 1000 * float(np.quantile(one.seconds, 0.99))
        figures.append(Figure(f"{name}: p99 of an answer", p99, "ms"))
        if name != "healthy":
            ratio = one.load / plain.load
            figures.append(Figure(f"{name}: load on the tier", ratio, "of the load without faults", LOAD_REACH))
    return figures


async def measure(folder: Path) -> list[Figure]:
    """Every fault in turn, then recovery and overload."""
    bundle = (onnx_bundle(folder / MODEL, name=MODEL), folder / MODEL)
    there = onnx_bundle(folder / "tier", name=MODEL, gain=10.0, tag=99.0)
    answer: dict[str, Array] = {"scores": softmax(UNSURE, 10.0), "tag": np.full((1, 1), 99.0, np.float32)}
    assert there.name == MODEL
    traces = {}
    with running_tier(folder / "tier", MODEL) as url:
        front = Front(url, answer)
        await front.set_mode("healthy")
        for mode in MODES:
            traces[mode] = await one_fault(bundle, front, mode)
            await front.set_mode("healthy")
        traces["expired certificate"] = await expired(bundle, folder)
        traces["DNS gone"] = await trace(bundle, "http://tier.invalid", lambda: 0, lambda at: None)
        await front.close()
        front = Front(url, answer)
        await front.set_mode("healthy")
        recovered = await recovery(front)
        await front.close()
    with running_tier(folder / "tier", MODEL, seconds=RUN_SECONDS) as url:
        good = await goodput(url)
    return [*_fault_figures(traces), *recovered, good]


def main() -> None:
    """Measure and publish."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 16_384), most))  # three sockets for each device
    logging.disable(logging.WARNING)  # thousands of devices would each log their failures
    with tempfile.TemporaryDirectory() as work:
        publish("faults", asyncio.run(measure(Path(work))))


if __name__ == "__main__":
    main()
