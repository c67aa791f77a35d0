"""HTTP/1.1 connections with limits: how many, how long a header may be and take, and what is said to nonsense."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from edgekit.serving import oip

_log = logging.getLogger(__name__)

MAX_CONNECTIONS = 256
MAX_HEADER_BYTES = 64 * 1024
HEADER_SECONDS = 20.0
BODY_SECONDS = 30.0
LINGER_SECONDS = 5.0

_REASONS = {
    400: "Bad Request",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


class _RefusedError(Exception):
    """A header that is well-formed and not served; the parser wraps it."""


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which alone takes any number of connections, headers without end, and clients that wait.

    * Over MAX_CONNECTIONS the connection that has been without a request for the longest is closed, one that never had
      any first; where all are at work, the new one gets 503.
    * A header (or what follows the body) over MAX_HEADER_BYTES gets 431, one that takes over HEADER_SECONDS 408,
      and so does a body over BODY_SECONDS.
    * After an answer that a client did not wait for (413), what it still sends is read and dropped for LINGER_SECONDS:
      closing at once would make its system throw the answer away.
    * What is no HTTP gets 400, as JSON like every other error. It is counted and not logged, or it would fill the log.
    * A client that closes its sending side after a whole request gets its answer.
    """

    refused: Callable[[int], None]  # set by `limited`

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_header = True  # between requests too
        self._unparsed = 0  # bytes since the parser last came to the end of something
        self._timer: asyncio.TimerHandle | None = None
        self._idle_since = 0.0
        self._refused = False
        self._has_body_timer = False

    @property
    def idle(self) -> bool:
        """True while no request runs here; a half-sent header is none."""
        return self._refused or (self._in_header and (self.cycle is None or self.cycle.response_complete))

    # --- asyncio

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or make room for it, or refuse it."""
        others = [one for one in self.connections if isinstance(one, LimitedProtocol)]
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        self._start_timer()
        if len(others) < MAX_CONNECTIONS:
            return
        idle = [one for one in others if one.idle]
        if not idle:
            self._refuse(503, f"{MAX_CONNECTIONS} connections are at work, which is the limit", "Retry-After: 1\r\n")
            return
        # Those that have never asked anything go first: a flood of connections must not cost clients theirs.
        longest = min(idle, key=lambda one: (one.cycle is not None, one._idle_since))
        self.connections.discard(longest)
        longest.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        if self._refused or self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        if self._in_header and self._timer is None:
            self._start_timer()
        self._unparsed += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._answer_last()  # what follows would be another protocol
        except httptools.HttpParserError as error:
            _log.debug("refused", exc_info=error)
            said = error.__context__ if isinstance(error.__context__, _RefusedError) else "this is no HTTP/1.1 request"
            self._refuse(400, str(said))
        else:
            if self._unparsed > MAX_HEADER_BYTES:
                self._refuse(431, f"the header is longer than the limit of {MAX_HEADER_BYTES} bytes")
            elif not self._in_header and not self._has_body_timer:
                self._stop_timer()
                self._timer = self.loop.call_later(BODY_SECONDS, self._too_slow)
                self._has_body_timer = True

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Keep the connection open for the answer to a whole request, and for nothing else."""
        if self._refused or self.cycle is None or self.cycle.response_complete or self.cycle.more_body:
            return None
        self._answer_last()
        return True

    # --- the parser's calls

    def on_headers_complete(self) -> None:
        """Begin a request."""
        names = {name for name, _ in self.headers}
        if self.parser.should_upgrade() and names & {b"content-length", b"transfer-encoding"}:
            raise _RefusedError("connections cannot be upgraded here; send the request as plain HTTP/1.1")
        self._in_header = False
        self._unparsed = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of a body."""
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request's body; a next header may follow."""
        self._in_header = True
        self._unparsed = 0
        super().on_message_complete()
        self._stop_timer()
        if self.cycle.response_complete:
            self._start_timer()  # nobody else waits for the next request then

    def on_response_complete(self) -> None:
        """Begin to be idle."""
        self._idle_since = self.loop.time()
        super().on_response_complete()
        if not self._in_header and not self.transport.is_closing():
            self._unset_keepalive_if_required()
            self._linger()

    # --- limits

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(HEADER_SECONDS, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._has_body_timer = False

    def _too_slow(self) -> None:
        self._stop_timer()
        if self._in_header:
            self._refuse(408, f"no whole header came within {HEADER_SECONDS:.0f} s")
        elif not self.pipeline:  # where one is, its body waits for the answers before it
            self._refuse(408, f"the request did not arrive within {BODY_SECONDS:.0f} s")

    def _linger(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(LINGER_SECONDS, self.transport.close)
        self._has_body_timer = True  # this one stands for it

    def _answer_last(self) -> None:
        if self.cycle is not None:
            self.cycle.keep_alive = False

    def _refuse(self, status: int, message: str, extra: str = "") -> None:
        """Answer what is wrong here and close, once the requests before it have their answers."""
        if self._refused or self.transport.is_closing():
            return
        type(self).refused(status)
        self._refused = True
        self._linger()
        running = self.cycle is not None and not self.cycle.response_complete
        if running and self._in_header:
            self._stop_timer()
            self._answer_last()
            return
        if running and (self.cycle.response_started or self.pipeline):
            self.transport.close()
            return
        body = oip.error_document(message)
        head = f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {oip.JSON_TYPE}\r\n{extra}"
        self.transport.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        self.transport.write_eof()
        if running:  # the request whose body this was
            self.cycle.disconnected = True
            self.cycle.message_event.set()


def limited(refused: Callable[[int], None]) -> type[LimitedProtocol]:
    """LimitedProtocol that tells `refused` the status of every answer that the application does not see."""
    return type("LimitedProtocol", (LimitedProtocol,), {"refused": staticmethod(refused)})
