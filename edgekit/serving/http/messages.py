"""HTTP requests and answers as values, and the interface between the HTTP server and its application."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Coroutine, Generator, Mapping
from typing import Any, NamedTuple, Protocol

import msgspec


class Head(NamedTuple):
    """A request without its body.

    Attributes:
        method: In capitals.
        path: Without the query, percent-decoded.
        headers: Values by lower-case name; the values of a repeated header are joined by ``", "``.
        over_tcp: False on a UNIX socket, which no web page can reach.
        peer: Address of the client or of the proxy before it; empty where it is unknown.
    """

    method: str
    path: str
    headers: Mapping[bytes, bytes]
    over_tcp: bool
    peer: str = ""

    def header(self, name: bytes) -> str | None:
        """Value of a header; None where it is missing."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")


class Reply(msgspec.Struct, frozen=True):
    """One answer.

    Attributes:
        status, body, headers: As they are sent.
        version: Version of the model that answered, for the log; empty for other answers.
    """

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = {}
    version: str = ""


# Makes a reply from a body. The first step runs outside any task; only work that must wait becomes a task.
Work = Callable[[bytes], Coroutine[Any, Any, Reply]]


class RepeatableWork(functools.partial[Coroutine[Any, Any, Reply]]):
    """Work that depends on the head alone: it may answer every later request with the same head."""


@types.coroutine
def rest_of(working: Coroutine[Any, Any, Reply], awaited: Any) -> Generator[Any, Any, Reply]:
    """Continue a coroutine that has begun and waits for `awaited`."""
    while True:
        try:
            sent = yield awaited
        except BaseException as error:  # cancellation and errors belong to the coroutine, which gets them here
            step = functools.partial(working.throw, error)
        else:
            step = functools.partial(working.send, sent)
        try:
            awaited = step()
        except StopIteration as done:
            reply: Reply = done.value
            return reply


class Application(Protocol):
    """The application that makes the server's answers. It raises nothing: errors are replies."""

    @property
    def max_request_bytes(self) -> int:
        """The longest body that is accepted."""
        ...

    def begin(self, head: Head) -> Reply | Work:
        """Decide from the head: return the answer, or the work that makes it from the body.

        The server may use `RepeatableWork` again for a later request with the same head, without another call.
        """
        ...

    def stop(self) -> None:
        """The server stops: refuse new work, and say that the server is not ready."""
        ...

    def too_long(self, stated: str) -> Reply:
        """The answer to a body over the limit; `stated` is its length in bytes, empty where that is unknown."""
        ...

    def count(self, status: int) -> None:
        """Count an answer. Called once for each answer, the server's own refusals included."""
        ...
