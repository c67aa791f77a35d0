"""A server that stops: not ready first, accepted requests are answered, the rest gets 503, and the socket file goes."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

from device_agents.inference.service import InferenceService
from edgekit.serving.http.app import App
from edgekit.serving.http.limits import Limits
from edgekit.serving.http.server import serve
from tests.simulators.small_models import SURE, onnx_bundle


def request(path: str = "/v2/models/small/infer") -> bytes:
    if path.endswith("ready"):
        return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": SURE[0].tolist()}
    body = json.dumps({"inputs": [tensor]}).encode()
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def ask(socket: Path, path: str = "/v2/models/small/infer") -> tuple[int, bytes]:
    """Status and the whole answer, until the server closes or the first answer is complete."""
    reader, writer = await asyncio.open_unix_connection(str(socket))
    writer.write(request(path))
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
    writer.close()
    return int(head.split()[1]), head


async def stopped(tmp_path: Path, *, drain_seconds: float, runs_seconds: float) -> dict[str, Any]:
    """Stop a server while five requests wait; what they and later ones got."""
    socket = tmp_path / "edgekit.sock"
    found: dict[str, Any] = {}
    async with InferenceService() as service, contextlib.AsyncExitStack() as stack:
        await service.activate("small", onnx_bundle(tmp_path), tmp_path)
        session = service._session("small")
        assert session is not None
        app, limits = App(service, max_request_bytes=2**20), Limits(drain_seconds=drain_seconds)
        serving = await stack.enter_async_context(contextlib.AsyncExitStack())
        await serving.enter_async_context(serve(app, socket=socket, limits=limits))
        assert (await ask(socket, "/v2/health/ready"))[0] == 200
        gate = asyncio.Event()
        loop = asyncio.get_running_loop()
        busy = asyncio.ensure_future(
            session.call(lambda _: asyncio.run_coroutine_threadsafe(gate.wait(), loop).result())
        )
        waiting = [asyncio.ensure_future(ask(socket)) for _ in range(5)]
        await asyncio.sleep(0.2)
        loop.call_later(runs_seconds, gate.set)
        stopping = asyncio.ensure_future(serving.aclose())
        await asyncio.sleep(0.05)
        found["ready"] = await ask(socket, "/v2/health/ready")
        found["new"] = await ask(socket)
        found["waiting"] = await asyncio.gather(*waiting)
        await stopping
        found["socket"] = socket.exists()
        gate.set()
        await busy
    return found


async def test_accepted_requests_are_answered_and_new_ones_are_sent_elsewhere(tmp_path: Path) -> None:
    """While the server drains, probes see that it is not ready, and new requests get 503 with Retry-After."""
    found = await stopped(tmp_path, drain_seconds=10.0, runs_seconds=0.5)
    for status, head in (found["ready"], found["new"]):
        assert status == 503
        assert b"Retry-After: 1\r\n" in head
    assert [status for status, _ in found["waiting"]] == [200] * 5
    assert found["socket"] is False


async def test_what_is_not_answered_in_time_gets_503(tmp_path: Path) -> None:
    """Nobody is cut off without an answer."""
    found = await stopped(tmp_path, drain_seconds=0.3, runs_seconds=3.0)
    for status, head in found["waiting"]:
        assert status == 503
        assert b"Retry-After: 1\r\n" in head
        assert b"Connection: close\r\n" in head
    assert found["socket"] is False


async def test_the_next_request_on_a_connection_in_use_gets_503_and_no_reset(tmp_path: Path) -> None:
    """A busy client of a server that is replaced lost each connection in the middle of a request."""
    socket = tmp_path / "edgekit.sock"
    async with InferenceService() as service:
        await service.activate("small", onnx_bundle(tmp_path), tmp_path)
        async with contextlib.AsyncExitStack() as serving:
            await serving.enter_async_context(serve(App(service, max_request_bytes=2**20), socket=socket))
            reader, writer = await asyncio.open_unix_connection(str(socket))
            silent, other = await asyncio.open_unix_connection(str(socket))

            async def asked() -> bytes:
                writer.write(request())
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                return head

            assert (await asked()).startswith(b"HTTP/1.1 200 ")
            stopping = asyncio.ensure_future(serving.aclose())
            await asyncio.sleep(0.05)
            head = await asked()
            assert head.startswith(b"HTTP/1.1 503 ")
            assert b"Retry-After: 1\r\n" in head
            assert b"Connection: close\r\n" in head
            assert await silent.read() == b""  # nobody used it: it was closed at once
            await asyncio.wait_for(stopping, 20)
            for one in (writer, other):
                one.close()
