"""The cloud client over real connections: a real cloud tier, and servers that misbehave."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import numpy as np
import pytest
import urllib3

from device_agents.inference.cloud_client import CloudClient
from device_agents.inference.options import ServiceOptions
from device_agents.inference.routing_rules import CloudRefusedError
from device_agents.inference.service import InferenceService
from edgekit.errors import CloudError
from edgekit.serving.cloud import CloudModels
from edgekit.serving.http.app import App
from edgekit.serving.http.server import serve
from edgekit.serving.oip import codec as oip
from tests.simulators.small_models import SURE, UNSURE, onnx_bundle, softmax

KEY = "a-key-of-the-test"


@asynccontextmanager
async def cloud_tier(folder: Path, *, address: str = "127.0.0.1:0", key: str = KEY) -> AsyncIterator[str]:
    """A real cloud tier with the model ``big`` (tag 99); its URL."""
    bundle = onnx_bundle(folder, name="big", batch=None, gain=10.0, tag=99.0)
    models = await CloudModels.open(["big"], lambda name: (bundle, folder), threads=1)
    async with serve(App(models, max_request_bytes=2**20, api_key=key), http=address) as bound:
        yield bound.url
    await models.close()


@contextmanager
def client(url: str, *, model: str = "big", key: str = KEY) -> Iterator[CloudClient]:
    made = CloudClient(url, model=model, api_key=key)
    yield made
    made.close()


async def test_a_real_cloud_tier_answers(tmp_path: Path) -> None:
    """The configured model name is asked with the key, and binary tensors come back."""
    async with cloud_tier(tmp_path) as url:
        with client(url + "/") as cloud:
            for _ in range(3):
                found = await cloud.infer("small", {"x": UNSURE}, timeout_seconds=5)
                np.testing.assert_allclose(found["scores"], softmax(UNSURE, 10.0), atol=1e-6)


async def test_what_the_tier_refuses_is_told_apart_from_its_absence(tmp_path: Path) -> None:
    """A wrong key, model or input is a refusal with the tier's own words; nobody there is not."""
    async with cloud_tier(tmp_path) as url:
        for model, key, inputs, says in (
            ("big", "wrong", {"x": SURE}, "401: the API key is missing or wrong"),
            ("huge", KEY, {"x": SURE}, "404: there is no model 'huge'"),
            ("big", KEY, {"x": SURE.astype(np.float64)}, "400: x: dtype is float64, expected float32"),
        ):
            with client(url, model=model, key=key) as cloud, pytest.raises(CloudRefusedError, match=says):
                await cloud.infer("small", inputs, timeout_seconds=5)
    with client(url) as cloud, pytest.raises(CloudError, match="cannot be reached") as caught:
        await cloud.infer("small", {"x": SURE}, timeout_seconds=5)
    assert not isinstance(caught.value, CloudRefusedError)


@contextmanager
def misbehaving(act: Callable[[socket.socket, threading.Event], None]) -> Iterator[str]:
    """A TCP server that reads one request and then does `act`; its URL."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                try:
                    act(connection, stop)
                except OSError:
                    return  # the client has left, as it should

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stop.set()
            thread.join(60)


def answering(data: bytes) -> Callable[[socket.socket, threading.Event], None]:
    def act(connection: socket.socket, stop: threading.Event) -> None:
        connection.sendall(data)

    return act


def never(connection: socket.socket, stop: threading.Event) -> None:
    stop.wait(60)


def dripping(connection: socket.socket, stop: threading.Event) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while not stop.wait(0.02):
        connection.sendall(b"x")


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (never, "did not answer|cannot be reached"),
        (dripping, "did not answer|too slowly|cannot be reached"),
        (answering(b""), "cannot be reached"),
        (answering(b"SSH-2.0-nonsense\r\n\r\n"), "cannot be reached"),
        (answering(b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops"), "answered 500: b'oops'"),
        (answering(b"HTTP/1.1 503 Away\r\nContent-Length: 16\r\n\r\n" + b'{"error": "not"}'), "answered 503: not"),
        (answering(b"HTTP/1.1 302 Moved\r\nLocation: http://x/\r\nContent-Length: 0\r\n\r\n"), "answered 302"),
        (answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"), "cannot be used"),
        (answering(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{}"), "cannot be reached"),
        (answering(f"HTTP/1.1 200 OK\r\n{oip.HEADER}: 99\r\nContent-Length: 2\r\n\r\n{{}}".encode()), "cannot be used"),
    ],
)
async def test_a_misbehaving_server_is_a_cloud_error_in_time(
    act: Callable[[socket.socket, threading.Event], None], says: str
) -> None:
    """Silence, dripping, nonsense, lies and failures all end as CloudError; none hangs."""
    with misbehaving(act) as url, client(url) as cloud, pytest.raises(CloudError, match=says) as caught:
        await cloud.infer("small", {"x": SURE}, timeout_seconds=1.5)
    assert not isinstance(caught.value, CloudRefusedError)


class HeldClock:
    """Clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return 0.0


async def test_fallback_survives_the_cloud_tiers_stop_and_resumes_after_its_return(tmp_path: Path) -> None:
    """Over real HTTP on both sides: cloud, then degraded without a lost answer, then cloud again by itself."""
    manifest = onnx_bundle(tmp_path / "small", tag=1.0)
    clock = HeldClock()
    pool = urllib3.PoolManager(retries=False, timeout=10)
    request = oip.encode_request({"x": UNSURE})

    def ask(url: str) -> tuple[str, float]:
        reply = pool.request("POST", f"{url}/v2/models/small/infer", body=request.body, headers=request.headers)
        assert reply.status == 200, reply.data
        found = oip.parse_response(reply.data, oip.header_length(reply.headers[oip.HEADER]))
        return found.parameters["edgekit_route"], float(found.outputs["tag"][0, 0])

    async with cloud_tier(tmp_path / "big") as url:
        pass  # a free port that is known
    with client(url) as cloud:
        async with (
            InferenceService(cloud=cloud, clock=clock, service=ServiceOptions(cloud_timeout_seconds=5.0)) as service,
            serve(App(service, max_request_bytes=2**20), http="127.0.0.1:0") as device,
        ):
            await service.activate("small", manifest, tmp_path / "small")
            address = url.removeprefix("http://")
            async with cloud_tier(tmp_path / "big", address=address):
                assert await asyncio.to_thread(ask, device.url) == ("cloud", 99.0)
            for _ in range(5):
                assert await asyncio.to_thread(ask, device.url) == ("degraded", 1.0)
            async with cloud_tier(tmp_path / "big", address=address):
                clock.now += 1.0
                assert await asyncio.to_thread(ask, device.url) == ("cloud", 99.0)
    pool.clear()
