"""Open Inference Protocol v2 as a plain ASGI application, for the device's endpoint and for the cloud tier."""

from __future__ import annotations

import hmac
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

import msgspec

from edgekit.errors import DataError, EdgekitError, NotFoundError, UnavailableError
from edgekit.serving import documents, oip
from edgekit.serving.metrics import METRICS_TYPE, gauges_of, render
from edgekit.serving.processing import answered
from edgekit.serving.sessions import OverloadedError, Session
from edgekit.serving.statistics import Statistics
from edgekit.tensors import TensorSpec

_log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


class ModelDescription(msgspec.Struct, frozen=True):
    """What clients may know of a model.

    Attributes:
        name, version: Its identity.
        platform: Runtime and format, for example ``onnxruntime_onnx``.
        inputs, outputs: Logical tensors.
        provider: What really runs it, for example ``XNNPACK``.
        loaded: False while it is out of memory and loaded again by the next request.
    """

    name: str
    version: str
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    provider: str = ""
    loaded: bool = True


_FORMATS = {"litert": "litert_tflite", "onnxruntime": "onnxruntime_onnx"}


def describe_session(session: Session) -> ModelDescription:
    """Describe a loaded bundle by its logical tensors."""
    manifest, runtime = session.manifest, session.runtime
    platform = _FORMATS.get(manifest.runtime, manifest.runtime)
    return ModelDescription(
        manifest.name, manifest.version, platform, runtime.inputs, runtime.outputs, runtime.provider
    )


def check_outputs(session: Session, request: oip.InferRequest) -> None:
    """Check the outputs that a request asks for, before anything runs.

    Raises:
        DataError: one does not exist, or the parameter that chooses between outputs and what is made of them is wrong.
    """
    known = [spec.name for spec in answered(session, request.inputs, request.parameters)]
    unknown = [name for name in request.outputs if name not in known]
    if unknown:
        raise DataError(f"output {unknown[0]!r} is unknown, expected {', '.join(known)}")


class ModelServer(Protocol):
    """What the application serves."""

    def models(self) -> Sequence[str]:
        """Names of all models that it knows."""
        ...

    def ready(self) -> bool:
        """True while every model that it knows can answer."""
        ...

    def describe(self, model: str, version: str | None) -> ModelDescription:
        """Describe a model that can answer.

        Raises:
            NotFoundError: there is no such model or version.
            UnavailableError: it cannot answer yet.
        """
        ...

    async def answer(self, model: str, version: str | None, request: oip.InferRequest) -> oip.InferResponse:
        """Answer one request.

        Raises:
            NotFoundError, UnavailableError: as `describe`.
            OverloadedError: too many requests wait.
            DataError: the request does not fit the model.
        """
        ...

    def statistics(self, model: str, version: str | None) -> Statistics:
        """What the loaded model has done; raises as `describe`."""
        ...

    def counters(self) -> Mapping[str, Mapping[str, float]]:
        """Rising counters by model, then by name."""
        ...


class Reply(NamedTuple):
    """One HTTP answer."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = {}


class _HttpError(Exception):
    """Something that HTTP itself has a status for."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}


class _ClientGoneError(Exception):
    """The client left before its request was complete; nobody waits for an answer."""


class App:
    """The ASGI application. How long a request may take to arrive is the server's matter (`LimitedProtocol`).

    Args:
        server: What answers.
        max_request_bytes: Longer bodies get 413.
        api_key: Asked of every request but health, as ``Authorization: Bearer``; empty for none.
        local_only: Refuse requests over TCP that name a foreign host or come from a web page, so that no page in a
            browser on this machine can talk to it.
        grpc_codes: Calls by gRPC status, to be shown in the metrics; None where gRPC is not served.
    """

    def __init__(
        self,
        server: ModelServer,
        *,
        max_request_bytes: int,
        api_key: str = "",
        local_only: bool = True,
        grpc_codes: Mapping[str, int] | None = None,
    ) -> None:
        self._server = server
        self._max_request_bytes = max_request_bytes
        self._api_key = api_key
        self._local_only = local_only
        self._grpc_codes = grpc_codes
        self._statuses: Counter[int] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        if scope["type"] != "http":
            raise ValueError(f"connection is {scope['type']!r}, expected 'http'")
        try:
            reply = await self._reply(scope, receive)
        except _ClientGoneError:
            self._statuses[499] += 1
            return
        self._statuses[reply.status] += 1
        headers = {"Content-Length": str(len(reply.body)), **reply.headers}
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": reply.status, "headers": raw})
        await send({"type": "http.response.body", "body": reply.body})

    def refused(self, status: int) -> None:
        """Count an answer that the HTTP server gave in this application's place."""
        self._statuses[status] += 1

    async def _reply(self, scope: Scope, receive: Receive) -> Reply:
        """The one place where errors become statuses."""
        try:
            return await self._route(scope, receive)
        except _HttpError as error:
            return _error(error.status, str(error), error.headers)
        except OverloadedError as error:
            return _error(429, str(error), {"Retry-After": str(math.ceil(error.retry_after_seconds))})
        except DataError as error:
            return _error(400, str(error))
        except NotFoundError as error:
            return _error(404, str(error))
        except UnavailableError as error:
            return _error(503, str(error))
        except EdgekitError as error:
            _log.warning("%s %r failed: %s", scope["method"], scope["path"], error)
            return _error(500, str(error))
        except _ClientGoneError:
            raise
        except Exception:  # a bug must not end the server; it is counted by its status and its traceback stays here
            _log.exception("%s %r failed", scope["method"], scope["path"])
            return _error(500, "internal error; the server's log has the reason")

    async def _route(self, scope: Scope, receive: Receive) -> Reply:
        headers = scope["headers"]
        self._check_origin(scope, headers)
        path = [part for part in scope["path"].split("/") if part]
        if path[:2] == ["v2", "health"]:
            return self._health(scope, path)
        self._check_key(headers)
        if path == ["metrics"]:
            _need(scope, "GET")
            return Reply(
                200, render(self._server.counters(), self._statuses, self._grpc_codes, gauges_of(self._server)), {"Content-Type": METRICS_TYPE}
            )
        if path == ["v2"]:
            _need(scope, "GET")
            return _json(documents.server())
        if path == ["v2", "repository", "index"]:
            _need(scope, "POST")
            return await self._index(scope, receive)
        if path == ["v2", "models", "stats"]:
            _need(scope, "GET")
            return _json(documents.statistics(self._server, documents.every(self._server)))
        if path[:2] == ["v2", "models"] and len(path) > 2:
            version, action = _model_path(path[3:])
            return await self._model(scope, receive, path[2], version, action)
        raise _HttpError(404, f"there is nothing at {scope['path']}")

    def _health(self, scope: Scope, path: list[str]) -> Reply:
        if path[2:] not in (["live"], ["ready"]):
            raise _HttpError(404, f"there is nothing at {scope['path']}")
        _need(scope, "GET")
        if path[2] == "ready" and not self._server.ready():
            raise UnavailableError("a model is not ready")
        return Reply(200)

    async def _model(self, scope: Scope, receive: Receive, model: str, version: str | None, action: str) -> Reply:
        if action == "infer":
            _need(scope, "POST")
            return await self._infer(scope, receive, model, version)
        _need(scope, "GET")
        if action == "stats":
            return _json(documents.statistics(self._server, [(model, version)]))
        document = documents.model(self._server, model, version)
        return Reply(200) if action == "ready" else _json(document)

    async def _index(self, scope: Scope, receive: Receive) -> Reply:
        ready_only = oip.wants_ready_only(await self._body(receive, _header(scope["headers"], b"content-length")))
        return _json(documents.index(self._server, ready_only))

    async def _infer(self, scope: Scope, receive: Receive, model: str, version: str | None) -> Reply:
        headers = scope["headers"]
        if _header(headers, b"content-encoding") not in (None, "identity"):
            raise _HttpError(415, "compressed requests are not served, send them as they are")
        body = await self._body(receive, _header(headers, b"content-length"))
        length = oip.header_length(_header(headers, oip.HEADER.lower().encode()))
        if length == 0:
            request = oip.parse_raw(body, self._server.describe(model, version).inputs)
        else:
            request = oip.parse_request(body, length)
        encoded = oip.encode_response(await self._server.answer(model, version, request), request)
        return Reply(200, encoded.body, encoded.headers)

    async def _body(self, receive: Receive, stated: str | None) -> bytes:
        limit = self._max_request_bytes
        if stated is not None and stated.isascii() and stated.isdigit() and int(stated) > limit:
            raise _HttpError(413, f"the request has {stated} bytes, the limit is {limit}")
        return await _read(receive, limit)

    def _check_origin(self, scope: Scope, headers: Sequence[tuple[bytes, bytes]]) -> None:
        over_tcp = scope.get("server") is not None and scope["server"][1] is not None
        if not self._local_only or not over_tcp:
            return
        if any(name == b"origin" for name, _ in headers):
            raise _HttpError(403, "requests from web pages are refused")
        for name, value in headers:
            if name == b"host" and value and not _is_local(value.decode("latin-1")):
                raise _HttpError(403, f"host is {value.decode('latin-1')!r}, expected localhost or 127.0.0.1")

    def _check_key(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        if not self._api_key:
            return
        scheme, _, given = (_header(headers, b"authorization") or "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode("latin-1"), self._api_key.encode()):
            challenge = {"WWW-Authenticate": "Bearer"}
            raise _HttpError(401, "the API key is missing or wrong; send Authorization: Bearer <key>", challenge)


async def _read(receive: Receive, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientGoneError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise _HttpError(413, f"the request is longer than the limit of {limit} bytes")
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _model_path(rest: list[str]) -> tuple[str | None, str]:
    """Version and action of what follows the model's name: [versions/<v>] [ready|infer|stats]."""
    version = None
    if len(rest) >= 2 and rest[0] == "versions":
        version, rest = rest[1], rest[2:]
    if rest in ([], ["ready"], ["infer"], ["stats"]):
        return version, rest[0] if rest else ""
    raise _HttpError(404, f"a model has nothing at {'/'.join(rest)!r}, expected ready, infer or stats")


def _need(scope: Scope, method: str) -> None:
    if scope["method"] != method and (scope["method"], method) != ("HEAD", "GET"):  # whose answer goes without its body
        raise _HttpError(405, f"method is {scope['method']}, expected {method}", {"Allow": method})


def _is_local(host: str) -> bool:
    try:
        return urlsplit(f"//{host}").hostname in _LOCAL_HOSTS
    except ValueError:
        return False


def _header(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in headers if key == name), None)


def _json(document: Any) -> Reply:
    return Reply(200, msgspec.json.encode(document), {"Content-Type": oip.JSON_TYPE})


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(status, oip.error_document(message), {"Content-Type": oip.JSON_TYPE, **(headers or {})})
