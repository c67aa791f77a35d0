"""Open Inference Protocol v2 over gRPC, for clients that speak nothing else; the answers are those of HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import math
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import msgspec
from google.protobuf import json_format

from edgekit.errors import ArenaFullError, DataError, EdgekitError, NotFoundError, SettingsError, UnavailableError
from edgekit.serving.api import documents
from edgekit.serving.api.model_server import ModelServer
from edgekit.serving.grpc import codec as grpc_codec
from edgekit.serving.grpc.messages import METHODS, SERVICE, message
from edgekit.serving.http.addresses import SOCKET_MODE, is_loopback, make_room, parse_address, removed_after
from edgekit.serving.oip.deadlines import MAX_DEADLINE_MS, PARAMETER
from edgekit.serving.session.session import DeadlineError, OverloadedError

_log = logging.getLogger(__name__)

DRAIN_SECONDS = 10
MAX_CALLS = 256  # at a time, over all connections
MAX_STREAMS = 128  # at a time on one connection
MAX_METADATA_BYTES = 16 * 1024
HANDSHAKE_SECONDS = 20
IDLE_SECONDS = 300
_FRAMING_BYTES = 64 * 1024  # what a message has beside its tensors
_PROBES = ("ServerLive", "ServerReady")


class BoundGrpc(NamedTuple):
    """Where gRPC is served.

    Attributes:
        address: ``host:port`` with the real port; empty where TCP was not asked for.
        socket: Path of the UNIX socket, or None.
    """

    address: str
    socket: Path | None


class GrpcService:
    """The methods of the service over a ModelServer.

    Args:
        server: What answers.
        max_request_bytes: Longer requests get RESOURCE_EXHAUSTED.
        api_key: Asked of every call but ServerLive and ServerReady, as ``authorization: Bearer``; empty for none.

    Attributes:
        codes: Calls answered, by the name of their status.
    """

    def __init__(self, server: ModelServer, *, max_request_bytes: int, api_key: str = "") -> None:
        self._server = server
        self._api_key = api_key
        self.max_request_bytes = max_request_bytes
        self.codes: Counter[str] = Counter()

    @property
    def has_key(self) -> bool:
        """Whether callers must show an API key."""
        return bool(self._api_key)

    def handler(self) -> Any:
        """What gRPC asks for every call of the service."""
        return grpc.method_handlers_generic_handler(
            SERVICE, {name: grpc.unary_unary_rpc_method_handler(self._method(name)) for name in METHODS}
        )

    def _method(self, name: str) -> Callable[[bytes, Any], Awaitable[bytes]]:
        answer: Callable[[Any, Any], Awaitable[Any]] = getattr(self, f"_{name}")

        async def call(data: bytes, context: Any) -> bytes:
            try:
                self._check_key(name, context)
                found = (await answer(grpc_codec.parse(f"{name}Request", data), context)).SerializeToString()
            except asyncio.CancelledError:  # the client left, or its deadline has passed
                self.codes["CANCELLED"] += 1
                raise
            except Exception as error:  # the one place where errors become statuses; a bug is logged and counted
                code, trailing = _status(name, error)
                self.codes[code.name] += 1
                said = str(error) if isinstance(error, EdgekitError) else "internal error; the server's log has it"
                await context.abort(code, said, trailing)
            self.codes["OK"] += 1
            return bytes(found)

        return call

    def _check_key(self, name: str, context: Any) -> None:
        if not self._api_key or name in _PROBES:
            return
        given = next((v for k, v in context.invocation_metadata() or () if k == "authorization"), "")
        scheme, _, key = str(given).partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(
            key.encode("utf-8", "replace"), self._api_key.encode()
        ):
            raise _KeyError("the API key is missing or wrong; send metadata authorization: Bearer <key>")

    # --- the methods; each has the name that the protocol gives it

    async def _ServerLive(self, asked: Any, context: Any) -> Any:  # noqa: N802
        return message("ServerLiveResponse")(live=True)

    async def _ServerReady(self, asked: Any, context: Any) -> Any:  # noqa: N802
        return message("ServerReadyResponse")(ready=self._server.ready())

    async def _ModelReady(self, asked: Any, context: Any) -> Any:  # noqa: N802
        try:
            self._server.describe(asked.name, asked.version or None)
        except (NotFoundError, UnavailableError):
            return message("ModelReadyResponse")(ready=False)
        return message("ModelReadyResponse")(ready=True)

    async def _ServerMetadata(self, asked: Any, context: Any) -> Any:  # noqa: N802
        return _filled("ServerMetadataResponse", documents.server())

    async def _ModelMetadata(self, asked: Any, context: Any) -> Any:  # noqa: N802
        return _filled("ModelMetadataResponse", documents.model(self._server, asked.name, asked.version or None))

    async def _ModelStatistics(self, asked: Any, context: Any) -> Any:  # noqa: N802
        wanted = [(asked.name, asked.version or None)] if asked.name else documents.every(self._server)
        return _filled("ModelStatisticsResponse", documents.statistics(self._server, wanted))

    async def _RepositoryIndex(self, asked: Any, context: Any) -> Any:  # noqa: N802
        return _filled("RepositoryIndexResponse", {"models": documents.index(self._server, asked.ready)})

    async def _ModelInfer(self, asked: Any, context: Any) -> Any:  # noqa: N802
        request = grpc_codec.infer_request(asked)
        left = context.time_remaining()
        if left is not None and PARAMETER not in request.parameters:
            allowed = {**request.parameters, PARAMETER: min(max(left * 1000, 1.0), MAX_DEADLINE_MS)}
            request = msgspec.structs.replace(request, parameters=allowed)
        found = await self._server.answer(asked.model_name, asked.model_version or None, request)
        return grpc_codec.infer_response(found, request, asked)


class _KeyError(EdgekitError):
    """A call came without the API key."""


def _status(name: str, error: Exception) -> tuple[Any, tuple[tuple[str, str], ...]]:
    """GRPC's status of an error, and what goes with it."""
    code = grpc.StatusCode
    if isinstance(error, OverloadedError):  # clients with retries wait so long before the next
        late = code.DEADLINE_EXCEEDED if isinstance(error, DeadlineError) else code.RESOURCE_EXHAUSTED
        return late, (("grpc-retry-pushback-ms", str(math.ceil(error.retry_after_seconds * 1000))),)
    for kind, found in (
        (_KeyError, code.UNAUTHENTICATED),
        (DataError, code.INVALID_ARGUMENT),
        (NotFoundError, code.NOT_FOUND),
        (UnavailableError, code.UNAVAILABLE),
        (ArenaFullError, code.UNAVAILABLE),
    ):
        if isinstance(error, kind):
            return found, ()
    if isinstance(error, EdgekitError):
        _log.warning("gRPC %s failed: %s", name, error)
    else:
        _log.error("gRPC %s failed", name, exc_info=error)
    return code.INTERNAL, ()


def _filled(name: str, document: dict[str, Any]) -> Any:
    """A message with the document's values; what the message has no field for stays out."""
    return json_format.ParseDict(document, message(name)(), ignore_unknown_fields=True)


# --- listening


@contextlib.asynccontextmanager
async def serve_grpc(
    service: GrpcService, *, address: str = "", socket: Path | None = None
) -> AsyncIterator[BoundGrpc]:
    """Serve until the block ends, then let running calls finish (up to DRAIN_SECONDS).

    Args:
        service: What answers.
        address: ``host:port``; port 0 takes any free one; empty for no TCP. Without an API key only loopback: gRPC has
            no Host header by which a foreign caller could be told.
        socket: Path of a UNIX socket (mode 0660), or None; what a dead server left there is replaced.

    Raises:
        SettingsError: the address is malformed, or not loopback and there is no API key.
        UnavailableError: an address is taken or not ours to bind.
    """
    options = {
        "grpc.max_receive_message_length": service.max_request_bytes + _FRAMING_BYTES,
        "grpc.max_send_message_length": -1,
        "grpc.max_concurrent_streams": MAX_STREAMS,
        "grpc.max_metadata_size": MAX_METADATA_BYTES,
        "grpc.absolute_max_metadata_size": 2 * MAX_METADATA_BYTES,
        "grpc.max_connection_idle_ms": IDLE_SECONDS * 1000,
        "grpc.server_handshake_timeout_ms": HANDSHAKE_SECONDS * 1000,
        "grpc.so_reuseport": 0,  # or a second server would take half of the connections in silence
    }
    server = grpc.aio.server(options=list(options.items()), maximum_concurrent_rpcs=MAX_CALLS)
    server.add_generic_rpc_handlers((service.handler(),))
    with contextlib.ExitStack() as stack:
        bound = _bind_tcp(server, address, service) if address else ""
        if socket is not None:
            _bind_unix(server, socket)
            stack.enter_context(removed_after(socket))
        await server.start()
        try:
            yield BoundGrpc(bound, socket)
        finally:
            await asyncio.shield(server.stop(DRAIN_SECONDS))


def _bind_tcp(server: Any, address: str, service: GrpcService) -> str:
    host, _ = parse_address(address)
    if not service.has_key and not is_loopback(host):
        raise SettingsError(
            f"gRPC without an API key is served on loopback only, not on {host}",
            advice="Use 127.0.0.1, or a UNIX socket.",
        )
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise UnavailableError(
            f"cannot listen on {address} for gRPC: {error}", advice="Choose another address or port."
        ) from error
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _bind_unix(server: Any, path: Path) -> None:
    make_room(path)
    before = os.umask(0o077)  # gRPC binds and listens in one, so nobody may get in before the mode is set
    try:
        server.add_insecure_port(f"unix:{path}")
        os.chmod(path, SOCKET_MODE)
    except (RuntimeError, OSError) as error:
        raise UnavailableError(f"cannot make the socket {path}: {error}") from error
    finally:
        os.umask(before)
