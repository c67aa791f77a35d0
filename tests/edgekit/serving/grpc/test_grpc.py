"""The gRPC service, called by grpcio with messages that the test builds from the specification's field numbers."""

from __future__ import annotations

import asyncio
import gzip
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.errors import ArenaFullError, DataError, NotFoundError, RuntimeLoadError, SettingsError, UnavailableError
from edgekit.serving.endpoints import Endpoints, open_endpoints
from edgekit.serving.grpc import codec as grpc_codec
from edgekit.serving.grpc.messages import SERVICE, message
from edgekit.serving.grpc.server import GrpcService, serve_grpc
from edgekit.serving.oip import codec as oip
from edgekit.serving.oip.tensor_data import NAMES
from edgekit.serving.session.session import OverloadedError
from edgekit.tensors import DType
from tests.edgekit.serving.http.test_app import Doubler
from tests.simulators.echo import Echo

X = np.array([[1, 2]], np.float32)


class Client:
    """One channel to the service."""

    def __init__(self, address: str, **options: int) -> None:
        self.channel = grpc.aio.insecure_channel(address, options=[*options.items()])

    async def bytes(self, method: str, data: bytes, **more: Any) -> bytes:
        """Send bytes as they are."""
        return await self.channel.unary_unary(f"/{SERVICE}/{method}")(data, **{"timeout": 10, **more})

    async def __call__(self, method: str, asked: Any = None, **more: Any) -> Any:
        data = asked.SerializeToString() if asked is not None else b""
        return message(f"{method}Response").FromString(await self.bytes(method, data, **more))


def infer(value: np.ndarray = X, *, raw: bool = True, name: str = "x", **fields: Any) -> Any:
    """A ModelInferRequest for one input."""
    asked = message("ModelInferRequest")(**{"model_name": "m", **fields})
    tensor = asked.inputs.add(name=name, datatype=NAMES[DType.of(value.dtype)], shape=value.shape)
    if raw:
        asked.raw_input_contents.append(value.tobytes())
    else:
        tensor.contents.fp32_contents.extend(value.ravel().tolist())
    return asked


def in_shared_memory(asked: Any) -> None:
    """Make the input of a request one that lies in shared memory, as Triton's client does."""
    asked.ClearField("raw_input_contents")
    asked.inputs[0].parameters["shared_memory_region"].string_param = "region"


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


@pytest.fixture
def server() -> Doubler:
    return Doubler()


@pytest.fixture
async def ask(server: Doubler) -> AsyncIterator[Client]:
    async with serve_grpc(GrpcService(server, max_request_bytes=2**20), address="127.0.0.1:0") as bound:
        client = Client(bound.address)
        yield client
        await client.channel.close()


async def test_health_metadata_index_and_statistics_have_their_messages(ask: Client, server: Doubler) -> None:
    """The metadata calls answer the same values as HTTP's documents."""
    assert (await ask("ServerLive")).live
    assert (await ask("ServerReady")).ready
    found = await ask("ServerMetadata")
    assert (found.name, "statistics" in found.extensions) == ("edgekit", True)
    model = await ask("ModelMetadata", message("ModelMetadataRequest")(name="m"))
    assert (model.name, model.versions, model.platform) == ("m", ["1.0.0"], "test_test")
    assert [(t.name, t.datatype, list(t.shape)) for t in model.inputs] == [("x", "FP32", [-1, 2])]
    (entry,) = (await ask("RepositoryIndex")).models
    assert (entry.name, entry.version, entry.state) == ("m", "1.0.0", "READY")
    for request in (None, message("ModelStatisticsRequest")(name="m", version="1.0.0")):
        (counted,) = (await ask("ModelStatistics", request)).model_stats
        assert (counted.inference_count, counted.inference_stats.success.ns) == (6, 30)
    ready = message("ModelReadyRequest")
    assert (await ask("ModelReady", ready(name="m"))).ready
    assert not (await ask("ModelReady", ready(name="other"))).ready
    server.is_ready = False
    assert not (await ask("ModelReady", ready(name="m"))).ready
    assert not (await ask("ServerReady")).ready
    assert not (await ask("RepositoryIndex", message("RepositoryIndexRequest")(ready=True))).models


@pytest.mark.parametrize("raw", [True, False])
async def test_inference_answers_in_the_form_that_was_sent(ask: Client, raw: bool) -> None:
    """A raw request gets a raw answer, a typed request a typed one; id and parameters are in the answer."""
    found = await ask("ModelInfer", infer(raw=raw, id="seven", model_version="1.0.0"))
    (tensor,) = found.outputs
    assert (found.model_name, found.model_version, found.id) == ("m", "1.0.0", "seven")
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("y", "FP32", [1, 2])
    data = np.frombuffer(found.raw_output_contents[0], np.float32) if raw else tensor.contents.fp32_contents
    assert list(data) == [2, 4]
    assert bool(found.raw_output_contents) is raw
    assert found.parameters["edgekit_route"].string_param == "local"


KINDS = {
    "bool": np.array([[True, False]]),
    **{
        n: np.array([[np.iinfo(n).min, np.iinfo(n).max]], n)
        for n in (k.value for k in DType)
        if n.startswith(("i", "u"))
    },
    "float32": np.array([[-1e-38, 3e38]], np.float32),
    "float64": np.array([[-1e-300, 1e300]]),
    "bytes": np.array([[b"", b"\xff\x00a"]], dtype=object),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_every_datatype_goes_there_and_back(kind: str) -> None:
    """Every dtype keeps each bit in typed and raw form, and so does an empty tensor."""
    for value in (KINDS[kind], KINDS[kind][:0]):
        request = oip.InferRequest({"x": value}, outputs={"y": True})
        found = oip.InferResponse("m", "1", {"y": value}, {"a": True, "b": 3, "c": 0.5, "d": "e", "f": None})
        for raw in (True, False):
            asked = infer(raw=raw)
            answer = grpc_codec.infer_response(found, request, asked)
            assert answer.parameters["c"].double_param == 0.5
            again = message("ModelInferRequest")(model_name="m", raw_input_contents=answer.raw_output_contents)
            for tensor in answer.outputs:  # an output is what an input looks like
                again.inputs.add().ParseFromString(tensor.SerializeToString())
            back = grpc_codec.infer_request(again).inputs["y"]
            assert (back.dtype, back.shape) == (value.dtype, value.shape)
            assert back.tolist() == value.tolist()


async def test_halves_travel_raw_whatever_was_sent() -> None:
    """FP16 has no typed contents: its answer is raw, and a typed request is an error that says so."""
    half = np.array([[1, 2]], np.float16)
    found = grpc_codec.infer_response(oip.InferResponse("m", "1", {"y": half}), oip.InferRequest({}), infer(raw=False))
    assert found.raw_output_contents == [half.tobytes()]
    asked = infer(raw=False)
    asked.inputs[0].datatype = "FP16"
    with pytest.raises(DataError, match="no typed contents"):
        grpc_codec.infer_request(asked)


def damaged(**fields: Any) -> Callable[[Any], None]:
    """Sets fields of the first input."""

    def change(asked: Any) -> None:
        tensor = asked.inputs[0]
        for name, value in fields.items():
            if isinstance(value, list):
                del getattr(tensor, name)[:]
                getattr(tensor, name).extend(value)
            else:
                setattr(tensor, name, value)

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (damaged(shape=[3, 2]), "needs 24 bytes"),
        (damaged(shape=[-1, 2]), "sizes of 0 or more"),
        (damaged(shape=[1] * 20), "20 axes"),
        (damaged(shape=[2**62, 2**62, 0]), "cannot have shape|needs"),
        (damaged(datatype="FP8"), "'FP8'"),
        (damaged(datatype="BYTES"), "BYTES"),
        (lambda a: a.raw_input_contents.append(b""), "has 2 tensors, inputs has 1"),
        (lambda a: a.inputs[0].contents.fp32_contents.append(1), "both contents and raw"),
        (lambda a: (a.inputs.append(a.inputs[0]), a.raw_input_contents.append(b"")), "appears twice"),
        (lambda a: a.raw_input_contents.pop(), "fp32_contents has 0 elements"),
        (lambda a: (a.outputs.add(name="y"), a.outputs.add(name="y")), "requested twice"),
        (lambda a: a.outputs.add(name="nope"), "'nope' is unknown"),
        (in_shared_memory, "x: shared memory is not served here"),
    ],
)
async def test_lies_are_invalid_arguments(ask: Client, change: Callable[[Any], None], says: str) -> None:
    """Faults of shape, datatype, contents and outputs each have a message; none is an internal error."""
    asked = infer()
    change(asked)
    error = await refused(ask("ModelInfer", asked))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error
    assert any(part in error.details() for part in says.split("|")), error.details()


def test_typed_numbers_must_fit_their_datatype() -> None:
    """int_contents also carries INT8, so it may contain 300, which is refused."""
    asked = message("ModelInferRequest")()
    asked.inputs.add(name="x", datatype="INT8", shape=[1]).contents.int_contents.append(300)
    with pytest.raises(DataError, match="outside INT8"):
        grpc_codec.infer_request(asked)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (NotFoundError("gone"), grpc.StatusCode.NOT_FOUND),
        (OverloadedError("m", 64, 2.2), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (UnavailableError("away"), grpc.StatusCode.UNAVAILABLE),
        (RuntimeLoadError("the runtime failed"), grpc.StatusCode.INTERNAL),
        (ArenaFullError("the arena is full"), grpc.StatusCode.UNAVAILABLE),
        (ZeroDivisionError("secret detail"), grpc.StatusCode.INTERNAL),
    ],
)
async def test_each_error_has_its_status(ask: Client, server: Doubler, fault: Exception, code: grpc.StatusCode) -> None:
    """A bug's message is not shown. An overload carries the retry time in the form that gRPC's retries read."""
    server.fault = fault
    error = await refused(ask("ModelInfer", infer()))
    assert error.code() is code
    assert "secret" not in error.details()
    pushback = dict(error.trailing_metadata() or ()).get("grpc-retry-pushback-ms")
    assert pushback == ("2200" if code is grpc.StatusCode.RESOURCE_EXHAUSTED else None)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=60), at=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_any_bytes_are_parsed_or_refused(data: bytes, at: int, flip: int) -> None:
    """Random bytes, or a request with one changed byte, parse or raise DataError; other errors fail the test."""
    whole = bytearray(infer(id="a", parameters={}).SerializeToString())
    whole[at % len(whole)] ^= flip
    for sent in (data, bytes(whole), bytes(whole) + data):
        try:
            grpc_codec.infer_request(grpc_codec.parse("ModelInferRequest", sent))
        except DataError:
            continue


async def test_nonsense_and_what_is_too_long_are_refused_and_the_next_call_is_answered(ask: Client) -> None:
    """Bytes that are no message, a message over the limit, and a small message that unpacks to a large one."""
    assert (await refused(ask.bytes("ModelInfer", b"\xff\xff"))).code() is grpc.StatusCode.INVALID_ARGUMENT
    long = infer(np.zeros((1, 2**20), np.float32))
    for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
        error = await refused(ask("ModelInfer", long, compression=compression))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(gzip.compress(long.SerializeToString())) < 2**16  # so that the second was refused by its real length
    assert (await refused(ask.bytes("ModelConfig", b""))).code() is grpc.StatusCode.UNIMPLEMENTED
    assert (await ask("ModelInfer", infer(), compression=grpc.Compression.Gzip)).outputs


async def test_a_deadline_reaches_the_model_and_a_caller_that_left_costs_nothing_more() -> None:
    """gRPC's deadline becomes the request's deadline. A late or cancelled call ends with its gRPC status."""
    echo = Echo()
    async with serve_grpc(GrpcService(echo, max_request_bytes=2**20), address="127.0.0.1:0") as bound:
        client, seen = Client(bound.address), []
        answer = echo.answer

        async def watched(model: str, version: str | None, request: oip.InferRequest) -> oip.InferResponse:
            seen.append(request.parameters.get("edgekit_deadline_ms"))
            return await answer(model, version, request)

        echo.answer = watched  # type: ignore[method-assign]
        await client("ModelInfer", infer(), timeout=5)
        await client("ModelInfer", infer(), timeout=None)
        own = infer(parameters={"edgekit_deadline_ms": message("InferParameter")(int64_param=7)})
        await client("ModelInfer", own, timeout=5)
        assert 0 < seen[0] < 5500  # gRPC rounds it up
        assert seen[1:] == [None, 7]
        echo.gate.clear()
        late = await refused(client("ModelInfer", infer(), timeout=0.1))
        assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await client.channel.close()


async def test_the_api_key_guards_everything_but_health(server: Doubler) -> None:
    """Without the exact key only the health calls work; with a key, gRPC may listen on any address."""
    service = GrpcService(server, max_request_bytes=4096, api_key="s3cret")
    async with serve_grpc(service, address="0.0.0.0:0") as bound:
        ask = Client(bound.address.replace("0.0.0.0", "127.0.0.1"))
        for metadata in ((), (("authorization", "Bearer s3cre"),), (("authorization", "s3cret"),)):
            assert (await ask("ServerLive", metadata=metadata)).live
            error = await refused(ask("ServerMetadata", metadata=metadata))
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        assert (await ask("ServerMetadata", metadata=(("authorization", "Bearer s3cret"),))).name == "edgekit"
        await ask.channel.close()
    assert service.codes == {"OK": 4, "UNAUTHENTICATED": 3}


async def test_without_a_key_only_this_machine_is_served(server: Doubler) -> None:
    """gRPC has no Host header, so only the address keeps foreign callers out."""
    with pytest.raises(SettingsError, match="loopback only"):
        async with serve_grpc(GrpcService(server, max_request_bytes=10), address="0.0.0.0:0"):
            pass


async def test_the_unix_socket_is_guarded_as_that_of_http_is(server: Doubler, tmp_path: Path) -> None:
    """The socket has mode 0660. A dead server's socket is replaced, a live one's is not; none remains at the end."""
    path, service = tmp_path / "g.sock", GrpcService(server, max_request_bytes=4096)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    mask = os.umask(0o022)
    os.umask(mask)
    async with serve_grpc(service, socket=path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        client = Client(f"unix:{path}")
        assert (await client("ModelInfer", infer())).outputs
        await client.channel.close()
        with pytest.raises(UnavailableError, match="another server answers"):
            async with serve_grpc(service, socket=path):
                pass
    assert not path.exists()
    assert os.umask(mask) == mask


async def test_a_taken_port_is_an_error_that_names_it(server: Doubler) -> None:
    """A second server on the same port is refused."""
    service = GrpcService(server, max_request_bytes=4096)
    async with serve_grpc(service, address="127.0.0.1:0") as bound:
        with pytest.raises(UnavailableError, match=bound.address):
            async with serve_grpc(service, address=bound.address):
                pass


async def test_calls_that_run_are_finished_before_the_server_ends() -> None:
    """Leaving the block waits for a running call."""
    echo = Echo()
    echo.gate.clear()
    async with serve_grpc(GrpcService(echo, max_request_bytes=4096), address="127.0.0.1:0") as bound:
        client = Client(bound.address)
        asked = asyncio.ensure_future(client("ModelInfer", infer()))
        await echo.asked.wait()
        asyncio.get_running_loop().call_later(0.1, echo.gate.set)
    assert (await asked).outputs
    await client.channel.close()


async def test_calls_that_arrive_at_the_end_are_answered_or_told_to_come_again() -> None:
    """Calls that had arrived and had no handler yet were cancelled, which no client tries again."""
    echo = Echo()
    echo.gate.clear()
    async with serve_grpc(GrpcService(echo, max_request_bytes=4096), address="127.0.0.1:0") as bound:
        client = Client(bound.address)
        running = asyncio.ensure_future(client("ModelInfer", infer()))
        await echo.asked.wait()
        asked = [asyncio.ensure_future(client("ModelInfer", infer())) for _ in range(60)]
        asyncio.get_running_loop().call_later(0.3, echo.gate.set)
    assert (await running).outputs
    found = await asyncio.gather(*asked, return_exceptions=True)
    refusals = [one for one in found if isinstance(one, grpc.aio.AioRpcError)]
    assert len(refusals) + sum(bool(getattr(one, "outputs", ())) for one in found) == 60
    assert {one.code() for one in refusals} == {grpc.StatusCode.UNAVAILABLE}
    assert any(dict(one.trailing_metadata() or ()).get("grpc-retry-pushback-ms") == "1000" for one in refusals)
    await client.channel.close()


async def test_over_the_limit_calls_are_shed() -> None:
    """A call above the limit is refused at once."""
    echo = Echo()
    echo.gate.clear()
    async with serve_grpc(GrpcService(echo, max_request_bytes=4096), address="127.0.0.1:0", max_calls=2) as bound:
        client = Client(bound.address)
        running = [asyncio.ensure_future(client("ModelInfer", infer())) for _ in range(2)]
        await echo.arrived(2)
        assert (await refused(client("ServerLive"))).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        echo.gate.set()
        assert all(found.outputs for found in await asyncio.gather(*running))
        await client.channel.close()


@pytest.mark.parametrize("is_new", [True, False])
async def test_more_calls_than_one_connection_may_have_at_once_wait(is_new: bool) -> None:
    """gRPC reset a part of them by chance (UNAVAILABLE), which hit proxies that share one connection."""
    async with serve_grpc(GrpcService(Echo(), max_request_bytes=4096), address="127.0.0.1:0") as bound:
        client = Client(bound.address)
        if not is_new:
            await client("ModelInfer", infer())
        found = await asyncio.gather(*[client("ModelInfer", infer()) for _ in range(1000)], return_exceptions=True)
        await client.channel.close()
    assert [one for one in found if isinstance(one, BaseException)] == []


async def test_http_and_grpc_are_served_side_by_side(server: Doubler) -> None:
    """Both endpoints use one server, and the metrics over HTTP count the calls over gRPC."""
    wanted = Endpoints(url="127.0.0.1:0", grpc="127.0.0.1:0")
    async with open_endpoints(server, wanted, max_request_bytes=4096) as endpoints:
        client = Client(endpoints.grpc)
        await client("ModelInfer", infer())
        await client.channel.close()
        host, port = endpoints.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        said = (await reader.read()).decode()
        writer.close()
    assert 'edgekit_grpc_responses_total{code="OK"} 1\n' in said
    assert 'edgekit_model_requests_total{model="m"} 1\n' in said
    assert str(endpoints) == f"{endpoints.url}, grpc {endpoints.grpc}"
