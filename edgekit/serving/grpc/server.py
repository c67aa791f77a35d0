"""Open Inference Protocol v2 over gRPC, with the same answers as over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import grpc
import msgspec
from google.protobuf import json_format

from edgekit.errors import ArenaFullError, DataError, EdgekitError, NotFoundError, SettingsError, UnavailableError
from edgekit.serving.api import documents
from edgekit.serving.api.keys import ForbiddenError, Keys, UnauthorizedError, one_key
from edgekit.serving.api.model_server import ModelServer
from edgekit.serving.api.tls import ServerTls
from edgekit.serving.grpc import codec as grpc_codec
from edgekit.serving.grpc.messages import METHODS, SERVICE, message
from edgekit.serving.http.access_log import access_line, client_address
from edgekit.serving.http.addresses import SOCKET_MODE, is_loopback, make_room, parse_address, removed_after
from edgekit.serving.oip.deadlines import DEADLINE_PARAMETER, MAX_DEADLINE_MS
from edgekit.serving.session.session import DeadlineError, OverloadedError
from edgekit.serving.session.stream_table import StreamEndedError

_log = logging.getLogger(__name__)

DRAIN_SECONDS = 10.0
QUIET_SECONDS = 0.1  # without a call, at the end: gRPC cancels calls that have arrived and have no handler yet
MAX_CALLS = 256  # at the same time, over all connections
MAX_STREAMS = 128  # at the same time on one connection
MAX_METADATA_BYTES = 16 * 1024
HANDSHAKE_SECONDS = 20
CONNECTION_IDLE_SECONDS = 300
_FRAMING_BYTES = 64 * 1024  # of a message, besides its tensors
HEALTH = "grpc.health.v1.Health"
_HEALTH_REQUEST = "ModelReadyRequest"  # has the same field 1, a string, as HealthCheckRequest
_SERVING, _NOT_SERVING = b"\x08\x01", b"\x08\x02"  # HealthCheckResponse with its status
_PROBES = ("ServerLive", "ServerReady")
_OF_ONE_MODEL = ("ModelReady", "ModelMetadata", "ModelStatistics")


class BoundGrpc(NamedTuple):
    """Addresses of a running gRPC server.

    Attributes:
        address: ``host:port`` with the real port; empty without TCP.
        socket: Path of the UNIX socket, or None.
    """

    address: str
    socket: Path | None


class StoppingError(UnavailableError):
    """The server is stopping, and takes no further requests."""


class GrpcService:
    """The methods of the service over a ModelServer.

    Args:
        server: Runs the models.
        max_request_bytes: Longer requests get RESOURCE_EXHAUSTED.
        api_key: Every call except ServerLive and ServerReady must carry it as ``authorization: Bearer``; empty for no
            key.
        keys: In place of `api_key`: several keys with limits; None for none.
        access_log: Called with a JSON line for each call of the service, health excluded; None for no log.
        trusted_proxies: Addresses and networks whose ``x-forwarded-for`` is believed.

    Attributes:
        codes: Number of calls by the name of their status.
    """

    def __init__(
        self,
        server: ModelServer,
        *,
        max_request_bytes: int,
        api_key: str = "",
        keys: Keys | None = None,
        access_log: Callable[[bytes], object] | None = None,
        trusted_proxies: tuple[str, ...] = (),
    ) -> None:
        self._access_log, self._trusted_proxies = access_log, trusted_proxies
        self._server = server
        self._keys = keys or (Keys(one_key(api_key)) if api_key else None)
        self.max_request_bytes = max_request_bytes
        self.codes: Counter[str] = Counter()
        self._stopping, self._running, self._last_call = False, 0, 0.0

    async def drain(self, seconds: float) -> None:
        """Refuse inference from now on, and wait until every call has its answer; at most so long."""
        self._stopping = True
        self._last_call = begun = time.monotonic()
        while (now := time.monotonic()) - begun < seconds:
            if not self._running and now - self._last_call >= QUIET_SECONDS:
                return
            await asyncio.sleep(QUIET_SECONDS / 5)

    @property
    def has_key(self) -> bool:
        """True where callers must send an API key."""
        return self._keys is not None

    def handler(self) -> Any:
        """The handler of all methods, for `grpc.aio.server`."""
        return grpc.method_handlers_generic_handler(
            SERVICE, {name: grpc.unary_unary_rpc_method_handler(self._method(name)) for name in METHODS}
        )

    def health_handler(self) -> Any:
        """The handler of ``grpc.health.v1.Health/Check``, which needs no key; for `grpc.aio.server`.

        The service "" is the whole server; a model's name is that model. There is no ``Watch``.
        """

        async def check(data: bytes, context: Any) -> bytes:
            try:
                name = grpc_codec.parse(_HEALTH_REQUEST, data).name
                if name not in ("", SERVICE):
                    self._server.describe(name, None)
            except (NotFoundError, DataError) as error:
                await context.abort(_status("Check", error)[0], str(error))
            except UnavailableError:
                return _NOT_SERVING
            return _SERVING if self._ready() else _NOT_SERVING

        return grpc.method_handlers_generic_handler(HEALTH, {"Check": grpc.unary_unary_rpc_method_handler(check)})

    def _ready(self) -> bool:
        return self._server.ready() and not self._stopping

    def _method(self, name: str) -> Callable[[bytes, Any], Awaitable[bytes]]:
        answer: Callable[[Any, Any], Awaitable[Any]] = getattr(self, f"_{name}")

        async def call(data: bytes, context: Any) -> bytes:
            arrived, begun = time.time(), time.perf_counter()
            self._running += 1

            def ended(status: str, sent: int = 0, version: str = "") -> None:
                self._running -= 1
                self._last_call = time.monotonic()
                self.codes[status] += 1
                if self._access_log is not None:
                    seconds = time.perf_counter() - begun
                    self._access_log(self._line(name, context, arrived, seconds, status, version, len(data), sent))

            try:
                key = self._find_key(name, context)
                received = grpc_codec.parse(f"{name}Request", data)
                if self._stopping and name == "ModelInfer":
                    raise StoppingError("the server is stopping; try again")
                if self._keys is not None and name == "ModelInfer":
                    self._keys.charge(key, received.model_name, time.time(), time.monotonic())
                elif self._keys is not None and name in _OF_ONE_MODEL and received.name:
                    self._keys.check_model(key, received.name, time.time())
                answered = await answer(received, context)
                response = bytes(answered.SerializeToString())
            except asyncio.CancelledError:  # the client left, or its deadline has passed
                ended("CANCELLED")
                raise
            except Exception as error:  # every error gets a status and is counted; `_status` logs bugs
                code, trailing = _status(name, error)
                ended(code.name)
                shown = str(error) if isinstance(error, EdgekitError) else "internal error; see the server's log"
                await context.abort(code, shown, trailing)
                raise  # not reached: abort raises
            ended("OK", len(response), getattr(answered, "model_version", ""))
            return response

        return call

    def _line(
        self, name: str, context: Any, arrived: float, seconds: float, status: str, version: str, size: int, sent: int
    ) -> bytes:
        """The line of one call in the access log; a peer is ``ipv4:ADDRESS:PORT``, ``ipv6:%5BADDRESS%5D:PORT`` ..."""
        kind, _, rest = unquote(str(context.peer())).partition(":")
        peer = rest.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else ""
        metadata = dict(context.invocation_metadata() or ())
        return access_line(
            arrived,
            seconds,
            client=client_address(peer, str(metadata.get("x-forwarded-for", "")), self._trusted_proxies),
            key=self._keys.name(_given_key(context)) if self._keys is not None else "",
            method="gRPC",
            path=f"/{SERVICE}/{name}",
            status=status,
            version=version,
            request_bytes=size,
            response_bytes=sent,
        )

    def _find_key(self, name: str, context: Any) -> str:
        """The digest of the call's key; empty where none is needed. Raises UnauthorizedError."""
        if self._keys is None or name in _PROBES:
            return ""
        return self._keys.find(_given_key(context), time.time())

    # --- the methods, with the protocol's names

    async def _ServerLive(self, received: Any, context: Any) -> Any:  # noqa: N802
        return message("ServerLiveResponse")(live=True)

    async def _ServerReady(self, received: Any, context: Any) -> Any:  # noqa: N802
        return message("ServerReadyResponse")(ready=self._ready())

    async def _ModelReady(self, received: Any, context: Any) -> Any:  # noqa: N802
        try:
            self._server.describe(received.name, received.version or None)
        except (NotFoundError, UnavailableError):
            return message("ModelReadyResponse")(ready=False)
        return message("ModelReadyResponse")(ready=not self._stopping)

    async def _ServerMetadata(self, received: Any, context: Any) -> Any:  # noqa: N802
        return _filled("ServerMetadataResponse", documents.server())

    async def _ModelMetadata(self, received: Any, context: Any) -> Any:  # noqa: N802
        return _filled("ModelMetadataResponse", documents.model(self._server, received.name, received.version or None))

    async def _ModelStatistics(self, received: Any, context: Any) -> Any:  # noqa: N802
        wanted = [(received.name, received.version or None)] if received.name else documents.every(self._server)
        return _filled("ModelStatisticsResponse", documents.statistics(self._server, wanted))

    async def _RepositoryIndex(self, received: Any, context: Any) -> Any:  # noqa: N802
        return _filled("RepositoryIndexResponse", {"models": documents.index(self._server, received.ready)})

    async def _ModelInfer(self, received: Any, context: Any) -> Any:  # noqa: N802
        request = grpc_codec.infer_request(received)
        left = context.time_remaining()
        if left is not None and DEADLINE_PARAMETER not in request.parameters:
            allowed = {**request.parameters, DEADLINE_PARAMETER: min(max(left * 1000, 1.0), MAX_DEADLINE_MS)}
            request = msgspec.structs.replace(request, parameters=allowed)
        response = await self._server.answer(received.model_name, received.model_version or None, request)
        return grpc_codec.infer_response(response, request, received)


def _given_key(context: Any) -> str:
    """The API key in a call's metadata; empty for none."""
    given = next((v for k, v in context.invocation_metadata() or () if k == "authorization"), "")
    scheme, _, key = str(given).partition(" ")
    return key if scheme.lower() == "bearer" else ""


def _status(name: str, error: Exception) -> tuple[Any, tuple[tuple[str, str], ...]]:
    """The gRPC status of an error, and its trailing metadata."""
    code = grpc.StatusCode
    if isinstance(error, OverloadedError):  # clients wait for the pushback time before they try again
        late = code.DEADLINE_EXCEEDED if isinstance(error, DeadlineError) else code.RESOURCE_EXHAUSTED
        return late, (("grpc-retry-pushback-ms", str(math.ceil(error.retry_after_seconds * 1000))),)
    if isinstance(error, StoppingError):
        return code.UNAVAILABLE, (("grpc-retry-pushback-ms", "1000"),)
    for kind, status in (
        (UnauthorizedError, code.UNAUTHENTICATED),
        (ForbiddenError, code.PERMISSION_DENIED),
        (StreamEndedError, code.FAILED_PRECONDITION),
        (DataError, code.INVALID_ARGUMENT),
        (NotFoundError, code.NOT_FOUND),
        (UnavailableError, code.UNAVAILABLE),
        (ArenaFullError, code.UNAVAILABLE),
    ):
        if isinstance(error, kind):
            return status, ()
    if isinstance(error, EdgekitError):
        _log.warning("gRPC %s failed: %s", name, error)
    else:
        _log.error("gRPC %s failed", name, exc_info=error)
    return code.INTERNAL, ()


def _filled(name: str, document: dict[str, Any]) -> Any:
    """A message with the document's values; values without a field in the message are left out."""
    return json_format.ParseDict(document, message(name)(), ignore_unknown_fields=True)


# --- listening


@contextlib.asynccontextmanager
async def serve_grpc(
    service: GrpcService,
    *,
    address: str = "",
    socket: Path | None = None,
    max_calls: int = MAX_CALLS,
    drain_seconds: float = DRAIN_SECONDS,
    tls: ServerTls | None = None,
) -> AsyncIterator[BoundGrpc]:
    """Serve until the block ends, then let running calls finish (up to `drain_seconds`).

    Args:
        service: Answers the calls.
        address: ``host:port``; port 0 takes any free one; empty for no TCP. Without an API key and without client
            certificates it must be loopback, because gRPC has no Host header by which a web page's request could be
            recognized.
        socket: Path of a UNIX socket (mode 0660), or None; a socket that a dead server left there is replaced.
        max_calls: Most calls at the same time; further calls get RESOURCE_EXHAUSTED.
        drain_seconds: How long running calls may take at the end.
        tls: For TLS on TCP; None for none.

    Raises:
        SettingsError: the address is malformed, or not loopback and neither an API key nor a client certificate is
            asked for.
        UnavailableError: an address is taken, or this process may not bind it.
    """
    options = {
        "grpc.max_receive_message_length": service.max_request_bytes + _FRAMING_BYTES,
        "grpc.max_send_message_length": -1,
        "grpc.max_concurrent_streams": MAX_STREAMS,
        # Else streams that have ended count until their memory is free, and gRPC resets new ones at random.
        "grpc.http.overload_protection": 0,
        "grpc.max_metadata_size": MAX_METADATA_BYTES,
        "grpc.absolute_max_metadata_size": 2 * MAX_METADATA_BYTES,
        "grpc.max_connection_idle_ms": CONNECTION_IDLE_SECONDS * 1000,
        "grpc.server_handshake_timeout_ms": HANDSHAKE_SECONDS * 1000,
        "grpc.so_reuseport": 0,  # else a second server could take half of the connections unnoticed
    }
    server = grpc.aio.server(options=list(options.items()), maximum_concurrent_rpcs=max_calls)
    server.add_generic_rpc_handlers((service.handler(), service.health_handler()))
    with contextlib.ExitStack() as stack:
        bound = _bind_tcp(server, address, service, tls) if address else ""
        if socket is not None:
            _bind_unix(server, socket)
            stack.enter_context(removed_after(socket))
        await server.start()
        try:
            yield BoundGrpc(bound, socket)
        finally:
            await asyncio.shield(_stop(service, server, drain_seconds))


async def _stop(service: GrpcService, server: Any, drain_seconds: float) -> None:
    ends = time.monotonic() + drain_seconds
    await service.drain(drain_seconds)
    await server.stop(max(ends - time.monotonic(), 0.0))


def _bind_tcp(server: Any, address: str, service: GrpcService, tls: ServerTls | None) -> str:
    host, _ = parse_address(address)
    is_open = not service.has_key and not (tls is not None and tls.asks_clients)
    if is_open and not is_loopback(host):
        raise SettingsError(
            f"gRPC without an API key is served on loopback only, not on {host}",
            advice="Use 127.0.0.1, or a UNIX socket.",
        )
    try:
        if tls is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, tls.grpc_credentials())
    except RuntimeError as error:
        raise UnavailableError(
            f"cannot listen on {address} for gRPC: {error}", advice="Choose another address or port."
        ) from error
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _bind_unix(server: Any, path: Path) -> None:
    make_room(path)
    before = os.umask(0o077)  # gRPC binds and listens in one step; no client may connect before the mode is set
    try:
        server.add_insecure_port(f"unix:{path}")
        os.chmod(path, SOCKET_MODE)
    except (RuntimeError, OSError) as error:
        raise UnavailableError(
            f"cannot make the socket {path}: {error}",
            advice="Choose a path in a folder that this user may write to.",
        ) from error
    finally:
        os.umask(before)
