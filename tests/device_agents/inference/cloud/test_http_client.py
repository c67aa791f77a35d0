"""The HTTP client over real connections to servers that close, forget, drip and stay silent."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from device_agents.inference.cloud import http_client
from device_agents.inference.cloud.http_client import HttpClient, NoAnswerError, Url

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter, int], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Server:
    """A server on loopback that counts connections and requests."""

    def __init__(self) -> None:
        self.connections = self.requests = 0
        self.gone = asyncio.Event()  # a client left while its request waited
        self.reset = False


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[tuple[Server, HttpClient]]:
    """`answer(reader, writer, number)` answers the request `number` of a connection, from 1 on."""
    server = Server()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        number = 0
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
                await reader.readexactly(length)
                server.requests += 1
                number += 1
                await answer(reader, writer, number)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            server.reset = isinstance(error, ConnectionResetError)
            server.gone.set()
        finally:
            writer.close()

    listener = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with listener:
        client = HttpClient(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/base/")
        yield server, client
        client.close()


def ask(client: HttpClient, *, timeout: float = 5.0) -> Awaitable[object]:
    return client.request("POST", "/x", headers={}, body=b"body", timeout_seconds=timeout)


async def test_a_connection_is_used_again_and_dropped_when_it_was_silent_for_long() -> None:
    """Two requests share a connection; after the idle limit a new one is made."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        writer.write(OK)

    async with serving(answer) as (server, client):
        for _ in range(2):
            assert (await ask(client)).body == b"ok"
        assert server.connections == 1
        client._idle_seconds = 0.0
        assert (await ask(client)).status == 200
        assert server.connections == 2


async def test_a_forgotten_connection_costs_one_retry_and_no_error() -> None:
    """A used connection that the server closed is replaced. A new one that fails is an error, and not tried again."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        if number == 2:
            raise ConnectionError
        writer.write(OK)

    async with serving(answer) as (server, client):
        for _ in range(3):
            assert (await ask(client)).status == 200
        assert (server.connections, server.requests) == (3, 5)

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        raise ConnectionError

    async with serving(hang_up) as (server, client):
        with pytest.raises(NoAnswerError, match="closed the connection"):
            await ask(client)
        assert server.requests == 1


async def test_a_connection_over_which_a_server_failed_is_not_used_again() -> None:
    """uvicorn closes it after an answer of 500, without a word: the next request died on it, and cost a retry."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        writer.write(OK.replace(b"200 OK", b"500 No") if server.requests == 1 else OK)

    async with serving(answer) as (server, client):
        assert [(await ask(client)).status for _ in range(3)] == [500, 200, 200]
        assert (server.connections, server.requests) == (2, 3)


async def test_a_request_whose_answer_began_is_not_sent_twice() -> None:
    """The server has worked on it."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        writer.write(OK[:-1] if number == 2 else OK)
        await writer.drain()
        if number == 2:
            raise ConnectionError

    async with serving(answer) as (server, client):
        await ask(client)
        with pytest.raises(NoAnswerError):
            await ask(client)
        assert server.requests == 2


async def test_a_cancelled_request_resets_its_connection() -> None:
    """The server sees at once that nobody waits, also after a time-out."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await reader.readexactly(1)

    async with serving(answer) as (server, client):
        with pytest.raises(asyncio.TimeoutError):
            await ask(client, timeout=0.05)
        await asyncio.wait_for(server.gone.wait(), 5)
        assert server.reset


@pytest.mark.parametrize(
    ("data", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", b"abcde"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", b"x"),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", b"until the end"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", b"x"),
    ],
)
async def test_every_form_of_an_answer_is_read(data: bytes, body: bytes) -> None:
    """Chunks, an interim answer, an answer that ends with the connection, HTTP/1.0."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        writer.write(data)
        await writer.drain()
        if b"Length" not in data and b"chunked" not in data:
            raise ConnectionError

    async with serving(answer) as (_, client):
        for _ in range(2):
            assert (await ask(client)).body == body


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n",  # refused before the body comes
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n30d40\r\n" + b"y" * 200_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["other-protocol", "long-header", "long-body", "long-chunk", "bad-chunk"],
)
async def test_what_is_no_usable_http_is_an_error(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another protocol, an endless header, a body over the limit, a malformed chunk."""
    monkeypatch.setattr(http_client, "MAX_ANSWER_BYTES", 100_000)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        writer.write(data)
        await writer.drain()
        await reader.readexactly(1)

    async with serving(answer) as (_, client):
        with pytest.raises(NoAnswerError):
            await ask(client, timeout=60.0)


def test_urls_are_checked() -> None:
    """Scheme and host are needed; the path is put before every path, and a name before the host is not sent."""
    assert Url.of("https://user@cloud.example/a/") == Url(True, "cloud.example", 443, "cloud.example", "/a")
    assert Url.of("http://[::1]:8700").port == 8700
    assert Url.of("http://wolke.köln:8/日") == Url(False, "wolke.xn--kln-sna", 8, "wolke.xn--kln-sna:8", "/%E6%97%A5")
    for bad in ("htp://cloud", "cloud.example:8700", "http://", "https:///x", "http://host:port", "http://a..b"):
        with pytest.raises(ValueError, match=r"URL|[Pp]ort|label"):
            Url.of(bad)


async def test_the_systems_authorities_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that begin together share the reading, which holds up the process; a cancelled one does not end it."""
    read = []
    make = ssl.create_default_context

    def counted() -> ssl.SSLContext:
        read.append(1)
        return make()

    monkeypatch.setattr(ssl, "create_default_context", counted)
    client = HttpClient("https://127.0.0.1:1")
    tasks = [asyncio.ensure_future(client.request("GET", "/", headers={}, timeout_seconds=5)) for _ in range(8)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(one, (OSError, asyncio.CancelledError)) for one in found)
    assert len(read) == 1
