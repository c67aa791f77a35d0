"""The cache of parsed heads: exact bytes, bounded, and without a difference to any answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.serving.http.app import App
from edgekit.serving.http.head_cache import MAX_HEADS, HeadCache
from edgekit.serving.http.limits import Limits
from edgekit.serving.http.messages import Head, RepeatableWork, Reply, Work
from edgekit.serving.http.server import serve
from edgekit.waiting import within
from tests.edgekit.serving.http.test_connection import HOST, IMPATIENT, infer, send, statuses
from tests.simulators.echo import Echo

MAX_BYTES = IMPATIENT.cached_head_bytes
ASKED = infer()
CLOSE = infer(b"Connection: close\r\n")


async def answer(body: bytes) -> Reply:
    return Reply(200, body)


WORK = RepeatableWork(answer)


def request(target: str = "/a", body: bytes = b"12345") -> bytes:
    return f"POST {target} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


class Counted:
    """An App that counts the heads it was given."""

    def __init__(self, app: App) -> None:
        self._app = app
        self.max_request_bytes = app.max_request_bytes
        self.too_long, self.count, self.stop = app.too_long, app.count, app.stop
        self.begun = 0

    def begin(self, head: Head) -> Reply | Work:
        self.begun += 1
        return self._app.begin(head)


@pytest.fixture
def limits() -> Limits:
    """Limits of the server; tests that need others parametrize this."""
    return IMPATIENT


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def app(echo: Echo) -> Counted:
    return Counted(App(echo, max_request_bytes=2**20))


@pytest.fixture
async def path(app: Counted, echo: Echo, tmp_path: Path, limits: Limits) -> AsyncIterator[Path]:
    async with serve(app, socket=tmp_path / "h.sock", limits=limits):
        yield tmp_path / "h.sock"
        echo.gate.set()


# --- which are known


def test_a_head_is_found_by_its_very_bytes_and_before_a_whole_body_only() -> None:
    """One more space, another case, a byte less or more of the body: the parser must read the request."""
    known, data = HeadCache(MAX_BYTES), request()
    known.note(data, 5, WORK)
    found = known.find(request(body=b"other"))
    assert found is not None
    assert (found.work, data[found.size :]) == (WORK, b"12345")
    near = [data[:-1], data + b"1", data.replace(b"Length: ", b"Length:  "), data.replace(b"Length", b"length")]
    assert [known.find(one) for one in [*near, b"", b"\r\n\r\n", data[: found.size]]] == [None] * 7


@pytest.mark.parametrize("body_size", [0, 4, 6])
def test_a_head_that_ends_elsewhere_for_the_parser_is_not_known(body_size: int) -> None:
    """A head is not cached where parser and cache disagree on the length of the body."""
    known, data = HeadCache(MAX_BYTES), request(body=b"\r\n\r\n1")
    known.note(data, body_size, WORK)
    assert known.find(data) is None


def test_so_many_heads_of_such_a_length_are_known_and_the_oldest_goes_first() -> None:
    """The cache's memory is bounded, whatever is sent."""
    known = HeadCache(MAX_BYTES)
    for i in range(MAX_HEADS + 1):
        known.note(request(f"/{i}"), 5, WORK)
    assert known.find(request("/0")) is None
    assert all(known.find(request(f"/{i}")) for i in range(1, MAX_HEADS + 1))
    known.note(request("/" + "a" * MAX_BYTES), 5, WORK)
    assert known.find(request("/" + "a" * MAX_BYTES)) is None
    assert known.find(request("/1")) is not None


# --- what is answered


async def test_a_head_that_came_before_is_not_parsed_again(path: Path, app: Counted) -> None:
    """All connections get the answer of the first request; ``Connection: close`` is still obeyed."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    answers = []
    for _ in range(3):
        writer.write(ASKED)
        answers.append(await within(10, reader.readuntil(b"binary_data_size")))
        await within(10, reader.read(1000))
    assert len(set(answers)) == 1
    assert app.begun == 1
    other, another = await asyncio.open_unix_connection(str(path))
    another.write(ASKED)
    assert await within(10, other.readuntil(b"binary_data_size")) == answers[0]
    assert app.begun == 1
    assert [statuses(await send(path, CLOSE)) for _ in range(2)] == [[200], [200]]
    assert app.begun == 3
    writer.close()
    another.close()


async def test_a_known_head_with_a_lie_or_more_behind_it_is_read_as_any_other(path: Path) -> None:
    """Half a body, two requests at once, nonsense after the first: a known head says nothing of what follows it."""
    assert statuses(await send(path, ASKED, half_close=True)) == [200]
    assert statuses(await send(path, ASKED + ASKED + CLOSE)) == [200] * 3
    assert statuses(await send(path, ASKED + b"nonsense\r\n\r\n")) == [200, 400]
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(ASKED[:-3])
    await asyncio.sleep(0.05)
    writer.write(ASKED[-3:] + CLOSE)
    assert statuses(await within(10, reader.read())) == [200, 200]
    writer.close()


async def test_a_known_request_waits_for_its_model_as_any_other(path: Path, echo: Echo, app: Counted) -> None:
    """A request that arrives while it runs is answered after it, and its body counts as buffered."""
    assert statuses(await send(path, ASKED, half_close=True)) == [200]
    echo.gate.clear()
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(ASKED)
    await echo.arrived(2)
    writer.write(CLOSE)
    await asyncio.sleep(0.05)
    assert echo.requests == 2
    echo.gate.set()
    assert statuses(await within(10, reader.read())) == [200, 200]
    assert app.begun == 2
    writer.close()


@pytest.mark.parametrize("limits", [IMPATIENT._replace(buffered_bodies=1)])
async def test_bodies_are_bounded_behind_known_heads_too(path: Path) -> None:
    """Where the memory for bodies is full, a known head makes no difference."""
    assert statuses(await send(path, ASKED, half_close=True)) == [200]
    _, writer = await asyncio.open_unix_connection(str(path))
    writer.write(infer(length=2**20, body=bytes(2**20 - 2)))
    await asyncio.sleep(0.1)
    assert statuses(await send(path, ASKED, half_close=True)) == [503]
    writer.close()


async def test_work_that_depends_on_more_than_its_head_is_made_each_time(path: Path, app: Counted) -> None:
    """The meaning of a text body depends on the loaded model, which may change."""
    body = b'{"inputs": [{"name": "x", "shape": [1], "datatype": "INT8", "data": [1]}]}'
    head = b"POST /v2/models/m/infer HTTP/1.1\r\n" + HOST + b"Content-Type: text/plain\r\nContent-Length: %d\r\n\r\n"
    for asked in (1, 2):
        assert statuses(await send(path, head % len(body) + body, half_close=True)) == [200]
        assert app.begun == asked


async def test_what_is_known_from_a_socket_says_nothing_of_tcp(echo: Echo, tmp_path: Path) -> None:
    """A web page's request is refused over TCP, even after the same bytes came over the UNIX socket."""
    page = infer(b"Origin: http://evil.example\r\n")
    async with serve(
        App(echo, max_request_bytes=2**20), http="127.0.0.1:0", socket=tmp_path / "b.sock", limits=IMPATIENT
    ) as bound:
        for _ in range(2):
            assert statuses(await send(tmp_path / "b.sock", page, half_close=True)) == [200]
            reader, writer = await asyncio.open_connection("127.0.0.1", int(bound.url.rpartition(":")[2]))
            writer.write(page)
            writer.write_eof()
            assert statuses(await within(10, reader.read())) == [403]
            writer.close()


async def test_a_known_head_ends_with_its_key(echo: Echo, tmp_path: Path) -> None:
    """A head with another API key is another head, and a refusal is never cached."""
    app = Counted(App(echo, max_request_bytes=2**20, api_key="right"))
    async with serve(app, socket=tmp_path / "k.sock", limits=IMPATIENT):
        for _ in range(2):
            right, wrong = (infer(b"Authorization: Bearer " + key + b"\r\n") for key in (b"right", b"wrong"))
            assert statuses(await send(tmp_path / "k.sock", right, half_close=True)) == [200]
            assert statuses(await send(tmp_path / "k.sock", wrong, half_close=True)) == [401]
    assert app.begun == 3


async def test_a_known_head_is_answered_as_the_last_while_the_server_ends(echo: Echo, tmp_path: Path) -> None:
    """A known head does not keep a connection open while the server stops."""
    async with serve(App(echo, max_request_bytes=2**20), socket=tmp_path / "d.sock"):
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "d.sock"))
        writer.write(ASKED)
        assert statuses(await within(10, reader.read(1000))) == [200]
        echo.gate.clear()
        writer.write(ASKED)
        await echo.arrived(2)
        asyncio.get_running_loop().call_later(0.1, echo.gate.set)
    assert b"\r\nConnection: close\r\n" in await within(10, reader.read())
    writer.close()


@pytest.mark.parametrize("limits", [IMPATIENT._replace(keep_alive_seconds=0.2)])
async def test_after_a_known_request_a_silent_connection_is_kept_as_after_any_other(path: Path) -> None:
    """The keep-alive time begins with the answer."""
    assert statuses(await send(path, ASKED, half_close=True)) == [200]
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(ASKED)
    assert statuses(await within(5, reader.read())) == [200]
    writer.close()


async def test_empty_lines_are_no_request_whatever_came_before_them(path: Path, echo: Echo) -> None:
    """After a request without a body, empty lines look like the end of a head; they must be ignored."""
    empty = b"POST /v2/repository/index HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\n\r\n"
    echo.gate.clear()
    reader, writer = await asyncio.open_unix_connection(str(path))
    for part in (ASKED, empty, *(b"\r\n\r\n", b"\r\n\r", b"\n") * 2):
        writer.write(part)
        await asyncio.sleep(0.02)
    echo.gate.set()
    await asyncio.sleep(0.05)
    for part in (*(b"\r\n\r\n", b"\r\n\r", b"\n") * 2, CLOSE):
        writer.write(part)
        await asyncio.sleep(0.02)
    assert statuses(await within(10, reader.read())) == [200, 200, 200]
    writer.close()


EMPTY = infer(body=b"", length=0)
PARTS = st.sampled_from(
    [
        *(ASKED, ASKED, EMPTY, HOST, infer(b"X: 1\r\n"), ASKED.replace(b"POST", b"GET"), ASKED[:-1]),
        *(b"\r\n", b"\r\n\r", b"\r\n\r\n"),
    ]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sent=st.lists(st.lists(PARTS, max_size=3).map(b"".join), max_size=5))
def test_what_is_known_changes_no_answer(sent: list[bytes], tmp_path: Path) -> None:
    """Any requests, complete or not, in any pieces: a server without the cache sends the same answers."""

    async def answers(cached_head_bytes: int) -> bytes:
        app, limits = App(Echo(), max_request_bytes=2**16), IMPATIENT._replace(cached_head_bytes=cached_head_bytes)
        async with serve(app, socket=tmp_path / "s.sock", limits=limits):
            await send(tmp_path / "s.sock", ASKED, half_close=True)
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s.sock"))
            for part in sent:
                writer.write(part)
                await asyncio.sleep(0.002)
            writer.write_eof()
            answered = await within(10, reader.read())
            writer.close()
        return answered

    async def both() -> tuple[bytes, bytes]:
        return await answers(MAX_BYTES), await answers(0)

    known, unknown = asyncio.run(both())
    assert known == unknown
