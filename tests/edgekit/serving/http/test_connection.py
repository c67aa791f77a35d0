"""Connections that send wrong data, wait, or never end: raw sockets against the real server."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from edgekit.serving.http.app import App
from edgekit.serving.http.limits import Limits
from edgekit.serving.http.server import serve
from edgekit.serving.oip import codec as oip
from tests.simulators.echo import Echo

REQUEST = oip.encode_request({"x": np.ones(3, np.float32)})
HOST = b"Host: localhost\r\n"
LIVE = b"GET /v2/health/live HTTP/1.1\r\n" + HOST + b"\r\n"
IMPATIENT = Limits(linger_seconds=0.5, sweep_seconds=0.02)  # so that tests end soon


def infer(extra: bytes = b"", *, length: int | None = None, body: bytes = REQUEST.body) -> bytes:
    head = f"{oip.HEADER}: {REQUEST.header_length}\r\nContent-Length: {len(body) if length is None else length}\r\n"
    return b"POST /v2/models/m/infer HTTP/1.1\r\n" + HOST + extra + head.encode() + b"\r\n" + body


def statuses(answer: bytes) -> list[int]:
    """The status of every answer that a connection sent."""
    return [int(one) for one in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def limits() -> Limits:
    """Limits of the server; tests that need others parametrize this."""
    return IMPATIENT


@pytest.fixture
async def path(echo: Echo, tmp_path: Path, limits: Limits) -> AsyncIterator[Path]:
    async with serve(App(echo, max_request_bytes=2**20), socket=tmp_path / "e.sock", limits=limits):
        yield tmp_path / "e.sock"
        echo.gate.set()


async def send(path: Path, data: bytes, *, half_close: bool = False) -> bytes:
    """Everything that the server answers to `data` until it closes the connection."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(data)
    await writer.drain()
    if half_close:
        writer.write_eof()
    try:
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x00\x01\x02\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # TLS
        (b"GET /v2 HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (infer(b"Content-Length: 4\r\n"), 400),
        (infer(b"Transfer-Encoding: chunked\r\n"), 400),
        (infer(length=-1), 400),
        (b"POST /v2/models/m/infer HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n\r\n", 400),
        (infer(b"Connection: Upgrade\r\nUpgrade: h2c\r\n"), 400),
        (b"CONNECT a:80 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (infer(length=2**40), 413),
        (b"GET /" + b"a" * (IMPATIENT.header_bytes + 300_000), 431),
        (b"GET /v2 HTTP/1.1\r\n" + b"x: y\r\n" * 200_000, 431),
        (
            b"POST /v2/models/m/infer HTTP/1.1\r\n"
            + HOST
            + b"Transfer-Encoding: chunked\r\n\r\n0\r\n"
            + b"x: y\r\n" * 200_000,
            431,
        ),
    ],
)
async def test_lies_and_nonsense_get_their_status_as_json_and_the_connection_ends(
    path: Path, data: bytes, status: int
) -> None:
    """Every refusal is one complete answer with an error document; none hangs."""
    answer = await send(path, data)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer[:200]
    head, body = answer.split(b"\r\n\r\n", 1)
    assert f"content-length: {len(body)}".encode() in head.lower()
    assert body.startswith(b'{"error":"')


async def test_a_body_that_is_too_long_does_not_cost_its_sender_the_answer(path: Path) -> None:
    """A client may send the whole body before it reads the answer; the connection serves the next request."""
    answer = await send(path, infer(body=bytes(3 * 2**20)) + LIVE.replace(HOST, HOST + b"Connection: close\r\n"))
    assert statuses(answer) == [413, 200]


@pytest.mark.parametrize("limits", [IMPATIENT._replace(linger_seconds=0.1)])
async def test_a_body_that_nobody_wants_is_read_for_so_long_only(path: Path) -> None:
    """After its 413, a client that goes on sending is disconnected."""
    assert (await send(path, infer(length=2**40))).startswith(b"HTTP/1.1 413 ")


async def test_refusals_are_counted(path: Path) -> None:
    """A refusal that the application never saw is in its metrics."""
    await send(path, b"\x00\r\n\r\n")
    metrics = await send(path, b"GET /metrics HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert b'edgekit_http_responses_total{code="400"} 1\n' in metrics


async def test_old_and_half_closed_clients_get_their_answer(path: Path) -> None:
    """The connection closes after the answer under HTTP/1.0, and where the client has closed its sending side."""
    assert (await send(path, b"GET /v2 HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    assert b'"outputs"' in await send(path, infer(), half_close=True)
    assert await send(path, infer(length=5000), half_close=True) == b""


async def test_pipelined_requests_are_answered_in_order_and_before_what_is_wrong(path: Path) -> None:
    """Three requests get three answers; the bytes after them, which are no HTTP, get 400 and end the connection."""
    missing = b"GET /v2/nothing HTTP/1.1\r\n" + HOST + b"\r\n"
    answer = await send(path, infer() + missing + infer() + b"\x00\x01")
    assert statuses(answer) == [200, 404, 200, 400]


@pytest.mark.parametrize("limits", [IMPATIENT._replace(header_seconds=0.3)])
async def test_a_header_that_does_not_come_ends_the_connection(path: Path) -> None:
    """Silence, half a header, and empty lines between requests all end at the header's time limit."""
    for data in (b"", b"POST /v2/mod", b"\r\n"):  # the last is no header, and no reason to wait longer either
        assert b" 408 " in await send(path, data)
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(LIVE)
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"\r\n")  # the second time in the life of one connection
    assert b" 408 " in await asyncio.wait_for(reader.read(), 10)
    writer.close()


@pytest.mark.parametrize("limits", [IMPATIENT._replace(body_seconds=0.2)])
async def test_a_body_that_does_not_come_ends_the_connection(path: Path, echo: Echo) -> None:
    """Half a body, and a body that arrives slowly, end at the body's time limit; the model is not run."""
    assert (await send(path, infer(length=5000))).startswith(b"HTTP/1.1 408 ")
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(infer(length=5000))
    answer = asyncio.ensure_future(reader.read())
    for _ in range(100):
        await asyncio.wait({answer}, timeout=0.02)
        if answer.done():
            break
        writer.write(b"x")
    assert (await answer).startswith(b"HTTP/1.1 408 ")
    assert echo.requests == 0
    writer.close()


@pytest.mark.parametrize("limits", [IMPATIENT._replace(header_seconds=0.3, body_seconds=0.3)])
async def test_a_slow_model_is_not_a_slow_header(path: Path, echo: Echo) -> None:
    """A request that runs longer than a header may take is answered."""
    echo.gate.clear()
    asyncio.get_running_loop().call_later(0.9, echo.gate.set)
    assert (await send(path, infer(b"Connection: close\r\n"))).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("limits", [IMPATIENT._replace(connections=3)])
async def test_over_the_cap_the_longest_idle_connection_makes_room(path: Path, echo: Echo) -> None:
    """Idle clients keep no one out. Working connections stay; where all of them work, the new one gets 503."""
    echo.gate.clear()
    working = [asyncio.ensure_future(send(path, infer(b"Connection: close\r\n"))) for _ in range(2)]
    await echo.arrived(2)
    silent, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b"POST /v2/mod")
    await asyncio.sleep(0.05)
    working.append(asyncio.ensure_future(send(path, infer(b"Connection: close\r\n"))))
    assert await asyncio.wait_for(silent.read(), 10) == b""
    await echo.arrived(3)
    refused = await send(path, LIVE)
    assert b" 503 " in refused
    assert b"Retry-After: 1" in refused
    echo.gate.set()
    assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in await asyncio.gather(*working))
    writer.close()


@pytest.mark.parametrize("limits", [IMPATIENT._replace(connections=3)])
async def test_a_flood_of_silent_connections_does_not_cost_a_client_its_own(path: Path) -> None:
    """A kept-alive connection that has been used outlives any number that never were."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    for _ in range(3):
        writer.write(LIVE)
        assert b" 200 " in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        silent = [(await asyncio.open_unix_connection(str(path)))[1] for _ in range(10)]
        await asyncio.sleep(0.05)
    writer.close()
    for one in silent:
        one.close()
