"""A small HTTP/1.1 client on asyncio: kept-alive connections, and nothing left running after a cancel."""

from __future__ import annotations

import asyncio
import contextlib
import socket as sockets
import ssl
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import httptools

from edgekit.waiting import within

IDLE_SECONDS = 20.0  # NATs forget silent connections, mobile ones after 30 s
MAX_ANSWER_BYTES = 64 * 1024**2
MAX_HEADER_BYTES = 64 * 1024
_MAX_IDLE = 8
_KEEP_ALIVE = (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close by a reset, which tells the server that nobody waits


class Url(NamedTuple):
    """The parts of a base URL.

    Attributes:
        is_tls: True for https.
        host, port: Where to connect.
        netloc: Value of the Host header; a name with other letters than ASCII's in the form of IDNA.
        path: Put before every path; percent-encoded.
    """

    is_tls: bool
    host: str
    port: int
    netloc: str
    path: str

    @classmethod
    def of(cls, url: str) -> Url:
        """Parse `url`. Raises ValueError where it is not http:// or https:// with a host."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"the URL is {url!r}, expected http://HOST or https://HOST")
        is_tls = parts.scheme == "https"
        host, netloc = parts.hostname.encode("idna").decode(), parts.netloc.rpartition("@")[2]
        if not netloc.isascii():
            netloc = host if parts.port is None else f"{host}:{parts.port}"
        path = quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~")
        return cls(is_tls, host, parts.port or (443 if is_tls else 80), netloc, path)


def without_user(url: str) -> str:
    """A URL without a user's name and password, for messages and metrics."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")


class HttpReply(NamedTuple):
    """One answer. `headers` are by lower-case name."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class NoAnswerError(OSError):
    """The connection ended, or did not carry HTTP. `began` is True where a part of an answer had arrived."""

    def __init__(self, message: str, *, began: bool) -> None:
        super().__init__(message)
        self.began = began


class HttpClient:
    """Requests to one server. A cancelled request closes its connection, so that the server can stop too.

    Answers are asked for as they are: without ``Accept-Encoding`` a proxy may compress them.

    Silent connections are dropped after `idle_seconds`, and TCP watches the others (keepalive). A request on a
    connection that was used before, and that fails before any byte of an answer, is sent once more on a new one: the
    server, or a NAT on the way, had forgotten the connection. `may_retry` is asked before.

    Args:
        url: Base URL. Raises ValueError as `Url.of`.
        idle_seconds: How long an unused connection is kept.
        tls: For https; None for the system's authorities and no certificate.
        may_retry: Whether a request may be sent once more now; takes it from a budget.
    """

    def __init__(
        self,
        url: str,
        *,
        idle_seconds: float = IDLE_SECONDS,
        tls: ssl.SSLContext | None = None,
        may_retry: Callable[[], bool] = lambda: True,
    ) -> None:
        self._url = Url.of(url)
        self._idle_seconds = idle_seconds
        self._idle: list[_Connection] = []  # the one used last at the end
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tls, self._may_retry = tls, may_retry
        self._reading: asyncio.Future[ssl.SSLContext] | None = None

    async def request(
        self, method: str, path: str, *, headers: Mapping[str, str], body: bytes = b"", timeout_seconds: float
    ) -> HttpReply:
        """Send a request and read the whole answer.

        Raises:
            asyncio.TimeoutError: there was no whole answer in time.
            OSError: there is no connection (NoAnswerError: it ended, or did not carry HTTP).
        """
        return await within(timeout_seconds, self._request(method, path, headers, body, timeout_seconds))

    def close(self) -> None:
        """Close the unused connections."""
        idle, self._idle = self._idle, []
        for connection in idle:
            with contextlib.suppress(RuntimeError):  # their event loop has ended
                connection.close()

    async def _request(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, timeout_seconds: float
    ) -> HttpReply:
        lines = [f"{method} {self._url.path}{path} HTTP/1.1", f"Host: {self._url.netloc}", "Accept-Encoding: identity"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines += [f"Content-Length: {len(body)}"] if body or method != "GET" else []
        data = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body
        reused = self._take()
        if reused is not None:
            # Bytes that nobody acknowledges for so long went into a forgotten connection; a new one has time left.
            reused.watch_unacknowledged(timeout_seconds / 4)
            try:
                return await self._exchange(reused, data)
            except NoAnswerError as error:
                if error.began:
                    raise
                self.close()  # the others are older
                if not self._may_retry():
                    raise
        return await self._exchange(await self._connect(), data)

    async def _exchange(self, connection: _Connection, data: bytes) -> HttpReply:
        try:
            reply = await connection.exchange(data)
        except BaseException:
            connection.abort()
            raise
        if connection.is_reusable:
            self._idle = [*self._idle, connection][-_MAX_IDLE:]
        else:
            connection.close()
        return reply

    def _take(self) -> _Connection | None:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._idle, self._loop, self._reading = [], loop, None
        usable = [one for one in self._idle if one.is_reusable and loop.time() - one.used_at < self._idle_seconds]
        for old in self._idle:
            if old not in usable:
                old.close()
        self._idle = usable
        return usable.pop() if usable else None

    async def _context(self) -> ssl.SSLContext:
        """The system's authorities are read once: it takes long, and holds up everything else of this process."""
        if self._tls is None:
            if self._reading is None:
                self._reading = asyncio.get_running_loop().run_in_executor(None, ssl.create_default_context)
            self._tls = await asyncio.shield(self._reading)
        return self._tls

    async def _connect(self) -> _Connection:
        url, loop = self._url, asyncio.get_running_loop()
        server_name = url.host if url.is_tls else None
        context = await self._context() if url.is_tls else None
        _, connection = await loop.create_connection(
            _Connection, url.host, url.port, ssl=context, server_hostname=server_name, happy_eyeballs_delay=0.25
        )
        return connection


class _Connection(asyncio.Protocol):
    """One connection; at most one exchange at a time. The methods ``on_...`` are the parser's callbacks."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._waiter: asyncio.Future[HttpReply] | None = None
        self._parser: Any = None
        self._began = self._lost = False
        self.used_at = 0.0
        self._start()

    def _start(self) -> None:
        self._headers: dict[str, str] = {}
        self._parts: list[bytes] = []
        self._size = self._unparsed = 0
        self._status = 0

    @property
    def is_reusable(self) -> bool:
        return not self._lost and self._waiter is None and not self._transport.is_closing()

    async def exchange(self, data: bytes) -> HttpReply:
        """Send `data` and wait for the whole answer. Raises NoAnswerError."""
        if self._lost:
            raise NoAnswerError("the server has closed the connection", began=False)
        loop = asyncio.get_running_loop()
        self._start()
        self._began = False
        self._parser = httptools.HttpResponseParser(self)
        self._waiter = waiter = loop.create_future()
        self._transport.write(data)
        try:
            reply: HttpReply = await waiter
            return reply
        finally:
            self._waiter = self._parser = None
            self.used_at = loop.time()

    def watch_unacknowledged(self, seconds: float) -> None:
        """Fail when the other end acknowledges nothing for so long."""
        self._set("TCP_USER_TIMEOUT", max(int(seconds * 1000), 1))

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        """Close at once, by a reset."""
        socket = self._socket
        if socket is not None:
            with contextlib.suppress(OSError):
                socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, _RESET)
        self._transport.abort()

    @property
    def _socket(self) -> sockets.socket | None:
        found: sockets.socket | None = self._transport.get_extra_info("socket")
        return found

    def _set(self, name: str, value: int) -> None:
        socket, option = self._socket, getattr(sockets, name, None)
        if socket is not None and option is not None:
            with contextlib.suppress(OSError):
                socket.setsockopt(sockets.IPPROTO_TCP, option, value)

    # --- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        socket = self._socket
        if socket is not None:
            with contextlib.suppress(OSError):
                socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_KEEPALIVE, 1)
        for name, value in (("TCP_NODELAY", 1), *_KEEP_ALIVE):
            self._set(name, value)

    def data_received(self, data: bytes) -> None:
        if self._waiter is None:  # nothing was asked
            self._transport.abort()
            return
        self._began = True
        self._unparsed += len(data)
        with self._failing():
            self._parser.feed_data(data)
            if self._unparsed > MAX_HEADER_BYTES:
                raise ValueError(f"a header of more than {MAX_HEADER_BYTES} bytes")

    def eof_received(self) -> None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        is_open_ended = self._status and "content-length" not in self._headers
        if is_open_ended and exc is None and "chunked" not in self._headers.get("transfer-encoding", ""):
            self._finish()
        self._fail(f"the connection ended before the answer: {exc}" if exc else "the server closed the connection")

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except (httptools.HttpParserError, ValueError) as error:
            self._fail(f"the answer is no HTTP that can be used: {error.__context__ or error}")

    def _fail(self, message: str) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(NoAnswerError(message, began=self._began))

    def _finish(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(HttpReply(self._status, self._headers, b"".join(self._parts)))

    # --- the parser's callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._status:
            self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()
        self._unparsed = 0
        self._check_size(int(self._headers.get("content-length", "0")))

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0
        self._size += len(body)
        self._check_size(self._size)
        self._parts.append(body)

    def _check_size(self, size: int) -> None:
        if size > MAX_ANSWER_BYTES:
            self._parts = []
            raise ValueError(f"it is longer than {MAX_ANSWER_BYTES} bytes")

    def on_chunk_header(self) -> None:
        self._unparsed = 0

    def on_message_complete(self) -> None:
        if self._status < 200:  # an interim answer
            self._start()
            return
        # uvicorn, under KServe and MLServer, closes the connection after an exception and does not announce it.
        if not self._parser.should_keep_alive() or self._status == 500:
            self._transport.close()
        self._finish()
