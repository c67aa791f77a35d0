"""HTTP/1.1 connections on asyncio and httptools, with limits on everything that a peer can make long or slow."""

from __future__ import annotations

import asyncio
import logging
import math
import socket as sockets
from collections import deque
from collections.abc import Awaitable
from typing import Any

import httptools
import msgspec

from edgekit.serving.http.connections import Hub
from edgekit.serving.http.head_cache import KnownHead, RefusedError, answer_head, path_of
from edgekit.serving.http.messages import Head, Lasting, Reply, Work, rest_of
from edgekit.serving.oip import codec as oip

_log = logging.getLogger(__name__)

MAX_CONNECTIONS = 256
MAX_HEADER_BYTES = 64 * 1024
HEADER_SECONDS = 20.0
BODY_SECONDS = 30.0
KEEP_ALIVE_SECONDS = 75.0
STALLED_SECONDS = 30.0
LINGER_SECONDS = 5.0
HELD_BODIES = 4  # so many of the longest bodies may be in memory at a time, over all connections

_NEVER = math.inf
_TURNS = 8  # pipelined requests that are answered before other connections get their turn
_ONE_WRITE = 64 * 1024  # a head and a body up to this are copied into one write
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class _Pending(msgspec.Struct, frozen=True):
    """A request that waits for its answer: the answer, or the work and the body that make it."""

    decision: Reply | Work
    body: bytes
    keep_alive: bool
    with_body: bool  # False for HEAD


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Reply:
    return Reply(status, oip.error_document(message), {"Content-Type": oip.JSON_TYPE, **(headers or {})})


class Connection(asyncio.Protocol):
    """One connection; requests are answered one after the other, in their order.

    * Over MAX_CONNECTIONS the connection that has been without a request for the longest is closed, one that never had
      any first; where all are at work, the new one gets 503.
    * A header (or what follows the body) over MAX_HEADER_BYTES gets 431, one that takes over HEADER_SECONDS 408,
      and so does a body over BODY_SECONDS. Between requests a connection may be silent for KEEP_ALIVE_SECONDS.
    * What is known to be refused is answered before its body has come; what the client still sends is dropped for
      LINGER_SECONDS, because closing at once would make its system throw the answer away.
    * A client that takes no byte of an answer for STALLED_SECONDS is left. While it takes none, nothing more is read.
    * What is no HTTP gets 400, as JSON like every other error. It is counted and not logged, or it would fill the log.
    * A client that closes its sending side after a whole request gets its answer.

    Attributes:
        deadline: In the loop's time; `late` is called some time after it.
    """

    # As many attributes as here are looked up in a dictionary without this, which every request would pay for.
    __slots__ = (
        *("deadline", "_hub", "_app", "_max_body", "_loop", "_parser", "_transport", "_over_tcp", "_heads", "_since"),
        *("_requests", "_in_head", "_head_began", "_between", "_unparsed", "_url", "_headers", "_method", "_decision"),
        *("_parts", "_size", "_held", "_waiting", "_task", "_is_last", "_half_closed", "_ended", "_reading"),
        *("_writable", "_unsent"),
    )

    def __init__(self, hub: Hub) -> None:
        self.deadline = _NEVER
        self._hub = hub
        self._app = hub.app
        self._max_body = hub.app.max_request_bytes
        self._loop = hub.loop
        self._parser: Any = None
        self._transport: asyncio.Transport
        self._over_tcp = True
        self._heads = hub.heads
        self._since = 0.0  # idle, or being written to without progress
        self._requests = 0
        # What is being read
        self._in_head = True  # between requests too
        self._head_began = True  # the first one's time runs from the connection on
        self._between = True  # no byte of a request has come that is not whole
        self._unparsed = 0  # bytes since the parser last came to the end of something
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._method = ""
        self._decision: Reply | Work | None = None  # None: answered before its body had come
        self._parts: list[bytes] = []
        self._size = 0
        self._held = 0  # bytes of bodies that are not answered yet
        # What is being answered
        self._waiting: deque[_Pending] = deque()
        self._task: asyncio.Task[None] | None = None
        self._is_last = False  # nothing more is parsed
        self._half_closed = False  # by the client
        self._ended = False  # the last answer is written
        self._reading = True
        self._writable = True
        self._unsent = 0

    @property
    def age(self) -> tuple[bool, float]:
        """Whether it has asked anything, and since when it waits, in the loop's time."""
        return self._requests > 0, self._since

    @property
    def idle(self) -> bool:
        """True while no request runs here; a half-sent header is none."""
        return self._ended or (self._in_head and self._task is None and not self._waiting)

    # --- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or make room for it, or refuse it."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._parser = httptools.HttpRequestParser(self)
        self._over_tcp = transport.get_extra_info("socket").family != sockets.AF_UNIX
        self._heads = self._hub.heads_over_tcp if self._over_tcp else self._hub.heads
        self._since = self._loop.time()
        self.deadline = self._since + HEADER_SECONDS
        others = list(self._hub.connections)
        self._hub.add(self)
        if len(others) < MAX_CONNECTIONS:
            return
        idle = [one for one in others if one.idle]
        if not idle:
            said = f"{MAX_CONNECTIONS} connections are at work, which is the limit"
            self._refuse(503, said, {"Retry-After": "1"})
            return
        # Those that have never asked anything go first: a flood of connections must not cost clients theirs.
        longest = min(idle, key=lambda one: one.age)
        self._hub.discard(longest)
        longest.leave()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection; nobody waits for what still runs."""
        self._hub.discard(self)
        self._is_last = self._ended = True
        self.deadline = _NEVER
        self._waiting.clear()
        self._release(self._held)
        if self._task is not None:
            self._task.cancel()
        self._parser = None  # it and this hold each other

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        if self._is_last:
            return
        if self._between and self._task is None and not self._waiting and self._writable:
            head = self._heads.find(data)
            if head is not None and self._hub.held_bytes + len(data) <= HELD_BODIES * self._max_body:
                self._take(head, data)
                return
        if not self._head_began:
            self._head_began = True
            self.deadline = self._loop.time() + HEADER_SECONDS
        self._unparsed += len(data)
        before = self._requests if self._between else None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._is_last = True  # what follows would be another protocol
        except httptools.HttpParserError as error:
            if not self._is_last:  # or it is what follows the last request
                _log.debug("refused", exc_info=error)
                known = isinstance(error.__context__, RefusedError)
                self._refuse(400, str(error.__context__) if known else "this is no HTTP/1.1 request")
        else:
            if self._unparsed > MAX_HEADER_BYTES:
                self._refuse(431, f"the header is longer than the limit of {MAX_HEADER_BYTES} bytes")
            elif before is not None and self._between and self._requests == before + 1:
                self._learn(data)
        self._advance()

    def _take(self, head: KnownHead, data: bytes) -> None:
        """Answer a whole request, as if the parser had seen it."""
        self._requests += 1
        self._head_began, self._unparsed = False, 0
        self.deadline = _NEVER
        body = data[head.size :]
        self._hold(len(body))
        self._begin(_Pending(head.work, body, True, True))
        self._read_or_not()

    def _learn(self, data: bytes) -> None:
        """Know the head of `data`, which is one whole request, the next time; not one that is peculiar."""
        asked = self._waiting[-1] if self._waiting else None
        if asked is None or not isinstance(asked.decision, Lasting):
            return
        if asked.keep_alive and asked.with_body and b"content-length" in self._headers:
            self._heads.note(data, len(asked.body), asked.decision)

    def eof_received(self) -> bool:
        """Keep the connection open for the answers to whole requests, and for nothing else."""
        if self._ended or not (self._task is not None or self._waiting):
            return False
        self._is_last = self._half_closed = True
        return True

    def pause_writing(self) -> None:
        """Answer nothing more until the client has read."""
        self._writable = False
        self._unsent = self._transport.get_write_buffer_size()
        self.deadline = min(self.deadline, self._loop.time() + STALLED_SECONDS)

    def resume_writing(self) -> None:
        """Go on."""
        self._writable = True
        if not self._ended:
            self._begin_idle() if self._in_head else self._begin_body()
        self._advance()

    # --- the parser's calls

    def on_message_begin(self) -> None:
        """Begin a header."""
        self._between = False
        self._url = b""
        self._headers = {}

    def on_url(self, url: bytes) -> None:
        """Take a part of the request's target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; those after a body say nothing here."""
        if self._in_head:
            name, before = name.lower(), self._headers
            before[name] = before[name] + b", " + value if name in before else value

    def on_headers_complete(self) -> None:
        """Decide what can be decided before the body."""
        headers = self._headers
        if self._parser.should_upgrade() and (b"content-length" in headers or b"transfer-encoding" in headers):
            raise RefusedError("connections cannot be upgraded here; send the request as plain HTTP/1.1")
        self._method = self._parser.get_method().decode()
        head = Head(self._method, path_of(self._url, headers), headers, self._over_tcp)
        self._in_head = False
        self._unparsed = 0
        self._requests += 1
        self._parts, self._size = [], 0
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self._max_body:
            self._decision = self._app.too_long(length.decode())
        else:
            self._decision = self._app.begin(head)
        self._begin_body()

    def on_body(self, body: bytes) -> None:
        """Take a part of a body that is wanted."""
        self._unparsed = 0
        if self._decision is None or isinstance(self._decision, Reply):
            return
        self._size += len(body)
        self._hold(len(body))
        if self._size > self._max_body:
            self._drop(self._app.too_long(""))
        elif self._hub.held_bytes > HELD_BODIES * self._max_body:
            self._drop(_error(503, "the bodies of other requests fill the memory for them", {"Retry-After": "1"}))
        else:
            self._parts.append(body)

    def _drop(self, reply: Reply) -> None:
        self._decision, self._parts = reply, []
        self._release(self._size)

    def _hold(self, size: int) -> None:
        self._held += size
        self._hub.held_bytes += size

    def _release(self, size: int) -> None:
        self._held -= size
        self._hub.held_bytes -= size

    def on_chunk_header(self) -> None:
        """Nothing; where this is missing, chunks are counted as a header."""

    def on_message_complete(self) -> None:
        """Let the request wait for its turn; a next header may follow."""
        self._in_head, self._head_began, self._between = True, False, True
        self._unparsed = 0
        keep = self._keep_alive()
        if self._decision is None:  # answered already
            self._begin_idle()
            if not keep:
                self._end()
            return
        parts = self._parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        self._waiting.append(_Pending(self._decision, body, keep, self._method != "HEAD"))
        self._decision, self._parts = None, []
        self._is_last = self._is_last or not keep
        self.deadline = _NEVER

    def _keep_alive(self) -> bool:
        if not self._parser.should_keep_alive():
            return False
        return b"connection" not in self._headers or self._parser.get_http_version() != "1.0"

    # --- answering

    def _advance(self) -> None:
        self._next()
        if not self._in_head:
            self._answer_early()
        self._read_or_not()

    def _next(self) -> None:
        """Answer what waits, as long as nothing runs and the client reads."""
        turns = 0
        while self._waiting and self._task is None and self._writable and not self._ended:
            turns += 1
            if turns > _TURNS:
                self._loop.call_soon(self._advance)
                return
            self._begin(self._waiting.popleft())

    def _begin(self, asked: _Pending) -> None:
        """Answer a request, at once where that needs no waiting."""
        reply = asked.decision
        if not isinstance(reply, Reply):
            working = reply(asked.body)
            try:  # most small models answer without waiting, and a task costs as much as their parsing
                awaited = working.send(None)
            except StopIteration as done:
                reply = done.value
            else:
                self._task = self._loop.create_task(self._answer(asked, rest_of(working, awaited)))
                return
        self._release(len(asked.body))
        self._send(reply, asked.keep_alive, asked.with_body)

    async def _answer(self, asked: _Pending, working: Awaitable[Reply]) -> None:
        try:
            reply = await working
        except BaseException:  # the client left, or a bug that the application did not catch: never leave it waiting
            self._transport.abort()
            raise
        self._task = None
        self._release(len(asked.body))
        self._send(reply, asked.keep_alive, asked.with_body)
        self._advance()

    def _answer_early(self) -> None:
        """Say before the body has come what is known: to send it, or that nobody wants it."""
        if self._task is not None or self._waiting or self._ended or self._decision is None:
            return
        if isinstance(self._decision, Reply):
            decision, self._decision = self._decision, None
            self._send(decision, True, self._method != "HEAD")
            self.deadline = self._loop.time() + LINGER_SECONDS
        elif self._headers.get(b"expect", b"").lower() == b"100-continue" and not self._parts:
            self._headers[b"expect"] = b""
            self._transport.write(_CONTINUE)

    def _send(self, reply: Reply, keep_alive: bool, with_body: bool) -> None:
        self._app.count(reply.status)
        if self._ended or self._transport.is_closing():
            return
        keep_alive = keep_alive and not self._hub.draining
        head = answer_head(reply.status, len(reply.body), reply.headers, keep_alive=keep_alive)
        if not with_body:
            self._transport.write(head)
        elif len(reply.body) <= _ONE_WRITE:
            self._transport.write(head + reply.body)
        else:
            self._transport.write(head)
            self._transport.write(reply.body)
        if not keep_alive or (self._is_last and not self._waiting):
            self._end()
        elif self._in_head and not self._waiting:
            self._begin_idle()

    def _refuse(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        """Let what is wrong here be the last answer; requests before it have theirs."""
        self._is_last = True
        if self._decision is None and not self._in_head:  # it has its answer, and only its body is wrong
            self._end()
            return
        self._waiting.append(_Pending(_error(status, message, headers), b"", False, True))
        self._in_head = True
        self._next()

    def _end(self) -> None:
        """Nothing more is said; what the client still says is dropped for a while."""
        if self._ended:
            return
        self._is_last = self._ended = True
        self._waiting.clear()
        self.deadline = self._loop.time() + LINGER_SECONDS
        self._unsent = self._transport.get_write_buffer_size()
        if self._half_closed:
            self._transport.close()  # which sends what was written first
        elif not self._transport.is_closing():
            self._transport.write_eof()

    # --- limits

    def _begin_idle(self) -> None:
        self._since = self._loop.time()
        self.deadline = self._since + (HEADER_SECONDS if self._head_began else KEEP_ALIVE_SECONDS)

    def _begin_body(self) -> None:
        self.deadline = self._loop.time() + BODY_SECONDS

    def _read_or_not(self) -> None:
        """Read while nothing waits, so that no client can make requests pile up here."""
        wanted = self._ended or (not self._waiting and self._writable)
        if wanted is self._reading or self._transport.is_closing():
            return
        self._reading = wanted
        if wanted:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def late(self, now: float) -> None:
        """The deadline has passed."""
        unsent = self._transport.get_write_buffer_size()
        if unsent and unsent < self._unsent:  # slow, and not stalled
            self._unsent, self.deadline = unsent, now + STALLED_SECONDS
        elif self._ended or not self._writable:
            self.abort()
        elif self._task is not None or self._waiting:  # its time runs when those before it have their answers
            self.deadline = now + BODY_SECONDS
        elif not self._in_head:
            self._refuse(408, f"the request did not arrive within {BODY_SECONDS:.0f} s")
        elif self._head_began:
            self._refuse(408, f"no whole header came within {HEADER_SECONDS:.0f} s")
        else:
            self.close()

    def close(self) -> None:
        """Close when what was written has been sent."""
        self._is_last = self._ended = True
        self._transport.close()
        self.deadline = self._loop.time() + LINGER_SECONDS

    def leave(self) -> None:
        """Close, and do not wait for a client that does not read."""
        if self._transport.get_write_buffer_size():
            self.abort()
        else:
            self.close()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()
