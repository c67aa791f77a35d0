"""The access log: one JSON line for each request or call, and the address of the client behind trusted proxies."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timezone

import msgspec

from edgekit.serving.http.addresses import is_trusted
from edgekit.serving.http.messages import Application, Head, Reply, Work

_MAX_PATH = 512


class LoggedApp:
    """An `Application` whose requests are logged. Heads are not cached then, because each line names its client.

    Requests that are no HTTP, and those that the server refuses by itself (too long, too slow), are counted in the
    metrics and not logged.

    Args:
        app: Makes the answers.
        write: Called with each line, its line feed included.
        owner: Returns the name of a request's key; empty for none.
        trusted_proxies: Addresses and networks whose ``X-Forwarded-For`` is believed.
    """

    def __init__(
        self,
        app: Application,
        write: Callable[[bytes], object],
        *,
        owner: Callable[[Head], str],
        trusted_proxies: tuple[str, ...] = (),
    ) -> None:
        self._app, self._write, self._owner, self._trusted_proxies = app, write, owner, trusted_proxies
        self.count, self.stop, self.too_long = app.count, app.stop, app.too_long

    @property
    def max_request_bytes(self) -> int:
        """The longest body that is accepted."""
        return self._app.max_request_bytes

    def begin(self, head: Head) -> Reply | Work:
        """The answer or the work of the application; both are logged."""
        arrived, begun = time.time(), time.perf_counter()
        decision = self._app.begin(head)
        if isinstance(decision, Reply):
            self._log(head, arrived, begun, 0, decision)
            return decision
        work = decision

        async def logged(body: bytes) -> Reply:
            reply = Reply(499)  # where the client has gone before the answer
            try:
                reply = await work(body)
            finally:
                self._log(head, arrived, begun, len(body), reply)
            return reply

        return logged

    def _log(self, head: Head, arrived: float, begun: float, size: int, reply: Reply) -> None:
        self._write(
            access_line(
                arrived,
                time.perf_counter() - begun,
                client=client_address(head.peer, head.header(b"x-forwarded-for") or "", self._trusted_proxies),
                key=self._owner(head),
                method=head.method,
                path=head.path,
                status=reply.status,
                version=reply.version,
                request_bytes=size,
                response_bytes=len(reply.body),
            )
        )


def access_line(
    arrived: float,
    seconds: float,
    *,
    client: str,
    key: str,
    method: str,
    path: str,
    status: int | str,
    version: str,
    request_bytes: int,
    response_bytes: int,
) -> bytes:
    """A line of the log, its line feed included.

    Args:
        arrived: Wall clock seconds.
        seconds: From the arrival to the answer.
        client, key: Address of the client, and name of its key; empty for none.
        method, path: Of HTTP; ``gRPC`` and the path of the method for a call.
        status: Of HTTP, or the name of gRPC's.
        version: Version of the model that answered; empty for none.
        request_bytes, response_bytes: Sizes of body or message.
    """
    line = {
        "time": datetime.fromtimestamp(arrived, timezone.utc).isoformat(timespec="milliseconds"),
        "client": client,
        "key": key,
        "method": method,
        "path": path[:_MAX_PATH],
        "status": status,
        "version": version,
        "request_bytes": request_bytes,
        "response_bytes": response_bytes,
        "ms": round(seconds * 1000, 3),
    }
    return msgspec.json.encode(line) + b"\n"


def client_address(peer: str, forwarded: str, trusted: tuple[str, ...]) -> str:
    """The address of the client: the last one in the chain that no trusted proxy has.

    Args:
        peer: Address of the connection; empty on a UNIX socket.
        forwarded: Value of ``X-Forwarded-For``; each proxy appends the address that it saw.
        trusted: Addresses and networks of trusted proxies.
    """
    found = peer
    for address in reversed([part.strip() for part in forwarded.split(",")]):
        if not is_trusted(found, trusted) or not address:
            break
        found = address[:64]
    return found
