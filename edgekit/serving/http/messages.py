"""HTTP requests and answers as values, and what an application is to the server that carries them."""

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
        headers: By lower-case name; the values of one that stands several times are joined by ``", "``.
        over_tcp: False on a UNIX socket, which no web page can reach.
    """

    method: str
    path: str
    headers: Mapping[bytes, bytes]
    over_tcp: bool

    def header(self, name: bytes) -> str | None:
        """Value of a header, None where there is none."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")


class Reply(msgspec.Struct, frozen=True):
    """One answer."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = {}


# Its first step is run where the request was read, outside of any task; only what has to wait becomes one.
Work = Callable[[bytes], Coroutine[Any, Any, Reply]]


class Lasting(functools.partial[Coroutine[Any, Any, Reply]]):
    """Work that is a matter of the head alone: any request with just that head may be answered by it, at any time."""


@types.coroutine
def rest_of(working: Coroutine[Any, Any, Reply], awaited: Any) -> Generator[Any, Any, Reply]:
    """The rest of a coroutine that has begun and waits for `awaited`."""
    while True:
        try:
            sent = yield awaited
        except BaseException as error:  # it is the coroutine's
            step = functools.partial(working.throw, error)
        else:
            step = functools.partial(working.send, sent)
        try:
            awaited = step()
        except StopIteration as done:
            reply: Reply = done.value
            return reply


class Application(Protocol):
    """What the server asks for answers. Nothing that it raises is expected: errors are replies."""

    @property
    def max_request_bytes(self) -> int:
        """The longest body that is taken."""
        ...

    def begin(self, head: Head) -> Reply | Work:
        """What is known before the body: the answer, or the work that makes it from the body.

        `Lasting` work may be used again, without another call of this.
        """
        ...

    def too_long(self, stated: str) -> Reply:
        """The answer to a body that is longer than the limit; `stated` says how long, as far as it is known."""
        ...

    def count(self, status: int) -> None:
        """Count an answer; called once for each that is sent, also for those that the server gives itself."""
        ...
