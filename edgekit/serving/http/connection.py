"""HTTP/1.1 connections on asyncio: the order of answers, time limits, closing. `request_reader` parses the requests."""

from __future__ import annotations

import asyncio
import logging
import math
import socket as sockets
from collections import deque
from collections.abc import Awaitable

import httptools

from edgekit.serving.http.connections import WORKED, Connections
from edgekit.serving.http.head_cache import CachedHead, HeadRefusedError, answer_head
from edgekit.serving.http.messages import RepeatableWork, Reply, rest_of
from edgekit.serving.http.request_reader import Request, RequestReader, error_reply

_log = logging.getLogger(__name__)

_NEVER = math.inf
_TURNS = 8  # pipelined requests that are answered before other connections get their turn
_ONE_WRITE = 64 * 1024  # a head and a body up to this are copied into one write
_STRANGERS = (401, 403)  # statuses of clients that are not let in; their connections close
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Connection(asyncio.Protocol):
    """One connection. Requests are answered one after the other, in the order of their arrival.

    `Limits` has the numbers:

    * Above the limit of connections, an idle one is closed (`first_to_close` has the order). Where all connections are
      at work, the new one gets 503. A wrong key closes its connection.
    * A header that is too long gets 431. A header or a body that takes too long gets 408.
    * A request that is refused by its header is answered before its body has arrived. The body is then read and dropped
      for a while, because closing at once would make the client's system discard the answer.
    * A client that reads nothing of its answer for too long is disconnected. While it reads nothing, the server reads
      nothing from it either.
    * Bytes that are not HTTP get 400, as JSON like every other error. They are counted in the metrics and not logged,
      because they would fill the log.
    * A client that closes its sending side after a complete request gets its answer. A client that has closed both
      sides looks the same; it is sent ``100 Continue`` until its system objects, and then its request is cancelled.

    Attributes:
        deadline: In the loop's time; `late` is called some time after it.
    """

    # Without slots, Python looks so many attributes up in a dictionary, which costs every request time.
    __slots__ = (
        *(
            "deadline",
            "peer",
            "_worked",
            "_connections",
            "_limits",
            "_app",
            "_loop",
            "_reader",
            "_transport",
            "_heads",
            "_idle_since",
        ),
        *("_buffered_bytes", "_waiting", "_task", "_is_last", "_half_closed", "_ended", "_reading"),
        *("_writable", "_unsent", "_header_seconds", "_keep_alive_seconds", "_given_up"),
    )

    def __init__(self, connections: Connections) -> None:
        self.deadline = _NEVER
        self.peer = ""
        self._worked = False  # a request was let in
        self._connections = connections
        self._limits = connections.limits
        self._header_seconds, self._keep_alive_seconds = self._limits.header_seconds, self._limits.keep_alive_seconds
        self._app = connections.app
        self._loop = connections.loop
        self._reader: RequestReader
        self._transport: asyncio.Transport
        self._heads = connections.heads
        self._idle_since = 0.0
        self._buffered_bytes = 0  # of bodies that are not answered yet
        self._waiting: deque[Request] = deque()
        self._task: asyncio.Task[None] | None = None  # answers a request that is not in `_waiting` any more
        self._is_last = False  # nothing more is parsed
        self._half_closed = False  # by the client
        self._given_up = False  # the present request got 503 because the server stops
        self._ended = False  # the last answer is written
        self._reading = True
        self._writable = True
        self._unsent = 0  # bytes, when the client was last seen to read

    @property
    def age(self) -> tuple[int, float]:
        """Its work so far, and since when it is idle, in the loop's time; see `OpenConnection.age`."""
        return WORKED if self._worked else min(self._reader.requests, 1), self._idle_since

    @property
    def idle(self) -> bool:
        """True while no request is being read or answered; an incomplete header does not count."""
        return self._ended or (self._reader.in_head and self._task is None and not self._waiting)

    # --- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept the connection, in place of an idle one above the limit, or refuse it."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        over_tcp = transport.get_extra_info("socket").family != sockets.AF_UNIX
        self._reader = RequestReader(self, self._connections, over_tcp=over_tcp)
        self._heads = self._connections.heads_over_tcp if over_tcp else self._connections.heads
        self._idle_since = self._loop.time()
        self.deadline = self._idle_since + self._limits.header_seconds
        if over_tcp:
            self.peer = str((transport.get_extra_info("peername") or ("",))[0])
        full = self._connections.make_room(self.peer)
        self._connections.add(self)
        if full:
            self._refuse(503, full, {"Retry-After": "1"})

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection, and cancel the answer that nobody waits for any more."""
        self._connections.discard(self)
        self._is_last = self._ended = True
        self.deadline = _NEVER
        self._waiting.clear()
        self.buffer(-self._buffered_bytes)
        if self._task is not None:
            self._task.cancel()
        self._reader.close()

    def data_received(self, data: bytes) -> None:
        """Read requests from bytes that arrived, and answer."""
        if self._is_last:
            return
        reader = self._reader
        if reader.between and self._task is None and not self._waiting and self._writable:
            head = self._heads.find(data)
            if (
                head is not None
                and self._connections.buffered_bytes + len(data) <= self._connections.max_buffered_bytes
            ):
                self._answer_known(head, data)
                return
        if not reader.head_began:
            reader.head_began = True
            self.deadline = self._loop.time() + self._limits.header_seconds
        before = reader.requests if reader.between else None
        try:
            reader.feed(data)
        except httptools.HttpParserUpgrade:
            self._is_last = True  # the bytes after this request are another protocol
        except httptools.HttpParserError as error:
            if not self._is_last:  # else the error is in bytes after the last request, which are ignored
                _log.debug("refused", exc_info=error)
                known = isinstance(error.__context__, HeadRefusedError)
                self._refuse(400, str(error.__context__) if known else "this is no HTTP/1.1 request")
        else:
            if reader.unparsed_bytes > self._limits.header_bytes:
                self._refuse(431, f"the header is longer than the limit of {self._limits.header_bytes} bytes")
            elif before is not None and reader.between and reader.requests == before + 1:
                self._learn_head(data)
        self._advance()

    def _answer_known(self, head: CachedHead, data: bytes) -> None:
        """Answer a whole request with a known head, without the parser."""
        reader = self._reader
        reader.requests += 1
        reader.head_began, reader.unparsed_bytes = False, 0
        self.deadline = _NEVER
        body = data[head.size :]
        self.buffer(len(body))
        self._begin(Request(head.work, body, True, True))
        self._read_or_not()

    def _learn_head(self, data: bytes) -> None:
        """Add the head of `data`, which is one whole request, to the cache, where it is an ordinary one."""
        request = self._waiting[-1] if self._waiting else None
        if request is None or not isinstance(request.decision, RepeatableWork):
            return
        if request.keep_alive and request.with_body and b"content-length" in self._reader.headers:
            self._heads.note(data, len(request.body), request.decision)

    def eof_received(self) -> bool:
        """Keep the connection open only for the answers to complete requests."""
        if self._ended or not (self._task is not None or self._waiting) or not self._transport.can_write_eof():
            return False
        self._is_last = self._half_closed = True
        self._probe()
        return True

    def _probe(self) -> None:
        """Find out whether the client that sends nothing more still waits; any client accepts an interim answer."""
        if self._ended or self._transport.is_closing() or not self._reader.accepts_interim:
            return
        if self._transport.get_write_buffer_size() == 0:
            self._transport.write(_CONTINUE)
        self._loop.call_later(self._limits.probe_seconds, self._probe)

    def pause_writing(self) -> None:
        """Stop answering until the client has read."""
        self._writable = False
        self._unsent = self._transport.get_write_buffer_size()
        self.deadline = min(self.deadline, self._loop.time() + self._limits.stalled_seconds)

    def resume_writing(self) -> None:
        """Answer again."""
        self._writable = True
        if not self._ended:
            self._begin_idle() if self._reader.in_head else self.head_read()
        self._advance()

    # --- the reader's calls

    def head_read(self) -> None:
        """Begin the time limit of the body."""
        self.deadline = self._loop.time() + self._limits.body_seconds

    def request_read(self, request: Request) -> None:
        """Let the request wait for its turn."""
        self._waiting.append(request)
        self._is_last = self._is_last or not request.keep_alive
        self.deadline = _NEVER

    def answered_request_read(self, keep_alive: bool) -> None:
        """Wait for the next request, or close."""
        self._begin_idle()
        if not keep_alive:
            self._end()

    def buffer(self, size: int) -> None:
        """Count bytes of bodies that are in memory; a negative size takes them back."""
        self._buffered_bytes += size
        self._connections.buffered_bytes += size

    # --- answering

    def _advance(self) -> None:
        self._answer_waiting()
        if not self._reader.in_head:
            self._answer_early()
        self._read_or_not()

    def _answer_waiting(self) -> None:
        """Answer waiting requests while none is being answered and the client reads."""
        turns = 0
        while self._waiting and self._task is None and self._writable and not self._ended:
            turns += 1
            if turns > _TURNS:
                self._loop.call_soon(self._advance)
                return
            self._begin(self._waiting.popleft())

    def _begin(self, request: Request) -> None:
        """Answer a request, at once where that needs no waiting."""
        reply = request.decision
        if not isinstance(reply, Reply):
            self._worked = True
            working = reply(request.body)
            try:  # most small models answer without waiting, and a task costs as much as their parsing
                awaited = working.send(None)
            except StopIteration as done:
                reply = done.value
            else:
                self._task = self._loop.create_task(self._answer(request, rest_of(working, awaited)))
                return
        self.buffer(-len(request.body))
        self._send(reply, request.keep_alive and reply.status not in _STRANGERS, request.with_body)

    async def _answer(self, request: Request, working: Awaitable[Reply]) -> None:
        reply = None
        try:
            reply = await working
        finally:
            if (
                reply is None and not self._given_up
            ):  # cancelled, or a bug in the application: the client must not wait for ever
                self._transport.abort()
        self._task = None
        self.buffer(-len(request.body))
        self._send(reply, request.keep_alive, request.with_body)
        self._advance()

    def _answer_early(self) -> None:
        """Send what is known before the body has arrived: 100 Continue, or the answer that does not need the body."""
        reader = self._reader
        if self._task is not None or self._waiting or self._ended or reader.decision is None:
            return
        if isinstance(reader.decision, Reply):
            reply, reader.decision = reader.decision, None
            self._send(reply, reply.status not in _STRANGERS, reader.method != "HEAD")
            self.deadline = self._loop.time() + self._limits.linger_seconds
        elif reader.headers.get(b"expect", b"").lower() == b"100-continue" and not reader.parts:
            reader.headers[b"expect"] = b""
            self._transport.write(_CONTINUE)

    def _send(self, reply: Reply, keep_alive: bool, with_body: bool) -> None:
        self._app.count(reply.status)
        if self._ended or self._transport.is_closing():
            return
        keep_alive = keep_alive and not self._connections.draining
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
        elif self._reader.in_head and not self._waiting:
            self._begin_idle()

    def _refuse(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        """Make an error the last answer of this connection. Requests before it are answered first."""
        self._is_last = True
        reader = self._reader
        if reader.decision is None and not reader.in_head:  # the request is answered, only its body is wrong
            self._end()
            return
        self._waiting.append(Request(error_reply(status, message, headers), b"", False, True))
        reader.in_head = True
        self._answer_waiting()

    def _end(self) -> None:
        """Send nothing more; drop what the client still sends for a while, then close."""
        if self._ended:
            return
        self._is_last = self._ended = True
        self._waiting.clear()
        self.deadline = self._loop.time() + self._limits.linger_seconds
        self._unsent = self._transport.get_write_buffer_size()
        if self._half_closed or not self._transport.can_write_eof():  # TLS cannot close one side only
            self._transport.close()  # which sends what was written first
        elif not self._transport.is_closing():
            self._transport.write_eof()

    # --- limits

    def _begin_idle(self) -> None:
        self._idle_since = now = self._loop.time()
        self.deadline = now + (self._header_seconds if self._reader.head_began else self._keep_alive_seconds)

    def _read_or_not(self) -> None:
        """Read only while no request waits, so that no client can make requests pile up in memory."""
        wanted = self._ended or (not self._waiting and self._writable)
        if wanted is self._reading or self._transport.is_closing():
            return
        self._reading = wanted
        if wanted:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def late(self, now: float) -> None:
        """Act on the passed deadline."""
        unsent = self._transport.get_write_buffer_size()
        if unsent and unsent < self._unsent:  # the client is slow, and not stalled
            self._unsent, self.deadline = unsent, now + self._limits.stalled_seconds
        elif self._ended or not self._writable:
            self.abort()
        elif self._task is not None or self._waiting:  # the next body's time begins when these are answered
            self.deadline = now + self._limits.body_seconds
        elif not self._reader.in_head:
            self._refuse(408, f"the request did not arrive within {self._limits.body_seconds:.0f} s")
        elif self._reader.head_began:
            self._refuse(408, f"no complete header arrived within {self._limits.header_seconds:.0f} s")
        else:
            self.close()

    def close(self) -> None:
        """Close when what was written has been sent."""
        self._is_last = self._ended = True
        self._transport.close()
        self.deadline = self._loop.time() + self._limits.linger_seconds

    def give_up(self) -> None:
        """Answer the present request with 503, and close; see `Connections.give_up`."""
        is_waited_for = self._task is not None or bool(self._waiting) or not self._reader.in_head
        if self._ended or not is_waited_for or self._transport.is_closing():
            self.close()
            return
        task, self._task, self._given_up = self._task, None, True
        if task is not None:
            task.cancel()
        self._waiting.clear()
        self._send(error_reply(503, "the server is stopping; try again", {"Retry-After": "1"}), False, True)

    def leave(self) -> None:
        """Close, and do not wait for a client that does not read."""
        if self._transport.get_write_buffer_size():
            self.abort()
        else:
            self.close()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()
