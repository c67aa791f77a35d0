"""Open Inference Protocol v2 over HTTP, on the device and in the cloud tier: paths, statuses and access checks."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from edgekit.errors import ArenaFullError, ConflictError, DataError, EdgekitError, NotFoundError, UnavailableError
from edgekit.serving.api import documents
from edgekit.serving.api.keys import ForbiddenError, Keys, UnauthorizedError, one_key
from edgekit.serving.api.model_server import ModelServer, TakesConsent, TakesOutcomes
from edgekit.serving.http.messages import Head, RepeatableWork, Reply, Work
from edgekit.serving.http.metrics import METRICS_TYPE, gauges_of, latencies_of, render
from edgekit.serving.oip import codec as oip
from edgekit.serving.oip import raw_body
from edgekit.serving.oip.tensor_data import LONG_JSON
from edgekit.serving.session.session import OverloadedError
from edgekit.serving.session.stream_table import StreamEndedError

_log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


_LENGTH = oip.HEADER.lower().encode()
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


class _Outcome(msgspec.Struct):
    """Body of ``POST /v2/models/<m>/outcome``."""

    id: str
    good: bool


class _Consent(msgspec.Struct):
    """Body of ``POST /v2/models/<m>/consent``."""

    agree: bool


_CONSENT = msgspec.json.Decoder(_Consent)
_OUTCOME = msgspec.json.Decoder(_Outcome)  # built at import, as in edgekit.mqtt.messages


class _HttpError(Exception):
    """An error with an HTTP status of its own."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}


class _ClientGoneError(Exception):
    """The client left before its request was complete."""


class App:
    """The protocol's paths over a ModelServer: for edgekit's HTTP server (`begin`), and as an ASGI application.

    The HTTP server limits how long a request may take to arrive.

    Args:
        server: Runs the models.
        max_request_bytes: Longer bodies get 413.
        api_key: Every request except health must carry it as ``Authorization: Bearer``; empty for no key.
        keys: In place of `api_key`: several keys with limits; None for none.
        local_only: Without an API key, refuse requests over TCP that name a foreign host or come from a web page, so
            that no page in a browser on this machine can use the server. With a key the name does not matter, because
            proxies keep the name that the client used.
        grpc_codes: Calls by gRPC status, for the metrics; None where gRPC is not served.
    """

    def __init__(
        self,
        server: ModelServer,
        *,
        max_request_bytes: int,
        api_key: str = "",
        keys: Keys | None = None,
        local_only: bool = True,
        grpc_codes: Mapping[str, int] | None = None,
    ) -> None:
        self._server = server
        self._max_request_bytes = max_request_bytes
        self._keys = keys or (Keys(one_key(api_key)) if api_key else None)
        self._local_only = local_only
        self._grpc_codes = grpc_codes
        self._statuses: Counter[int] = Counter()
        self._stopping = False

    def stop(self) -> None:
        """Answer from now on that the server is not ready, and refuse new inference requests with 503."""
        self._stopping = True

    @property
    def max_request_bytes(self) -> int:
        """The longest body that is accepted."""
        return self._max_request_bytes

    def begin(self, head: Head) -> Reply | Work:
        """The answer, where it does not need the body; else the work that makes it from the body."""
        return _decided(self._route, head)

    def probe(self, head: Head) -> Reply | Work:
        """The answer to a request for health or metrics, which needs no key here."""
        return _decided(self._route_probe, head)

    def owner(self, head: Head) -> str:
        """The name of the owner of a request's key; empty for none."""
        return self._keys.name(bearer_key(head)) if self._keys is not None else ""

    def too_long(self, stated: str) -> Reply:
        """The answer to a body over the limit."""
        actual = f"has {stated[:20]} bytes" if stated else "is longer"
        return _error(413, f"the limit of a request is {self._max_request_bytes} bytes, this one {actual}")

    def count(self, status: int) -> None:
        """Count an answer for the metrics."""
        self._statuses[status] += 1

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request of an ASGI server."""
        if scope["type"] != "http":
            raise ValueError(f"connection is {scope['type']!r}, expected 'http'")
        head = _head(scope)
        decision = self.begin(head)
        if not isinstance(decision, Reply):
            try:
                body = await self._read(head, receive)
            except _ClientGoneError:
                self.count(499)
                return
            decision = self.too_long("") if body is None else await decision(body)
        self.count(decision.status)
        headers = {"Content-Length": str(len(decision.body)), **decision.headers}
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": decision.status, "headers": raw})
        await send({"type": "http.response.body", "body": decision.body})

    async def _read(self, head: Head, receive: Receive) -> bytes | None:
        """The body; None where it is over the limit."""
        stated = head.header(b"content-length") or ""
        if stated.isascii() and stated.isdigit() and int(stated) > self._max_request_bytes:
            return None
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _ClientGoneError
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._max_request_bytes:
                return None
            more = message.get("more_body", False)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _route_probe(self, head: Head) -> Reply:
        path = _split(head.path)
        if path[:2] == ("v2", "health"):
            return self._health(head, path)
        if path == ("metrics",):
            return self._metrics(head)
        raise _HttpError(404, f"there is nothing at {head.path}; this port has /v2/health and /metrics")

    def _route(self, head: Head) -> Reply | Work:
        self._check_origin(head)
        path = _split(head.path)
        if path[:2] == ("v2", "health"):
            return self._health(head, path)
        key = self._find_key(head)
        if path == ("metrics",):
            return self._metrics(head)
        if path[:2] == ("v2", "models") and len(path) > 2:
            if path == ("v2", "models", "stats"):
                _need(head, "GET")
                return _json(documents.statistics(self._server, documents.every(self._server)))
            return self._model(head, key, path[2], *_model_path(path[3:]))
        if path == ("v2",):
            _need(head, "GET")
            return _json(documents.server())
        if path == ("v2", "repository", "index"):
            _need(head, "POST")
            return RepeatableWork(_reply, head, self._index, head)
        raise _HttpError(404, f"there is nothing at {head.path}")

    def _metrics(self, head: Head) -> Reply:
        _need(head, "GET")
        server, counts = self._server, self._keys.counts() if self._keys is not None else {}
        text = render(
            server.counters(), self._statuses, self._grpc_codes, gauges_of(server), latencies_of(server), counts
        )
        return Reply(200, text, {"Content-Type": METRICS_TYPE})

    def _health(self, head: Head, path: tuple[str, ...]) -> Reply:
        if path[2:] not in (("live",), ("ready",)):
            raise _HttpError(404, f"there is nothing at {head.path}")
        _need(head, "GET")
        if path[2] == "ready" and self._stopping:
            raise _stopping_error()
        if path[2] == "ready" and not self._server.ready():
            raise UnavailableError("a model is not ready")
        return _json({path[2]: True})

    def _model(self, head: Head, key: str, model: str, version: str | None, action: str) -> Reply | Work:
        if self._stopping and action in ("infer", "ready"):
            raise _stopping_error()
        if action != "infer" and self._keys is not None:  # an inference is charged when its body is there
            self._keys.check_model(key, model, time.time())
        if action == "infer":
            _need(head, "POST")
            if head.header(b"content-encoding") not in (None, "identity"):
                raise _HttpError(415, "compressed requests are not served, send them as they are")
            length = oip.header_length(head.header(_LENGTH))
            if length is None and (media := raw_body.parse_media(head.headers.get(b"content-type", b""))) is not None:
                return self._raw_body_work(head, key, model, version, media)
            return RepeatableWork(_reply, head, self._infer, key, model, version, length)
        if action == "outcome" and version is None:
            _need(head, "POST")
            return functools.partial(_reply, head, self._outcome, model)
        if action == "consent" and version is None:
            _need(head, "POST")
            return functools.partial(_reply, head, self._consent, model)
        _need(head, "GET")
        if action == "stats":
            return _json(documents.statistics(self._server, [(model, version)]))
        document = documents.model(self._server, model, version)
        return _json({"name": model, "ready": True} if action == "ready" else document)

    async def _outcome(self, model: str, body: bytes) -> Reply:
        if not isinstance(self._server, TakesOutcomes):
            raise _HttpError(404, "this server counts no outcomes; the agent on a device does")
        try:
            outcome = _OUTCOME.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise DataError(f'the outcome is not {{"id": "...", "good": true}}: {error}') from error
        self._server.outcome(model, outcome.id, good=outcome.good)
        return _json({"id": outcome.id, "good": outcome.good})

    async def _consent(self, model: str, body: bytes) -> Reply:
        if not isinstance(self._server, TakesConsent):
            raise _HttpError(404, "this server asks for no agreement; the agent on a device does")
        try:
            agreed = _CONSENT.decode(body).agree
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise DataError(f'the answer is not {{"agree": true}}: {error}') from error
        updated = await self._server.consent(model, agreed=agreed)
        return _json({"model": model, "version": updated, "agree": agreed})

    async def _index(self, head: Head, body: bytes) -> Reply:
        self._find_key(head)  # again, because this work may be repeated after the keys have changed
        return _json(documents.index(self._server, oip.wants_ready_only(body)))

    def _raw_body_work(self, head: Head, key: str, model: str, version: str | None, media: raw_body.Media) -> Work:
        """The work for a body whose media type is not the protocol's."""
        try:
            raw = self._server.describe(model, version).raw
        except UnavailableError:  # only the cloud tier answers for this model, and it takes tensors only
            raw = ()
        name = raw_body.input_for(media, raw)
        if name is not None:
            return functools.partial(_reply, head, self._infer_raw_body, head, key, model, version, (media, name))
        refused = _HttpError(415, raw_body.refusal(media, model, raw), {"Accept": ", ".join(raw_body.accepted(raw))})
        if media.kind != "text":
            raise refused

        async def infer(body: bytes) -> Reply:
            """Some clients send JSON as text/plain."""
            if not body.lstrip().startswith(b"{"):
                raise refused
            return await self._infer(key, model, version, None, body)

        return functools.partial(_reply, head, infer)

    async def _infer_raw_body(
        self,
        head: Head,
        key: str,
        model: str,
        version: str | None,
        media_and_input: tuple[raw_body.Media, str],
        body: bytes,
    ) -> Reply:
        self._charge(key, model)
        request = raw_body.parse_raw_body(body, *media_and_input, head.headers)
        response = await self._server.answer(model, version, request)
        encoded = await asyncio.to_thread(oip.encode_response, response, request)  # it came from a thread anyway
        return Reply(200, encoded.body, encoded.headers, response.version)

    async def _infer(self, key: str, model: str, version: str | None, length: int | None, body: bytes) -> Reply:
        if key:
            self._charge(key, model)
        if length == 0:
            request = oip.parse_raw(body, self._server.describe(model, version).inputs)
        elif (len(body) if length is None else length) > LONG_JSON:  # parsing may take seconds; other requests go on
            request = await asyncio.to_thread(oip.parse_request, body, length)
        else:
            request = oip.parse_request(body, length)
        response = await self._server.answer(model, version, request)
        if oip.json_elements(response, request) > LONG_JSON // 8:
            encoded = await asyncio.to_thread(oip.encode_response, response, request)
        else:
            encoded = oip.encode_response(response, request)
        return Reply(200, encoded.body, encoded.headers, response.version)

    def _check_origin(self, head: Head) -> None:
        if not self._local_only or not head.over_tcp or self._keys is not None:  # a web page does not know the key
            return
        if b"origin" in head.headers:
            raise _HttpError(403, "requests from web pages are refused")
        host = head.header(b"host")
        if host and not _is_local(host):
            raise _HttpError(403, f"host is {host!r}, expected localhost or 127.0.0.1")

    def _find_key(self, head: Head) -> str:
        """The digest of the request's key; empty where none is needed. Raises UnauthorizedError."""
        return self._keys.find(bearer_key(head), time.time()) if self._keys is not None else ""

    def _charge(self, key: str, model: str) -> None:
        """Count an inference request of a key; see `Keys.charge`."""
        if self._keys is not None:
            self._keys.charge(key, model, time.time(), time.monotonic())


class ProbesApp:
    """Health and metrics of an `App` on a port of their own, without TLS and key, for probes of the system around it.

    Args:
        app: Makes the answers.
    """

    def __init__(self, app: App) -> None:
        self.max_request_bytes = app.max_request_bytes
        self.begin, self.stop, self.too_long, self.count = app.probe, app.stop, app.too_long, app.count


def bearer_key(head: Head) -> str:
    """The API key in a request's header; empty for none."""
    scheme, _, given = (head.header(b"authorization") or "").partition(" ")
    return given if scheme.lower() == "bearer" else ""


def _stopping_error() -> _HttpError:
    return _HttpError(503, "the server is stopping; try again", {"Retry-After": "1"})


def _decided(route: Callable[[Head], Reply | Work], head: Head) -> Reply | Work:
    """The decision of `route`, errors included."""
    try:
        return route(head)
    except Exception as error:  # every error gets a status; `_failure` logs bugs
        return _failure(head, error)


async def _reply(head: Head, answer: Callable[..., Awaitable[Reply]], *arguments: Any) -> Reply:
    """The reply of ``answer(*arguments)``, errors included; the last argument is the body."""
    try:
        return await answer(*arguments)
    except Exception as error:  # every error gets a status; `_failure` logs bugs
        return _failure(head, error)


def _failure(head: Head, error: Exception) -> Reply:
    """The status of an error. A bug's message stays in the log, with its traceback."""
    if isinstance(error, _HttpError):
        return _error(error.status, str(error), error.headers)
    if isinstance(error, OverloadedError):
        return _error(429, str(error), {"Retry-After": str(math.ceil(error.retry_after_seconds))})
    if isinstance(error, UnauthorizedError):
        return _error(401, str(error), {"WWW-Authenticate": "Bearer"})
    for kind, status in (
        (ForbiddenError, 403),
        (StreamEndedError, 410),
        (DataError, 400),
        (NotFoundError, 404),
        (ConflictError, 409),
        (UnavailableError, 503),
        (ArenaFullError, 503),
    ):
        if isinstance(error, kind):
            return _error(status, str(error))
    if isinstance(error, EdgekitError):
        _log.warning("%s %r failed: %s", head.method, head.path, error)
        return _error(500, str(error))
    _log.error("%s %r failed", head.method, head.path, exc_info=error)
    return _error(500, "internal error; the server's log has the reason")


def _head(scope: Scope) -> Head:
    headers: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        headers[name] = headers[name] + b", " + value if name in headers else value
    over_tcp = scope.get("server") is not None and scope["server"][1] is not None
    return Head(scope["method"], scope["path"], headers, over_tcp)


@functools.lru_cache(maxsize=256)
def _split(path: str) -> tuple[str, ...]:
    return tuple(part for part in path.split("/") if part)


@functools.lru_cache(maxsize=256)
def _model_path(rest: tuple[str, ...]) -> tuple[str | None, str]:
    """Version and action of the path after the model's name: [versions/<v>] [ready|infer|stats]."""
    version = None
    if len(rest) >= 2 and rest[0] == "versions":
        version, rest = rest[1], rest[2:]
    if rest in ((), ("ready",), ("infer",), ("stats",), ("outcome",), ("consent",)):
        return version, rest[0] if rest else ""
    raise _HttpError(
        404, f"a model has nothing at {'/'.join(rest)!r}, expected ready, infer, outcome, consent or stats"
    )


def _need(head: Head, method: str) -> None:
    if head.method != method and (head.method, method) != ("HEAD", "GET"):  # the server leaves out HEAD's body
        raise _HttpError(405, f"method is {head.method}, expected {method}", {"Allow": method})


@functools.lru_cache(maxsize=64)
def _is_local(host: str) -> bool:
    try:
        return urlsplit(f"//{host}").hostname in _LOCAL_HOSTS
    except ValueError:
        return False


def _json(document: Any) -> Reply:
    """A document, with the time of this server, so that `edgekit-agent check` can compare clocks."""
    from email.utils import formatdate  # not needed for the first answer of a model

    headers = {"Content-Type": oip.JSON_TYPE, "Date": formatdate(usegmt=True)}
    return Reply(200, msgspec.json.encode(document), headers)


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(status, oip.error_document(message), {"Content-Type": oip.JSON_TYPE, **(headers or {})})
