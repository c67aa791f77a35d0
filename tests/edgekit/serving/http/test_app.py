"""The application over a model server in memory."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from edgekit.errors import ArenaFullError, CloudError, DataError, NotFoundError, RuntimeLoadError, UnavailableError
from edgekit.serving.api.description import ModelDescription
from edgekit.serving.http.app import App
from edgekit.serving.oip import codec as oip
from edgekit.serving.session.session import OverloadedError
from edgekit.serving.session.statistics import Statistics
from edgekit.tensors import DType, TensorSpec

SPEC = TensorSpec("x", DType.FLOAT32, (None, 2))


class Doubler:
    """ModelServer with one model, ``m`` 1.0.0, that answers ``y`` = 2 ``x``; `fault` is raised instead."""

    def __init__(self) -> None:
        self.fault: Exception | None = None
        self.is_ready = True
        self.asked = 0

    def models(self) -> list[str]:
        return ["m"]

    def ready(self) -> bool:
        return self.is_ready

    def describe(self, model: str, version: str | None) -> ModelDescription:
        if model != "m" or version not in (None, "1.0.0"):
            raise NotFoundError(f"there is no model {model} {version}")
        if not self.is_ready:
            raise UnavailableError("m is loading")
        return ModelDescription("m", "1.0.0", "test_test", (SPEC,), (SPEC,))

    async def answer(self, model: str, version: str | None, request: oip.InferRequest) -> oip.InferResponse:
        self.describe(model, version)
        self.asked += 1
        if self.fault:
            raise self.fault
        return oip.InferResponse(model, "1.0.0", {"y": request.inputs["x"] * 2}, {"edgekit_route": "local"})

    def statistics(self, model: str, version: str | None) -> Statistics:
        return Statistics(runs=3, rows=6, success_count=3, success_ns=30, queue_ns=10, compute_ns=20)

    def counters(self) -> dict[str, dict[str, float]]:
        return {"m": {"requests": self.asked, "errors": 0}}


class Reply:
    """The answer of the application."""

    def __init__(self, messages: list[dict[str, Any]]) -> None:
        start, *bodies = messages
        self.status: int = start["status"]
        self.headers = {name.decode(): value.decode() for name, value in start["headers"]}
        self.body = b"".join(message["body"] for message in bodies)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def ask(
    app: App,
    method: str,
    path: str,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    *,
    server: tuple[str, int | None] = ("127.0.0.1", 80),
    chunks: list[bytes] | None = None,
) -> Reply:
    parts = chunks or [body]
    incoming = [{"type": "http.request", "body": part, "more_body": i < len(parts) - 1} for i, part in enumerate(parts)]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return incoming.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    await app({"type": "http", "method": method, "path": path, "headers": raw, "server": server}, receive, send)
    return Reply(sent)


@pytest.fixture
def server() -> Doubler:
    return Doubler()


@pytest.fixture
def app(server: Doubler) -> App:
    return App(server, max_request_bytes=4096)


REQUEST = oip.encode_request({"x": np.array([[1, 2]], np.float32)})
JSON_REQUEST = oip.encode_request({"x": np.array([[1, 2]], np.float32)}, binary=False)
INFER = "/v2/models/m/infer"


async def test_metadata_and_health_have_their_documents(app: App) -> None:
    """Server and model describe themselves as the protocol says."""
    assert (await ask(app, "GET", "/v2")).json["extensions"] == [
        *("binary_tensor_data", "statistics"),
        *("sequence", "sequence(string_id)"),
    ]
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/m/ready", "/v2/models/m/versions/1.0.0/ready"):
        assert (await ask(app, "GET", path)).status == 200
    for path in ("/v2/models/m", "/v2/models/m/versions/1.0.0"):
        document = (await ask(app, "GET", path)).json
        assert (document["name"], document["versions"]) == ("m", ["1.0.0"])
        assert document["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]


async def test_inference_answers_in_json_and_in_binary(app: App) -> None:
    """The JSON and the binary answer have the same numbers and parameters; the binary one has the length header."""
    for request in (REQUEST, JSON_REQUEST):
        reply = await ask(app, "POST", INFER, request.body, request.headers)
        assert reply.status == 200
        length = oip.header_length(reply.headers.get(oip.HEADER.lower()))
        assert (length is None) == (request.header_length is None)
        response = oip.parse_response(reply.body, length)
        np.testing.assert_array_equal(response.outputs["y"], [[2, 4]])
        assert response.parameters == {"edgekit_route": "local"}
        assert (response.model, response.version) == ("m", "1.0.0")


async def test_a_body_in_pieces_is_joined(app: App) -> None:
    """A request that arrives in chunks is the same request."""
    chunks = [REQUEST.body[i : i + 7] for i in range(0, len(REQUEST.body), 7)]
    assert (await ask(app, "POST", INFER, headers=REQUEST.headers, chunks=chunks)).status == 200


@pytest.mark.parametrize(
    ("fault", "status", "says"),
    [
        (DataError("x: shape is [3]"), 400, "shape is [3]"),
        (NotFoundError("no such version"), 404, "no such version"),
        (OverloadedError("m", 64, 2.2), 429, "64 requests waiting"),
        (RuntimeLoadError("the runtime failed"), 500, "the runtime failed"),
        (ArenaFullError("the arena is full"), 503, "the arena is full"),
        (CloudError("the cloud tier is away"), 503, "cloud tier is away"),
        (ZeroDivisionError("secret detail"), 500, "internal error"),
    ],
)
async def test_each_error_has_its_status(app: App, server: Doubler, fault: Exception, status: int, says: str) -> None:
    """Errors are JSON with one key; the message of a bug is not shown."""
    server.fault = fault
    reply = await ask(app, "POST", INFER, REQUEST.body, REQUEST.headers)
    assert reply.status == status
    assert list(reply.json) == ["error"]
    assert says in reply.json["error"]
    assert "secret" not in reply.json["error"]
    assert (reply.headers.get("retry-after") == "3") == (status == 429)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v2/health", 404),
        ("GET", "/v2/health/live/x", 404),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/m/versions/9.9.9", 404),
        ("GET", "/v2/models/m/explain", 404),
        ("POST", "/v2/models/other/infer", 404),
        ("GET", INFER, 405),
        ("POST", "/v2", 405),
        ("POST", "/metrics", 405),
    ],
)
async def test_wrong_paths_and_methods_are_told(app: App, method: str, path: str, status: int) -> None:
    """An unknown path gets 404; a wrong method gets 405 with the right one in Allow."""
    reply = await ask(app, method, path, REQUEST.body, REQUEST.headers)
    assert reply.status == status
    assert reply.json["error"]
    assert ("allow" in reply.headers) == (status == 405)


async def test_a_model_that_is_not_ready_is_503(app: App, server: Doubler) -> None:
    """Readiness fails while a model cannot answer; liveness does not."""
    server.is_ready = False
    for path in ("/v2/health/ready", "/v2/models/m/ready", "/v2/models/m"):
        assert (await ask(app, "GET", path)).status == 503
    assert (await ask(app, "GET", "/v2/health/live")).status == 200


async def test_large_bodies_are_refused_before_and_while_they_are_read(app: App, server: Doubler) -> None:
    """A stated length over the limit is refused before the body is read; an unstated one at the limit."""
    assert (await ask(app, "POST", INFER, b"", {"Content-Length": "4097"})).status == 413
    assert (await ask(app, "POST", INFER, chunks=[bytes(4096), b"x", b""])).status == 413
    assert server.asked == 0


async def test_bad_requests_are_400_and_compressed_ones_415(app: App) -> None:
    """Faults of the client are the client's statuses."""
    assert (await ask(app, "POST", INFER, b"{")).status == 400
    assert (await ask(app, "POST", INFER, REQUEST.body, {oip.HEADER: "nonsense"})).status == 400
    assert (await ask(app, "POST", INFER, REQUEST.body, {"Content-Encoding": "gzip"})).status == 415


async def test_pages_of_a_browser_cannot_talk_to_a_local_server(app: App) -> None:
    """A foreign Host (DNS rebinding) and any Origin are refused over TCP; local names and UNIX sockets are not."""
    for host in ("localhost:80", "127.0.0.1", "[::1]:8600", ""):
        assert (await ask(app, "GET", "/v2", headers={"Host": host})).status == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "127.0.0.2", "localhost@evil.example", "[::1"):
        assert (await ask(app, "GET", "/v2", headers={"Host": host})).status == 403
    assert (await ask(app, "GET", "/v2", headers={"Origin": "http://localhost"})).status == 403
    assert (await ask(app, "GET", "/v2", headers={"Host": "any"}, server=("/run/x.sock", None))).status == 200
    opened = App(Doubler(), max_request_bytes=10, local_only=False)
    assert (await ask(opened, "GET", "/v2", headers={"Host": "cloud.example"})).status == 200
    keyed = App(Doubler(), max_request_bytes=10, api_key="secret")  # behind a TLS proxy that keeps the client's Host
    proxied = {"Host": "cloud.example", "Authorization": "Bearer secret"}
    assert (await ask(keyed, "GET", "/v2", headers=proxied)).status == 200
    assert (await ask(keyed, "GET", "/v2", headers={"Host": "cloud.example"})).status == 401


async def test_the_api_key_guards_everything_but_health(server: Doubler) -> None:
    """Without the exact key only the health paths work."""
    app = App(server, max_request_bytes=4096, api_key="s3cret")
    for path in ("/v2", "/v2/models/m", "/metrics"):
        for header in (
            {},
            {"Authorization": "Bearer s3cre"},
            {"Authorization": "s3cret"},
            {"Authorization": "Bearer é"},
        ):
            reply = await ask(app, "GET", path, headers=header)
            assert reply.status == 401
            assert reply.headers["www-authenticate"] == "Bearer"
        assert (await ask(app, "GET", path, headers={"Authorization": "Bearer s3cret"})).status == 200
    assert (await ask(app, "GET", "/v2/health/live")).status == 200


async def test_metrics_count_answers_by_status_and_by_model(app: App) -> None:
    """/metrics counts the requests that were answered before."""
    await ask(app, "POST", INFER, REQUEST.body, REQUEST.headers)
    await ask(app, "POST", INFER, b"{")
    text = (await ask(app, "GET", "/metrics")).body.decode()
    assert 'edgekit_http_responses_total{code="200"} 1\n' in text
    assert 'edgekit_http_responses_total{code="400"} 1\n' in text
    assert 'edgekit_model_requests_total{model="m"} 1\n' in text


async def test_a_client_that_leaves_gets_no_answer_and_no_error(app: App, server: Doubler) -> None:
    """A disconnect in the middle of the body ends the request quietly."""
    sent = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await app({"type": "http", "method": "POST", "path": INFER, "headers": [], "server": None}, receive, send)
    assert sent == []
    assert server.asked == 0


async def test_the_raw_form_is_a_tensor_and_nothing_else(app: App) -> None:
    """With a header length of 0 the body is the input, and the answer comes in binary."""
    raw = {oip.HEADER: "0"}
    reply = await ask(app, "POST", INFER, np.array([1, 2], np.float32).tobytes(), raw)
    found = oip.parse_response(reply.body, oip.header_length(reply.headers[oip.HEADER.lower()]))
    np.testing.assert_array_equal(found.outputs["y"], [[2, 4]])
    assert (await ask(app, "POST", INFER, b"12345", raw)).status == 400
    assert (await ask(app, "POST", "/v2/models/other/infer", b"12345", raw)).status == 404


async def test_the_index_lists_every_model_and_its_state(app: App, server: Doubler) -> None:
    """A model that cannot answer is listed with the reason, unless only ready ones are asked for."""
    path = "/v2/repository/index"
    assert (await ask(app, "POST", path)).json == [{"name": "m", "version": "1.0.0", "state": "READY", "reason": ""}]
    server.is_ready = False
    (entry,) = (await ask(app, "POST", path, b"{}")).json
    assert (entry["state"], entry["reason"]) == ("UNAVAILABLE", "m is loading")
    assert (await ask(app, "POST", path, b'{"ready": true}')).json == []
    assert (await ask(app, "POST", path, b"[]")).status == 400
    assert (await ask(app, "GET", path)).status == 405


async def test_statistics_are_told_of_one_model_or_of_all(app: App) -> None:
    """The document has the protocol's names; times are nanoseconds."""
    for path in ("/v2/models/m/stats", "/v2/models/m/versions/1.0.0/stats", "/v2/models/stats"):
        (found,) = (await ask(app, "GET", path)).json["model_stats"]
        assert (found["name"], found["version"]) == ("m", "1.0.0")
        assert (found["inference_count"], found["execution_count"]) == (6, 3)
        assert found["inference_stats"]["success"] == {"count": 3, "ns": 30}
        assert found["inference_stats"]["queue"] == {"count": 3, "ns": 10}
    assert (await ask(app, "GET", "/v2/models/m/versions/2.0.0/stats")).status == 404


async def test_head_answers_as_get_does(app: App) -> None:
    """Probes that send HEAD see the status."""
    assert (await ask(app, "HEAD", "/v2/health/ready")).status == 200
    assert (await ask(app, "HEAD", INFER)).status == 405
