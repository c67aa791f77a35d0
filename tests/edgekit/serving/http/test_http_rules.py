"""The rules of RFC 9112 for servers, and misbehaving clients: raw sockets against the real server."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.runtimes.logical import check_inputs
from edgekit.serving.http.app import App
from edgekit.serving.http.connection import _TURNS
from edgekit.serving.http.limits import Limits
from edgekit.serving.http.messages import Head, Reply, Work
from edgekit.serving.http.server import serve
from edgekit.serving.oip import codec as oip
from edgekit.waiting import within
from tests.edgekit.serving.http.test_app import SPEC, Doubler
from tests.edgekit.serving.http.test_connection import HOST, IMPATIENT, LIVE, REQUEST, infer, send, statuses
from tests.simulators.echo import Echo

CLOSE = b"Connection: close\r\n"
LAST = LIVE.replace(HOST, HOST + CLOSE)
MAX_BYTES = 2**20


@pytest.fixture
def limits() -> Limits:
    """Limits of the server; tests that need others parametrize this."""
    return IMPATIENT


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
async def path(echo: Echo, tmp_path: Path, limits: Limits) -> AsyncIterator[Path]:
    async with serve(App(echo, max_request_bytes=MAX_BYTES), socket=tmp_path / "e.sock", limits=limits):
        yield tmp_path / "e.sock"
        echo.gate.set()


async def test_a_request_in_single_bytes_is_the_same_request(path: Path) -> None:
    """Target, headers and body are read correctly even when each byte arrives alone."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    for one in infer(CLOSE):
        writer.write(bytes([one]))
        await asyncio.sleep(0)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    head, body = answer.split(b"\r\n\r\n", 1)
    assert statuses(head) == [200]
    assert len(body) == int(re.search(rb"Content-Length: (\d+)", head).group(1))


async def test_chunks_are_a_body_and_their_trailers_are_nothing(path: Path) -> None:
    """Chunks of any size, chunk extensions and trailers are accepted; a trailer does not replace a header."""
    head = infer(b"Transfer-Encoding: chunked\r\n").replace(f"Content-Length: {len(REQUEST.body)}\r\n".encode(), b"")
    head, body = head.split(b"\r\n\r\n", 1)
    chunks = b"".join(
        b"%x;note=1\r\n%s\r\n" % (len(body[i : i + 50]), body[i : i + 50]) for i in range(0, len(body), 50)
    )
    trailer = f"{oip.HEADER}: 1\r\nOrigin: evil\r\n".encode()
    answer = await send(path, head + b"\r\n\r\n" + chunks + b"0\r\n" + trailer + b"\r\n" + LAST)
    assert statuses(answer) == [200, 200]


async def test_a_chunked_body_over_the_limit_is_refused_while_it_comes(path: Path, echo: Echo) -> None:
    """A chunked body has no stated length, so it is refused when it passes the limit."""
    head = b"POST /v2/models/m/infer HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
    answer = await send(path, head + (b"10000\r\n" + bytes(0x10000) + b"\r\n") * 20)
    assert statuses(answer) == [413]
    assert echo.requests == 0


@pytest.mark.parametrize("split", [True, False])
async def test_a_client_that_asks_before_it_sends_is_told_to_go_on(path: Path, split: bool) -> None:
    """100 is sent where the body has not arrived; not where it has, or where the request is refused."""
    head, body = infer(b"Expect: 100-continue\r\n" + CLOSE).split(b"\r\n\r\n", 1)
    if not split:
        assert statuses(await send(path, head + b"\r\n\r\n" + body)) == [200]
        return
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(head + b"\r\n\r\n")
    assert await asyncio.wait_for(reader.readexactly(25), 10) == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    assert statuses(await asyncio.wait_for(reader.read(), 10)) == [200]
    writer.close()
    refused = await send(
        path, infer(b"Expect: 100-continue\r\nContent-Encoding: gzip\r\n").split(b"\r\n\r\n")[0] + b"\r\n\r\n"
    )
    assert statuses(refused) == [415]


async def test_head_has_the_length_and_not_the_body(path: Path) -> None:
    """HEAD gets the length and no body; the next answer begins right after the head."""
    answer = await send(path, b"HEAD /v2 HTTP/1.1\r\n" + HOST + b"\r\n" + LAST)
    assert statuses(answer) == [200, 200]
    first = answer.split(b"\r\n\r\n")[0]
    assert int(re.search(rb"Content-Length: (\d+)", first).group(1)) > 20
    assert answer.split(b"\r\n\r\n")[1].startswith(b"HTTP/1.1")


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"/v2?x=1#y", 200),
        (b"/v2/models/%6d", 200),
        (b"//v2//models//m", 200),
        (b"http://localhost/v2", 200),
        (b"/v2/models/%ff", 200),  # any name: the echo has every model
        (b"/%00", 404),
        (b"*", 400),
        (b"http://", 400),
        (b"/v2/../v2", 404),  # paths are not walked
    ],
)
async def test_targets_are_read_in_every_form(path: Path, target: bytes, status: int) -> None:
    """Query and fragment are ignored, escapes are decoded, and the absolute form is accepted."""
    assert statuses(await send(path, b"GET " + target + b" HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n")) == [status]


async def test_the_host_in_an_absolute_target_and_a_second_host_are_checked(echo: Echo) -> None:
    """A web page cannot avoid the check of the Host header with an absolute target or a second header."""
    async with serve(App(echo, max_request_bytes=10), http="127.0.0.1:0", limits=IMPATIENT) as bound:
        host, port = bound.url.removeprefix("http://").split(":")
        for target, headers in (
            (b"http://evil.example/v2", HOST),
            (b"/v2", HOST + b"Host: evil.example\r\n"),
            (b"/v2", b"Host: evil.example\r\n" + HOST),
            (b"/v2", b"Origin: http://localhost\r\n" + HOST),
        ):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"GET " + target + b" HTTP/1.1\r\n" + headers + CLOSE + b"\r\n")
            assert statuses(await asyncio.wait_for(reader.read(), 10)) == [403]
            writer.close()


async def test_old_clients_are_answered_and_left(path: Path) -> None:
    """Under HTTP/1.0 the connection closes after the answer, even with ``Connection: keep-alive``."""
    for extra in (b"", b"Connection: keep-alive\r\n"):
        answer = await send(path, b"GET /v2 HTTP/1.0\r\n" + extra + b"\r\n")
        assert statuses(answer) == [200]
        assert b"\r\nConnection: close\r\n" in answer


async def test_a_thousand_pipelined_requests_are_answered_in_order(path: Path) -> None:
    """While a request runs nothing more is read, so the others wait in the client's system and not in memory."""
    missing = b"GET /v2/nothing HTTP/1.1\r\n" + HOST + b"\r\n"
    answer = await send(path, (LIVE + missing + infer()) * 333 + LAST)
    assert statuses(answer) == [200, 404, 200] * 333 + [200]


async def test_pipelined_requests_do_not_keep_others_out(tmp_path: Path) -> None:
    """Only a few answers are given in one turn of the event loop; then other connections get their turn."""
    loop, path = asyncio.get_running_loop(), tmp_path / "t.sock"
    turn = 0
    answered: Counter[int] = Counter()

    def next_turn() -> None:
        nonlocal turn
        turn += 1
        if answered.total() < 101:
            loop.call_soon(next_turn)

    class Counting(App):
        def count(self, status: int) -> None:
            answered[turn] += 1

    async with serve(Counting(Echo(), max_request_bytes=MAX_BYTES), socket=path, limits=IMPATIENT):
        next_turn()
        assert statuses(await send(path, infer() * 100 + LAST)) == [200] * 101
    assert max(answered.values()) == _TURNS


async def test_after_the_last_request_nothing_is_listened_to(path: Path) -> None:
    """All bytes after a request with ``Connection: close`` are dropped: another request, or no HTTP at all."""
    for more in (LIVE, b"\x00\x01nonsense"):
        assert statuses(await send(path, LAST + more)) == [200]


@pytest.mark.parametrize("limits", [IMPATIENT._replace(keep_alive_seconds=0.1)])
async def test_a_silent_connection_is_kept_for_so_long_only(path: Path) -> None:
    """Between requests it is closed without an answer, because no request is open."""
    assert statuses(await send(path, LIVE)) == [200]


async def test_a_client_that_does_not_read_is_left(tmp_path: Path) -> None:
    """Its answer is dropped after a while, and its other requests are not run meanwhile."""
    path, server = tmp_path / "s.sock", Doubler()
    big = oip.encode_request({"x": np.zeros((2**19, 2), np.float32)})
    limits = IMPATIENT._replace(stalled_seconds=0.2)
    async with serve(App(server, max_request_bytes=2**24), socket=path, limits=limits):
        with socket.socket(socket.AF_UNIX) as client:
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, str(path))
            head = f"POST /v2/models/m/infer HTTP/1.1\r\n{oip.HEADER}: {big.header_length}\r\n"
            await loop.sock_sendall(
                client, f"{head}Content-Length: {len(big.body)}\r\n\r\n".encode() + big.body + infer()
            )
            for _ in range(200):
                await asyncio.sleep(0.02)
                try:
                    client.send(b"x" * 2**20)
                except BlockingIOError:
                    continue
                except OSError:  # it was left
                    break
            else:
                pytest.fail("still connected")
    assert server.asked == 1


async def test_a_client_that_reads_slowly_gets_all(tmp_path: Path) -> None:
    """A client that reads slowly is not treated as stalled."""
    limits = IMPATIENT._replace(stalled_seconds=0.5)
    path, value = tmp_path / "s.sock", np.arange(2**20, dtype=np.float32).reshape(-1, 2)
    big = oip.encode_request({"x": value})
    async with serve(App(Doubler(), max_request_bytes=2**24), socket=path, limits=limits):
        reader, writer = await asyncio.open_unix_connection(str(path), limit=2**16)
        head = f"POST /v2/models/m/infer HTTP/1.1\r\n{oip.HEADER}: {big.header_length}\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Length: {len(big.body)}\r\n\r\n".encode() + big.body)
        found = b""
        while part := await reader.read(2**17):
            found += part
            await asyncio.sleep(0.02)
        writer.close()
    head, body = found.split(b"\r\n\r\n", 1)
    assert len(body) == int(re.search(rb"Content-Length: (\d+)", head).group(1))
    assert body.endswith((value * 2).tobytes())


@pytest.mark.parametrize("limits", [IMPATIENT._replace(buffered_bodies=2)])
async def test_bodies_of_many_clients_are_bounded_together(path: Path) -> None:
    """Half-sent bodies do not fill the memory; when they are gone, requests are accepted again."""
    senders = []
    for _ in range(3):
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(infer(length=MAX_BYTES, body=bytes(MAX_BYTES - 200_000)))
        senders.append((reader, writer))
    said = [asyncio.ensure_future(reader.read(12)) for reader, _ in senders]
    done, _ = await asyncio.wait(said, timeout=10, return_when=asyncio.FIRST_COMPLETED)
    assert [one.result() for one in done] == [b"HTTP/1.1 503"]
    for _, writer in senders:
        writer.close()
    await asyncio.gather(*said)
    assert statuses(await send(path, infer(CLOSE))) == [200]


async def test_a_client_that_is_gone_takes_its_request_with_it(echo: Echo) -> None:
    """A reset cancels the client's running request, and the server goes on."""
    echo.gate.clear()
    cancelled, wait = asyncio.Event(), echo.gate.wait

    async def watched() -> bool:
        try:
            return await wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    echo.gate.wait = watched  # type: ignore[method-assign,assignment]
    async with serve(App(echo, max_request_bytes=MAX_BYTES), http="127.0.0.1:0", limits=IMPATIENT) as bound:
        host, port = bound.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(infer())
            await echo.arrived(1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing resets
        await within(10, cancelled.wait())
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(LAST)
        assert statuses(await within(10, reader.read())) == [200]
        writer.close()


async def test_a_body_under_way_is_finished_before_the_server_ends(echo: Echo, tmp_path: Path) -> None:
    """A request that is being sent is answered; the server does not wait for idle connections."""
    path = tmp_path / "d.sock"
    whole = infer()
    async with serve(App(echo, max_request_bytes=MAX_BYTES), socket=path, limits=IMPATIENT):
        reader, writer = await asyncio.open_unix_connection(str(path))
        idle, other = await asyncio.open_unix_connection(str(path))
        writer.write(whole[:-5])
        other.write(b"GET /v2 HT")
        await asyncio.sleep(0.05)
        asyncio.get_running_loop().call_later(0.1, writer.write, whole[-5:])
    answer = await asyncio.wait_for(reader.read(), 10)
    assert statuses(answer) == [200]
    assert b"\r\nConnection: close\r\n" in answer
    assert await asyncio.wait_for(idle.read(), 10) == b""
    writer.close()
    other.close()


class Bug:
    """An application that raises, which applications must not do."""

    max_request_bytes = 100

    def begin(self, head: Head) -> Reply | Work:
        return self._work

    async def _work(self, body: bytes) -> Reply:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    def stop(self) -> None:
        """Nothing is refused."""

    def too_long(self, stated: str) -> Reply:
        return Reply(413)

    def count(self, status: int) -> None:
        pass


async def test_a_bug_in_the_application_hangs_nobody(tmp_path: Path) -> None:
    """The connection ends, and the next one is taken."""
    async with serve(Bug(), socket=tmp_path / "b.sock", limits=IMPATIENT):
        for _ in range(2):
            said = await asyncio.gather(send(tmp_path / "b.sock", LIVE), return_exceptions=True)
            assert said == [b""] or isinstance(said[0], ConnectionError)


# --- whatever is sent: an answer that is no 500, or the end of the connection, and never silence

WORDS = st.sampled_from(
    [
        *(
            b"GET",
            b"POST",
            b" ",
            b"/v2",
            b"/models/m",
            b"/infer",
            b"/versions/",
            b" HTTP/1.1",
            b" HTTP/1.0",
            b"\r\n",
            b"\n",
        ),
        *(b"Host: localhost\r\n", b"Content-Length: 5\r\n", b"Content-Length: -1\r\n", b"Connection: close\r\n"),
        *(b"Transfer-Encoding: chunked\r\n", b"Connection: upgrade\r\n", b"Upgrade: h2c\r\n", b"5\r\n", b"0\r\n\r\n"),
        *(b"Expect: 100-continue\r\n", b"hello", b"{}", oip.HEADER.encode() + b": 0\r\n", b"\x00", b"\xff\xfe"),
    ]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.one_of(WORDS, st.binary(max_size=8)), max_size=14), cut=st.integers(0, 400))
def test_whatever_bytes_come_the_connection_ends_without_a_500(parts: list[bytes], cut: int, tmp_path: Path) -> None:
    """The bytes come in two pieces: every answer is complete and none is an internal error."""

    async def run() -> None:
        data = b"".join(parts)
        async with serve(App(Echo(), max_request_bytes=1000), socket=tmp_path / "f.sock", limits=IMPATIENT):
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "f.sock"))
            writer.write(data[:cut])
            await asyncio.sleep(0)
            writer.write(data[cut:])
            writer.write_eof()
            answer = await asyncio.wait_for(reader.read(), 10)
            writer.close()
        assert not [status for status in statuses(answer) if status >= 500], answer
        whole = b""
        for head, body in re.findall(rb"(HTTP/1\.1 \d{3} .*?\r\n\r\n)((?:(?!HTTP/1\.1 \d{3} ).)*)", answer, re.DOTALL):
            whole += head + body
        assert whole == answer

    asyncio.run(run())


PIECES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=9), inner, max_size=3)),
    max_leaves=6,
)
TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "name": st.one_of(st.just("x"), PIECES),
        "shape": st.one_of(st.just([1, 2]), st.lists(st.integers(-1, 2**63), max_size=4), PIECES),
        "datatype": st.one_of(st.sampled_from(["FP32", "BYTES", "BOOL", "INT8", "FP16"]), PIECES),
        "data": st.one_of(st.just([1.0, 2.0]), PIECES),
        "parameters": st.one_of(st.fixed_dictionaries({"binary_data_size": st.integers(-1, 99)}), PIECES),
    },
)
DOCUMENT = st.fixed_dictionaries(
    {"inputs": st.one_of(st.lists(TENSOR, max_size=3), PIECES)},
    optional={
        "id": PIECES,
        "parameters": PIECES,
        "outputs": st.one_of(st.lists(st.fixed_dictionaries({"name": st.just("y")}), max_size=2), PIECES),
    },
)
NAMES = ("v2", "health", "live", "ready", "models", "m", "infer", "stats", "versions", "1.0.0", "x", "metrics")
PATHS = st.lists(st.sampled_from(NAMES) | st.text(max_size=4), max_size=6)


class Strict(Doubler):
    """Checks inputs as a session does."""

    async def answer(self, model: str, version: str | None, request: oip.InferRequest) -> oip.InferResponse:
        check_inputs((SPEC,), request.inputs)
        return await super().answer(model, version, request)


@settings(max_examples=150, deadline=None)
@given(
    method=st.sampled_from(["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS"]),
    path=st.one_of(st.just(["v2", "models", "m", "infer"]), PATHS),
    document=DOCUMENT,
    tail=st.binary(max_size=12),
    length=st.one_of(st.none(), st.integers(-1, 80).map(str), st.text(max_size=5)),
)
def test_no_request_of_any_form_is_an_internal_error(
    method: str, path: list[str], document: object, tail: bytes, length: str | None
) -> None:
    """Right and wrong paths, methods, documents and lengths in all combinations."""
    body = json.dumps(document, default=str).encode() + tail
    headers = {} if length is None else {oip.HEADER.lower().encode(): length.encode("latin-1", "replace")}

    async def run() -> None:
        app = App(Strict(), max_request_bytes=2**16)
        decision = app.begin(Head(method, "/" + "/".join(path), headers, False))
        reply = decision if isinstance(decision, Reply) else await decision(body)
        assert reply.status < 500, reply

    asyncio.run(run())
