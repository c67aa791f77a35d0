"""Models with state over HTTP and gRPC: streams, errors with their status, and no way to the cloud tier."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import msgspec
import numpy as np
import pytest

from device_agents.inference.options import ServiceOptions
from device_agents.inference.service import InferenceService
from edgekit.errors import DataError, RuntimeLoadError, UnavailableError
from edgekit.serving.cloud import CloudModels
from edgekit.serving.endpoints import Endpoints, open_endpoints
from edgekit.serving.grpc.messages import SERVICE, message
from edgekit.serving.models.options import ModelOptions, ModelSettings
from edgekit.serving.oip import codec as oip
from edgekit.serving.session.queue import OverloadedError
from edgekit.serving.session.sequence import Sequence
from tests.simulators.cloud import MemoryCloud
from tests.simulators.small_models import UNSURE, onnx_bundle, softmax
from tests.simulators.streaming_models import expected, steps, streaming_bundle

INFER = "/v2/models/ear/infer"
ANSWER = {"y": np.full((1, 4), 99, np.float32)}


@pytest.fixture
async def cloud() -> MemoryCloud:
    return MemoryCloud(ANSWER)


@pytest.fixture
async def service(tmp_path: Path, cloud: MemoryCloud) -> AsyncIterator[InferenceService]:
    """With the model ``ear``, two copies of it, a cloud tier, and settings that send every answer there."""
    options = ModelOptions(max_streams=2, instances=2)
    everything, models = ServiceOptions(fallback_threshold="all"), {"elsewhere": ModelSettings()}
    async with InferenceService(cloud=cloud, options=options, service=everything, models=models) as made:
        await made.activate("ear", streaming_bundle(tmp_path / "1"), tmp_path / "1")
        yield made


@pytest.fixture
async def endpoints(service: InferenceService) -> AsyncIterator[Endpoints]:
    wanted = Endpoints(url="127.0.0.1:0", grpc="127.0.0.1:0")
    async with open_endpoints(service, wanted, max_request_bytes=2**20) as opened:
        yield opened


def _call(url: str, body: bytes, headers: dict[str, str], path: str = INFER) -> tuple[int, Any, dict[str, str]]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    connection.request("POST" if body else "GET", path, body, headers)
    reply = connection.getresponse()
    data = reply.read()
    connection.close()
    length = oip.header_length(reply.getheader(oip.HEADER))
    answer = json.loads(data) if reply.status != 200 or path != INFER else oip.parse_response(data, length)
    return reply.status, answer, dict(reply.getheaders())


async def sent(url: str, x: np.ndarray, *, binary: bool = True, **parameters: Any) -> tuple[int, Any, dict[str, str]]:
    """Send one request as Triton's client does; status, answer and headers."""
    encoded = oip.encode_request({"x": x}, parameters=parameters, binary=binary)
    return await asyncio.to_thread(_call, url, encoded.body, encoded.headers)


async def streamed(url: str, key: int | str, x: np.ndarray, **options: Any) -> np.ndarray:
    """One stream, a request a step; tritonclient always sends the three parameters."""
    answers = []
    for i, step in enumerate(x):
        place = {"sequence_id": key, "sequence_start": i == 0, "sequence_end": i == len(x) - 1}
        status, answer, _ = await sent(url, step, **place, **options)
        assert status == 200, answer
        answers.append(answer.outputs["y"])
    return np.stack(answers)


async def test_streams_over_http_are_those_of_the_float_model(endpoints: Endpoints, cloud: MemoryCloud) -> None:
    """Two streams side by side, one binary and one JSON; nothing is sent to the cloud tier."""
    inputs = steps(6, 1), steps(6, 2)
    found = await asyncio.gather(
        streamed(endpoints.url, 1, inputs[0]), streamed(endpoints.url, "two", inputs[1], binary=False)
    )
    for answers, x in zip(found, inputs, strict=True):
        np.testing.assert_allclose(answers, expected(x), atol=1e-5)
    status, answer, _ = await sent(endpoints.url, inputs[0][0])
    np.testing.assert_allclose(answer.outputs["y"], expected(inputs[0])[0], atol=1e-5)
    assert (status, list(answer.outputs)) == (200, ["y"])
    assert answer.parameters["edgekit_route"] == "local"
    assert answer.parameters["edgekit_reason"] == "stateful"
    assert cloud.asked == []


async def test_streams_over_grpc_are_those_of_the_float_model(endpoints: Endpoints) -> None:
    """Numbers and texts are ids; an unknown stream is INVALID_ARGUMENT."""
    channel = grpc.aio.insecure_channel(endpoints.grpc)

    async def ask(step: np.ndarray, **parameters: Any) -> np.ndarray:
        asked = message("ModelInferRequest")(model_name="ear")
        asked.inputs.add(name="x", datatype="FP32", shape=step.shape)
        asked.raw_input_contents.append(step.tobytes())
        for name, value in parameters.items():
            kind = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
            setattr(asked.parameters[name], kind, value)
        data = await channel.unary_unary(f"/{SERVICE}/ModelInfer")(asked.SerializeToString(), timeout=10)
        answer = message("ModelInferResponse").FromString(data)
        assert [output.name for output in answer.outputs] == ["y"]
        return np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(1, 4)

    for key in (9, "nine"):
        x = steps(4, 3)
        found = [await ask(step, sequence_id=key, sequence_start=i == 0) for i, step in enumerate(x)]
        np.testing.assert_allclose(np.stack(found), expected(x), atol=1e-5)
    with pytest.raises(grpc.aio.AioRpcError, match="is not open") as caught:
        await ask(steps(1)[0], sequence_id=10)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    await channel.close()


async def test_clients_see_no_state_and_that_the_model_has_streams(
    endpoints: Endpoints, service: InferenceService
) -> None:
    """The metadata has the limits, the server its extensions, and the metrics the open streams."""
    _, document, _ = await asyncio.to_thread(_call, endpoints.url, b"", {}, "/v2/models/ear")
    assert [one["name"] for one in (*document["inputs"], *document["outputs"])] == ["x", "y"]
    assert document["parameters"] == {
        "sequence_batching": True,
        "edgekit_streams": {"max_streams": 2, "idle_seconds": 60.0},
    }
    _, document, _ = await asyncio.to_thread(_call, endpoints.url, b"", {}, "/v2")
    assert {"sequence", "sequence(string_id)"} <= {*document["extensions"]}
    await sent(endpoints.url, steps(1)[0], sequence_id=1, sequence_start=True)
    assert service.gauges()["ear"]["streams"] == 1


async def test_errors_of_streams_have_their_status(
    endpoints: Endpoints, service: InferenceService, tmp_path: Path
) -> None:
    """400 for an unknown stream, 429 for one too many, 410 for one that a switch ended."""
    x = steps(1)[0]
    status, answer, _ = await sent(endpoints.url, x, sequence_id=5)
    assert (status, "its first request must have sequence_start true" in answer["error"]) == (400, True)
    status, answer, _ = await sent(endpoints.url, x, sequence_id=1.5)
    assert (status, "sequence_id is 1.5" in answer["error"]) == (400, True)
    for key in (5, 6):
        assert (await sent(endpoints.url, x, sequence_id=key, sequence_start=True))[0] == 200
    status, answer, headers = await sent(endpoints.url, x, sequence_id=7, sequence_start=True)
    assert (status, "2 open streams" in answer["error"]) == (429, True)
    assert 1 <= int(headers["Retry-After"]) <= 60
    await service.activate("ear", streaming_bundle(tmp_path / "2", version="1.1.0", gain=2.0), tmp_path / "2")
    status, answer, _ = await sent(endpoints.url, x, sequence_id=5)
    assert (status, "switched from version 1.0.0 to 1.1.0" in answer["error"]) == (410, True)
    assert (await sent(endpoints.url, x, sequence_id=5, sequence_start=True))[0] == 200


async def test_no_request_of_a_model_with_state_reaches_the_cloud(
    service: InferenceService, cloud: MemoryCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cloud-only is an error that says why; a failing or overloaded model is an error and not asked for elsewhere."""
    x = {"x": steps(1)[0]}
    with pytest.raises(DataError, match="keeps the state of each stream on this device; it is never sent to the cloud"):
        await service.infer("ear", x, route="cloud-only")
    entry = service._manager.get("ear")
    assert entry is not None
    assert entry.session is not None
    session = entry.session
    for error in (RuntimeLoadError("broken"), OverloadedError("ear", 3, 1.0)):

        async def failing(*_: Any, error: Exception = error) -> Any:
            raise error

        assert session.streams is not None
        session.streams._calls = session.streams._calls._replace(run=failing)
        with pytest.raises(type(error)):
            await service.infer("ear", x)
    with pytest.raises(UnavailableError, match="a request of a stream is answered locally only"):
        await service.infer("elsewhere", x, sequence=Sequence(1, start=True))
    assert cloud.asked == []


async def test_a_model_without_state_ignores_streams(service: InferenceService, cloud: MemoryCloud, tmp_path) -> None:
    """As with Triton; such requests may go to the cloud tier."""
    await service.activate("small", onnx_bundle(tmp_path / "small"), tmp_path / "small")
    cloud.outputs = {"scores": softmax(UNSURE), "tag": np.zeros((1, 1), np.float32)}
    request = oip.InferRequest({"x": UNSURE}, parameters={"sequence_id": 3})
    assert (await service.answer("small", None, request)).parameters["edgekit_route"] == "cloud"


async def test_streams_survive_a_crash_of_the_worker_process(tmp_path: Path) -> None:
    """The state lives in the agent, so a stream goes on in the next process."""
    manifest, x = streaming_bundle(tmp_path), steps(3)
    settings = {"ear": ModelSettings(isolation="process")}
    async with InferenceService(models=settings) as service:
        await service.activate("ear", manifest, tmp_path)
        first = await service.infer("ear", {"x": x[0]}, sequence=Sequence(1, start=True))
        entry = service._manager.get("ear")
        assert entry is not None
        assert entry.session is not None
        os.kill(entry.session.runtime.pid, signal.SIGKILL)  # type: ignore[attr-defined]
        found = [first]
        for step in x[1:]:
            for _ in range(100):
                try:
                    found.append(await service.infer("ear", {"x": step}, sequence=Sequence(1)))
                    break
                except (RuntimeLoadError, UnavailableError):
                    await asyncio.sleep(0.1)
        np.testing.assert_allclose(np.stack([one.outputs["y"] for one in found]), expected(x), atol=1e-5)


async def test_the_cloud_tier_as_a_server_of_its_own_keeps_streams_too(tmp_path: Path) -> None:
    """Its clients talk to it directly; devices never send it a stream."""
    manifest, x = streaming_bundle(tmp_path), steps(3)
    models = await CloudModels.open(["ear"], lambda name: (manifest, tmp_path), threads=1)
    found = []
    for i, step in enumerate(x):
        request = oip.InferRequest({"x": step}, parameters={"sequence_id": 1, "sequence_start": i == 0})
        found.append((await models.answer("ear", None, request)).outputs["y"])
    np.testing.assert_allclose(np.stack(found), expected(x), atol=1e-5)
    with pytest.raises(DataError, match="is not open"):
        await models.answer("ear", None, msgspec.structs.replace(request, parameters={"sequence_id": 2}))
    await models.close()
