"""A slow cloud tier and more devices than it can serve: it keeps answering, because no run is wasted."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from device_agents.inference.cloud_client import CloudClient
from device_agents.inference.options import ServiceOptions
from device_agents.inference.service import InferenceService
from edgekit.bundle.manifest import Manifest
from edgekit.errors import CloudError
from edgekit.protocols import Runtime
from edgekit.runtimes import open_runtime
from edgekit.serving.cloud import CloudModels
from edgekit.serving.http.app import App
from edgekit.serving.http.server import serve
from edgekit.serving.oip import codec as oip
from edgekit.tensors import Array
from tests.simulators.small_models import UNSURE, onnx_bundle, softmax

RUN_SECONDS, TIMEOUT_SECONDS = 0.1, 1.0


class Slow:
    """A real runtime that takes its time, and counts its runs."""

    def __init__(self, inner: Runtime) -> None:
        self._inner = inner
        self.inputs, self.outputs, self.provider = inner.inputs, inner.outputs, inner.provider
        self.runs = 0
        self.hold = threading.Event()
        self.hold.set()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.runs += 1
        time.sleep(RUN_SECONDS)
        assert self.hold.wait(20)
        return self._inner.run(inputs)

    def close(self) -> None:
        self._inner.close()


@contextlib.asynccontextmanager
async def slow_tier(folder: Path) -> AsyncIterator[tuple[str, Slow]]:
    made: list[Slow] = []

    def load(manifest: Manifest, folder: Path) -> Slow:
        made.append(Slow(open_runtime(manifest, folder)))
        return made[-1]

    bundle = onnx_bundle(folder, name="small", gain=10.0, tag=99.0)
    models = await CloudModels.open(["small"], lambda name: (bundle, folder), threads=1, load=load)
    try:
        async with serve(App(models, max_request_bytes=2**20), http="127.0.0.1:0") as bound:
            yield bound.url, made[0]
    finally:
        made[0].hold.set()
        await models.close()


async def cloud_answers(url: str, tmp_path: Path, manifest: Manifest, devices: int, seconds: float) -> int:
    """The number of answers that `devices` get from the cloud tier in `seconds`; each asks again at once."""
    service = ServiceOptions(cloud_timeout_seconds=TIMEOUT_SECONDS, fallback_threshold="all")
    async with contextlib.AsyncExitStack() as stack:
        made = []
        for _ in range(devices):
            client = CloudClient(url)
            stack.callback(client.close)
            made.append(await stack.enter_async_context(InferenceService(cloud=client, service=service)))
            await made[-1].activate("small", manifest, tmp_path, compare=False)
        end = time.monotonic() + seconds

        async def ask(device: InferenceService) -> int:
            got = 0
            while time.monotonic() < end:
                found = await device.infer("small", {"x": UNSURE})
                got += found.parameters["edgekit_route"] == "cloud"
                await asyncio.sleep(0.1)
            return got

        return sum(await asyncio.gather(*map(ask, made)))


@pytest.mark.parametrize("devices", [16, pytest.param(64, marks=pytest.mark.soak)])
async def test_many_devices_get_as_many_answers_as_few(tmp_path: Path, devices: int) -> None:
    """Refusals come at once, late requests are not run, so at least 90 % of what three devices get is left."""
    manifest = onnx_bundle(tmp_path / "device", name="small")
    async with slow_tier(tmp_path / "tier") as (url, _):
        few = await cloud_answers(url, tmp_path / "device", manifest, 3, 3.0)
    async with slow_tier(tmp_path / "tier") as (url, _):
        many = await cloud_answers(url, tmp_path / "device", manifest, devices, 3.0)
    assert many >= 0.9 * few


async def test_the_deadline_travels_and_nothing_is_run_for_a_device_that_has_gone(tmp_path: Path) -> None:
    """While one run takes long, two requests wait: one times out, and one is cancelled. Neither is ever run."""
    async with slow_tier(tmp_path) as (url, runtime):
        runs = runtime.runs
        runtime.hold.clear()
        patient, hasty, cancelled = (CloudClient(url) for _ in range(3))
        first = asyncio.ensure_future(patient.infer("small", {"x": UNSURE}, timeout_seconds=15))
        while runtime.runs == runs:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        with pytest.raises(CloudError):  # the tier refuses it just before the device gives up
            await hasty.infer("small", {"x": UNSURE}, timeout_seconds=0.3)
        gone = asyncio.ensure_future(cancelled.infer("small", {"x": UNSURE}, timeout_seconds=15))
        await asyncio.sleep(0.2)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        await asyncio.sleep(0.2)
        runtime.hold.set()
        np.testing.assert_allclose((await first).outputs["scores"], softmax(UNSURE, 10.0), atol=1e-6)
        assert (await patient.infer("small", {"x": UNSURE}, timeout_seconds=15)).version == "1.0.0"
        assert runtime.runs == runs + 2
        for client in (patient, hasty, cancelled):
            client.close()


async def test_a_client_that_closed_its_socket_is_noticed_too(tmp_path: Path) -> None:
    """Other clients close without a reset, which looks like the end of a request; the server asks, and cancels."""
    async with slow_tier(tmp_path) as (url, runtime):
        runs = runtime.runs
        runtime.hold.clear()
        host, _, port = url.removeprefix("http://").rpartition(":")
        encoded = oip.encode_request({"x": UNSURE})
        head = f"POST /v2/models/small/infer HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(encoded.body)}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in encoded.headers.items())
        writers = []
        for _ in range(3):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(head.encode() + b"\r\n" + encoded.body)
            await writer.drain()
            writers.append(writer)
            await asyncio.sleep(0.1)
        for writer in writers[1:]:
            writer.close()
        await asyncio.sleep(1.0)
        runtime.hold.set()
        await asyncio.sleep(0.5)
        assert runtime.runs == runs + 1
        writers[0].close()
