"""More than the device can do, over real HTTP with a real model.

The long one runs for 20 s: pytest -m soak tests/edgekit/serving/session/test_overload.py
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from benchmarks.serve_load import pss_mb
from device_agents.inference.service import InferenceService
from edgekit.bundle.manifest import Manifest
from edgekit.protocols import Runtime
from edgekit.runtimes import open_runtime
from edgekit.serving.cloud import CloudModels
from edgekit.serving.http.app import App
from edgekit.serving.http.server import serve
from edgekit.serving.models.options import ModelOptions
from edgekit.serving.oip import codec as oip
from edgekit.tensors import Array, TensorSpec
from edgekit.waiting import within
from tests.simulators.small_models import SURE, onnx_bundle

QUEUE = 4


class Gated:
    """A real runtime that waits after `hold` is called until the test releases it."""

    def __init__(self, inner: Runtime) -> None:
        self._inner = inner
        self.provider = inner.provider
        self.running = threading.Event()
        self._open = threading.Event()
        self._open.set()

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inner.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._inner.outputs

    def hold(self) -> None:
        self._open.clear()
        self.running.clear()

    def let(self) -> None:
        self._open.set()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.running.set()
        if not self._open.is_set():
            assert self._open.wait(120)
        return self._inner.run(inputs)

    def close(self) -> None:
        self._open.set()
        self._inner.close()


class Device:
    """The service of a device with one gated model behind HTTP."""

    def __init__(self, path: Path, gate: Gated, service: InferenceService) -> None:
        self.path, self.gate, self.service = path, gate, service

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a request; returns the status and the whole answer."""
        reader, writer = await asyncio.open_unix_connection(str(self.path))
        writer.write(request)
        answer = await within(20, reader.read())
        writer.close()
        return int(answer.split(b" ", 2)[1]), answer

    async def held(self) -> asyncio.Future[tuple[int, bytes]]:
        """A request that the model is working on."""
        self.gate.hold()
        asked = asyncio.ensure_future(self.ask(infer()))
        assert await asyncio.to_thread(self.gate.running.wait, 10)
        return asked


def infer(**parameters: float) -> bytes:
    sent = oip.encode_request({"x": SURE}, parameters=parameters)
    head = "".join(f"{name}: {value}\r\n" for name, value in sent.headers.items())
    head += f"Connection: close\r\nContent-Length: {len(sent.body)}\r\n"
    return f"POST /v2/models/m/infer HTTP/1.1\r\n{head}\r\n".encode() + sent.body


LIVE = b"GET /v2/health/ready HTTP/1.1\r\nConnection: close\r\n\r\n"


@pytest.fixture
async def device(tmp_path: Path) -> AsyncIterator[Device]:
    manifest, gates = onnx_bundle(tmp_path / "b", name="m", batch=None), []

    def load(manifest: Manifest, folder: Path) -> Gated:
        gates.append(Gated(open_runtime(manifest, folder)))
        return gates[-1]

    async with InferenceService(load=load, options=ModelOptions(queue_limit=QUEUE)) as service:  # type: ignore[arg-type]
        await service.activate("m", manifest, tmp_path / "b")
        async with serve(App(service, max_request_bytes=2**20), socket=tmp_path / "d.sock"):
            yield Device(tmp_path / "d.sock", gates[0], service)
            gates[0].let()


async def test_what_the_queue_cannot_hold_is_refused_at_once_and_the_rest_is_answered(device: Device) -> None:
    """Requests above the limit get 429 with Retry-After at once; every accepted request is answered."""
    first = await device.held()
    taken = [asyncio.ensure_future(device.ask(infer())) for _ in range(QUEUE - 1)]
    for _ in range(2000):
        if device.service.counters()["m"]["requests"] == QUEUE:
            break
        await asyncio.sleep(0.005)
    for _ in range(20):
        status, answer = await device.ask(infer())
        assert status == 429
        assert int(answer.lower().split(b"retry-after: ")[1].split(b"\r\n")[0]) >= 1
    assert not any(one.done() for one in (first, *taken))
    device.gate.let()
    assert [status for status, _ in await asyncio.gather(first, *taken)] == [200] * QUEUE
    assert (await device.ask(infer()))[0] == 200


async def test_health_and_metrics_answer_while_the_model_works(device: Device) -> None:
    """These paths answer at once, however long a run takes."""
    first = await device.held()
    for path in (b"/v2/health/live", b"/v2/health/ready", b"/v2/models/m", b"/metrics", b"/v2/models/m/stats"):
        status, _ = await device.ask(LIVE.replace(b"/v2/health/ready", path))
        assert status == 200, path
    assert not first.done()
    device.gate.let()
    assert (await first)[0] == 200


async def test_a_request_whose_time_is_over_is_told_and_not_run(device: Device) -> None:
    """A request past its deadline leaves the queue and makes room for another."""
    first = await device.held()
    status, answer = await device.ask(infer(edgekit_deadline_ms=50))
    assert status == 429
    assert b"deadline" in answer
    device.gate.let()
    assert (await first)[0] == 200
    runs = device.service.counters()["m"]["runs"]
    assert (await device.ask(infer(edgekit_deadline_ms=20_000)))[0] == 200
    assert device.service.counters()["m"]["runs"] == runs + 1


async def test_the_cloud_tier_keeps_deadlines_too(tmp_path: Path) -> None:
    """The cloud tier reads the same deadline parameter, and refuses the same wrong values."""
    manifest, gates = onnx_bundle(tmp_path / "b", name="m", batch=None), []

    def load(manifest: Manifest, folder: Path) -> Gated:
        gates.append(Gated(open_runtime(manifest, folder)))
        return gates[-1]

    models = await CloudModels.open(["m"], lambda name: (manifest, tmp_path / "b"), threads=1, load=load)  # type: ignore[arg-type]
    async with serve(App(models, max_request_bytes=2**20), socket=tmp_path / "c.sock"):
        tier = Device(tmp_path / "c.sock", gates[0], None)  # type: ignore[arg-type]
        first = await tier.held()
        assert (await tier.ask(infer(edgekit_deadline_ms=50)))[0] == 429
        for wrong in (0, -1, 1e12):
            assert (await tier.ask(infer(edgekit_deadline_ms=wrong)))[0] == 400
        tier.gate.let()
        assert (await first)[0] == 200
    await models.close()


@pytest.mark.soak
async def test_twenty_seconds_of_overload_leave_nothing_behind(tmp_path: Path) -> None:
    """Every request is answered or refused, memory does not grow, and the server works as before afterwards."""
    manifest = onnx_bundle(tmp_path / "b", name="m", batch=None, work=3000)
    statuses: dict[int, int] = {}
    async with InferenceService(options=ModelOptions(queue_limit=QUEUE)) as service:
        await service.activate("m", manifest, tmp_path / "b")
        async with serve(App(service, max_request_bytes=2**20), socket=tmp_path / "d.sock"):
            device = Device(tmp_path / "d.sock", None, service)  # type: ignore[arg-type]

            async def client(end: float) -> None:
                while time.monotonic() < end:
                    status, _ = await device.ask(infer(edgekit_deadline_ms=200))
                    statuses[status] = statuses.get(status, 0) + 1

            await asyncio.gather(*(client(time.monotonic() + 4) for _ in range(6 * QUEUE)))
            before = pss_mb(os.getpid())
            await asyncio.gather(*(client(time.monotonic() + 20) for _ in range(6 * QUEUE)))
            assert pss_mb(os.getpid()) < before * 1.05
            assert set(statuses) == {200, 429}
            assert (await device.ask(infer()))[0] == 200
    assert np.all(np.array(list(statuses.values())) > 100)
