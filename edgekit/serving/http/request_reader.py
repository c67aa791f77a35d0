"""Reads the requests of one connection with the httptools parser, and bounds the size of their bodies."""

from __future__ import annotations

from typing import Any, Protocol

import httptools
import msgspec

from edgekit.serving.http.connections import Connections
from edgekit.serving.http.head_cache import HeadRefusedError, path_of
from edgekit.serving.http.messages import Head, Reply, Work
from edgekit.serving.oip import codec as oip


class Request(msgspec.Struct, frozen=True):
    """A complete request that waits for its answer.

    Attributes:
        decision: The answer, or the work that makes it from the body.
        body: The body; empty where the answer does not need it.
        keep_alive: False where the client wants the connection to close after the answer.
        with_body: False for HEAD: the answer's body is not sent.
    """

    decision: Reply | Work
    body: bytes
    keep_alive: bool
    with_body: bool


class RequestHandler(Protocol):
    """The connection that a reader reads for."""

    peer: str  # address of the client; empty on a UNIX socket

    def head_read(self) -> None:
        """A head is complete; the time limit of the body begins."""
        ...

    def request_read(self, request: Request) -> None:
        """A request is complete."""
        ...

    def answered_request_read(self, keep_alive: bool) -> None:
        """A request is complete that was answered before its body had arrived."""
        ...

    def buffer(self, size: int) -> None:
        """Count bytes of a body as kept in memory until its request is answered; a negative size takes them back."""
        ...


def error_reply(status: int, message: str, headers: dict[str, str] | None = None) -> Reply:
    """An error as the protocol's JSON document."""
    return Reply(status, oip.error_document(message), {"Content-Type": oip.JSON_TYPE, **(headers or {})})


class RequestReader:
    """The state of the request that is being read. The methods ``on_...`` are the parser's callbacks.

    Attributes:
        in_head: True while a header is being read, and between requests.
        head_began: True once a byte of the present header has arrived. True at first: the time of the first header runs
            from the connection on.
        between: True while no byte of an incomplete request has arrived.
        unparsed_bytes: Bytes since the parser last completed a header, a piece of a body, or a request.
        requests: Heads that were read.
        method, headers: Of the present request.
        decision: The answer to the present request, or the work that makes it; None where it is answered already.
        parts: Pieces of the present body.
        accepts_interim: False for a client that speaks HTTP/1.0, which has no interim answers.
    """

    # Without slots, Python looks so many attributes up in a dictionary, which costs every request time.
    __slots__ = (
        *("in_head", "head_began", "between", "unparsed_bytes", "requests", "method", "headers", "decision", "parts"),
        "accepts_interim",
        *("_handler", "_connections", "_app", "_max_body", "_over_tcp", "_parser", "_url", "_size"),
    )

    def __init__(self, handler: RequestHandler, connections: Connections, *, over_tcp: bool) -> None:
        self._handler = handler
        self._connections = connections
        self._app = connections.app
        self._max_body = connections.app.max_request_bytes
        self._over_tcp = over_tcp
        self._parser: Any = httptools.HttpRequestParser(self)
        self._url = b""
        self._size = 0
        self.in_head = self.head_began = self.between = True
        self.unparsed_bytes = self.requests = 0
        self.method = ""
        self.headers: dict[bytes, bytes] = {}
        self.decision: Reply | Work | None = None
        self.parts: list[bytes] = []
        self.accepts_interim = True

    def feed(self, data: bytes) -> None:
        """Parse bytes that arrived.

        Raises:
            httptools.HttpParserUpgrade: the client wants another protocol after this request.
            httptools.HttpParserError: the bytes are not HTTP/1.1, or a callback raised HeadRefusedError.
        """
        self.unparsed_bytes += len(data)
        self._parser.feed_data(data)

    def close(self) -> None:
        """Drop the parser, which refers to this reader as this reader refers to it."""
        self._parser = None

    def on_message_begin(self) -> None:
        """Begin a header."""
        self.between = False
        self._url = b""
        self.headers = {}

    def on_url(self, url: bytes) -> None:
        """Take a part of the request's target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; trailers after a body are ignored."""
        if self.in_head:
            name, headers = name.lower(), self.headers
            headers[name] = headers[name] + b", " + value if name in headers else value

    def on_headers_complete(self) -> None:
        """Ask the application for the answer, or for the work that makes it from the body."""
        headers = self.headers
        if self._parser.should_upgrade() and (b"content-length" in headers or b"transfer-encoding" in headers):
            raise HeadRefusedError("connections cannot be upgraded here; send the request as plain HTTP/1.1")
        self.method = self._parser.get_method().decode()
        head = Head(self.method, path_of(self._url, headers), headers, self._over_tcp, self._handler.peer)
        self.in_head = False
        self.accepts_interim = self._parser.get_http_version() != "1.0"
        self.unparsed_bytes = 0
        self.requests += 1
        self.parts, self._size = [], 0
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self._max_body:
            self.decision = self._app.too_long(length.decode())
        else:
            self.decision = self._app.begin(head)
        self._handler.head_read()

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body where the answer needs it."""
        self.unparsed_bytes = 0
        if self.decision is None or isinstance(self.decision, Reply):
            return
        self._size += len(body)
        self._handler.buffer(len(body))
        if self._size > self._max_body:
            self._drop_body(self._app.too_long(""))
        elif self._connections.buffered_bytes > self._connections.max_buffered_bytes:
            message = "the bodies of other requests fill the memory for bodies; try again"
            self._drop_body(error_reply(503, message, {"Retry-After": "1"}))
        else:
            self.parts.append(body)

    def _drop_body(self, reply: Reply) -> None:
        self.decision, self.parts = reply, []
        self._handler.buffer(-self._size)

    def on_chunk_header(self) -> None:
        """Do nothing. Without this callback httptools does not tell chunks from a header."""

    def on_message_complete(self) -> None:
        """Hand the request over; a next header may follow."""
        self.in_head, self.head_began, self.between = True, False, True
        self.unparsed_bytes = 0
        keep_alive = self._keep_alive()
        if self.decision is None:
            self._handler.answered_request_read(keep_alive)
            return
        parts = self.parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        request = Request(self.decision, body, keep_alive, self.method != "HEAD")
        self.decision, self.parts = None, []
        self._handler.request_read(request)

    def _keep_alive(self) -> bool:
        if not self._parser.should_keep_alive():
            return False
        return b"connection" not in self.headers or self._parser.get_http_version() != "1.0"
