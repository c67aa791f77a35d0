"""InferenceService: local answers, the cloud tier as a fallback, and switches of a model without a gap."""

from __future__ import annotations

import asyncio
import http.client
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from device_agents.inference.cloud.failures import CloudOverloadedError, CloudRefusedError, CloudTimeoutError
from device_agents.inference.options import ServiceOptions
from device_agents.inference.service import InferenceService
from device_agents.storage.footprints import DiskFootprints
from edgekit.bundle.manifest import Manifest
from edgekit.errors import (
    CloudError,
    DataError,
    NotFoundError,
    RuntimeLoadError,
    SelfTestError,
    UnavailableError,
)
from edgekit.protocols import CloudAnswer
from edgekit.runtimes import open_runtime
from edgekit.serving.api import documents
from edgekit.serving.http.app import App
from edgekit.serving.http.server import serve
from edgekit.serving.models import load_progress
from edgekit.serving.models.memory_plan import MIB, SETTLE_SECONDS, MemoryBudgetError
from edgekit.serving.models.options import ModelOptions, ModelSettings
from edgekit.serving.oip import codec as oip
from edgekit.serving.session.session import DeadlineError, OverloadedError
from edgekit.storage.disk import FolderDisk
from edgekit.tensors import Array, DType
from tests.simulators.cloud import CLOUD_OUTPUTS, MemoryCloud
from tests.simulators.small_models import SURE, UNSURE, identity_bundle, litert_bundle, onnx_bundle, softmax


class HeldClock:
    """Clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return 0.0


class Broken:
    """A real runtime that fails on demand, or answers NaN."""

    def __init__(self, manifest: Manifest, folder: Path) -> None:
        self._real = open_runtime(manifest, folder)
        self.inputs, self.outputs, self.provider = self._real.inputs, self._real.outputs, self._real.provider
        self.fails = self.nan = False

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if self.fails:
            raise RuntimeLoadError("the runtime failed")
        found = self._real.run(inputs)
        return {name: value * np.float32(np.nan) for name, value in found.items()} if self.nan else found

    def close(self) -> None:
        self._real.close()


@pytest.fixture
def clock() -> HeldClock:
    return HeldClock()


@pytest.fixture
async def cloud() -> MemoryCloud:
    return MemoryCloud(CLOUD_OUTPUTS)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return onnx_bundle(tmp_path)


@pytest.fixture
async def service(
    cloud: MemoryCloud, clock: HeldClock, manifest: Manifest, tmp_path: Path
) -> AsyncIterator[InferenceService]:
    """With one active model, ``small`` 1.0.0, a cloud tier and a held clock."""
    settings = {"other": ModelSettings()}
    async with InferenceService(cloud=cloud, clock=clock, spread=lambda: 0.0, models=settings) as made:
        await made.activate("small", manifest, tmp_path)
        yield made


def where(response: oip.InferResponse) -> tuple[str, str]:
    return response.parameters["edgekit_route"], response.parameters["edgekit_reason"]


async def test_a_sure_answer_is_local_and_says_what_it_is(service, cloud, manifest) -> None:
    """Outputs of the local model, its digest and version, the score, and no question to the cloud."""
    found = await service.infer("small", {"x": SURE})
    np.testing.assert_allclose(found.outputs["scores"], softmax(SURE), atol=1e-6)
    assert where(found) == ("local", "confident")
    assert found.parameters["edgekit_model"] == manifest.digest
    assert found.parameters["edgekit_version"] == found.version == "1.0.0"
    assert found.parameters["edgekit_score"] == pytest.approx(softmax(SURE).max())
    assert "edgekit_certificate" not in found.parameters
    assert cloud.asked == []


async def test_an_unsure_answer_comes_from_the_cloud(service, cloud, manifest) -> None:
    """The cloud's outputs, with the score that sent the request there and the device's own bundle."""
    found = await service.infer("small", {"x": UNSURE})
    np.testing.assert_array_equal(found.outputs["tag"], CLOUD_OUTPUTS["tag"])
    assert where(found) == ("cloud", "low-score")
    assert found.parameters["edgekit_score"] == pytest.approx(softmax(UNSURE).max())
    assert found.parameters["edgekit_local_model"] == manifest.digest
    assert found.version == ""  # the tier did not say which bundle it has
    assert "edgekit_model" not in found.parameters
    ((model, inputs, _),) = cloud.asked
    assert model == "small"
    np.testing.assert_array_equal(inputs["x"], UNSURE)


async def test_without_the_cloud_an_unsure_answer_is_degraded_and_then_costs_nothing(service, cloud, clock) -> None:
    """No answer is lost; after three failures the cloud is left alone until the cool-down is over, then used again."""
    cloud.fault = CloudError("away")
    reasons = [where(await service.infer("small", {"x": UNSURE})) for _ in range(5)]
    assert reasons == [("degraded", "cloud-failed")] * 3 + [("degraded", "breaker-open")] * 2
    assert len(cloud.asked) == 3
    cloud.fault = None
    assert where(await service.infer("small", {"x": UNSURE})) == ("degraded", "breaker-open")
    clock.now += 1.0
    assert where(await service.infer("small", {"x": UNSURE})) == ("cloud", "low-score")
    found = service.counters()["small"]
    assert found.pop("run_us") >= 0
    assert found == {
        "runs": 7,
        "runtime_errors": 0,
        "unusable": 0,
        "requests": 7,
        "local": 0,
        "cloud": 1,
        "degraded": 6,
        "errors": 0,
        "shed": 0,
        "expired": 0,
        "cloud_errors": 6,
        "certified": 0,
        "explored": 0,
        "explored_differing": 0,
        "reasons.cloud-failed": 3,
        "reasons.breaker-open": 3,
        "reasons.low-score": 1,
        "cloud_failures.failed": 3,
        "cloud_failures.breaker-open": 3,
        "cloud_retries": 0,
        "swaps": 1,
        "loads": 1,
        "evictions": 0,
        "crashes": 0,
    }


async def test_what_the_cloud_refuses_is_not_sent_again_and_again(service, cloud, clock) -> None:
    """A 400 in a row opens a slow breaker, and a wrong key opens it at once; the error has the tier's words."""
    cloud.fault = CloudRefusedError("the cloud tier answered 400: x has 4 columns")
    for _ in range(3):
        assert where(await service.infer("small", {"x": UNSURE})) == ("degraded", "cloud-failed")
    assert where(await service.infer("small", {"x": UNSURE})) == ("degraded", "breaker-open")
    with pytest.raises(CloudError, match=r"not called at present; the last failure: .* 400: x has 4 columns"):
        await service.infer("small", {"x": UNSURE}, route="cloud-only")
    clock.now += 29.0
    assert where(await service.infer("small", {"x": UNSURE})) == ("degraded", "breaker-open")
    assert len(cloud.asked) == 3
    clock.now += 1.0
    cloud.fault = None
    assert where(await service.infer("small", {"x": UNSURE}))[0] == "cloud"
    cloud.fault = CloudRefusedError("the cloud tier answered 401: the API key is wrong", status=401)
    routes = [where(await service.infer("small", {"x": UNSURE}))[1] for _ in range(3)]
    assert routes == ["cloud-failed", "breaker-open", "breaker-open"]
    found = service.counters()["small"]
    assert {name: n for name, n in found.items() if name.startswith("cloud_failures")} == {
        "cloud_failures.refused": 3,
        "cloud_failures.breaker-open": 5,
        "cloud_failures.unauthorized": 1,
    }


async def test_failures_are_logged_once_a_minute_for_each_kind(service, cloud, clock, caplog) -> None:
    """A tier that is away for hours writes a line a minute, with the number of failures that it left out."""
    cloud.fault = CloudError("away")
    for _ in range(3):
        await service.infer("small", {"x": UNSURE})
    assert [r.message for r in caplog.records] == ["cloud tier, model small: failed: away"]
    clock.now += 61.0
    await service.infer("small", {"x": UNSURE})
    assert caplog.records[-1].message == "cloud tier, model small: failed: away (2 more since the last message)"


async def test_the_failures_of_one_model_do_not_open_the_breaker_of_another(service, cloud) -> None:
    """Every model has its own breaker and its own limit of calls."""
    cloud.fault = CloudRefusedError("404", status=404)
    with pytest.raises(CloudError):
        await service.infer("other", {"x": SURE})
    cloud.fault = None
    assert where(await service.infer("small", {"x": UNSURE})) == ("cloud", "low-score")
    with pytest.raises(CloudError, match="not called at present"):
        await service.infer("other", {"x": SURE})


async def test_the_cloud_tier_says_when_to_come_back(service, cloud, clock) -> None:
    """Retry-After holds the model's calls back for exactly that time (and a random part of its half)."""
    cloud.fault = CloudOverloadedError("busy", retry_after_seconds=7.0)
    assert where(await service.infer("small", {"x": UNSURE})) == ("degraded", "cloud-failed")
    cloud.fault = None
    clock.now += 6.9
    assert where(await service.infer("small", {"x": UNSURE})) == ("degraded", "breaker-open")
    clock.now += 0.2
    assert where(await service.infer("small", {"x": UNSURE})) == ("cloud", "low-score")


async def test_each_model_has_its_own_place_in_the_cloud(cloud, manifest, tmp_path) -> None:
    """Name there, threshold and permission are per model, with the agent's as defaults."""
    settings = {
        "kept": ModelSettings(send_inputs="never"),
        "sure": ModelSettings(fallback_threshold=0.2, cloud_model="sure-big"),
        "all": ModelSettings(fallback_threshold="all"),
    }
    service = ServiceOptions(cloud_model="big", fallback_threshold=0.8)
    async with InferenceService(cloud=cloud, models=settings, service=service) as made:
        for name in ("plain", *settings):
            bundle = onnx_bundle(tmp_path / name, name=name)
            await made.activate(name, bundle, tmp_path / name)
        assert where(await made.infer("plain", {"x": UNSURE})) == ("cloud", "low-score")
        assert where(await made.infer("sure", {"x": UNSURE})) == ("local", "confident")
        assert where(await made.infer("all", {"x": SURE})) == ("cloud", "low-score")
        assert where(await made.infer("sure", {"x": UNSURE}, route="cloud-only")) == ("cloud", "requested")
        assert [name for name, _, _ in cloud.asked] == ["big", "big", "sure-big"]
        assert where(await made.infer("kept", {"x": UNSURE})) == ("local", "private")
        with pytest.raises(UnavailableError, match="'kept', whose inputs may not leave this device"):
            await made.infer("kept", {"x": UNSURE}, route="cloud-only")
        await made.deactivate("kept")
        with pytest.raises(UnavailableError, match="no local bundle"):
            await made.infer("kept", {"x": UNSURE})
        assert len(cloud.asked) == 3


async def test_local_only_never_leaves_the_device(service, cloud) -> None:
    """The answer is local, however low its score."""
    found = await service.infer("small", {"x": UNSURE}, route="local-only")
    assert where(found) == ("local", "requested")
    assert cloud.asked == []


async def test_cloud_only_is_the_cloud_or_an_error_with_its_reason(service, cloud) -> None:
    """A certain local answer is not used, and the error names the missing cloud tier."""
    assert where(await service.infer("small", {"x": SURE}, route="cloud-only")) == ("cloud", "requested")
    cloud.fault = CloudError("the cloud tier is away: refused")
    with pytest.raises(CloudError, match="is away: refused"):
        await service.infer("small", {"x": SURE}, route="cloud-only")
    async with InferenceService() as alone:
        await alone.activate("small", *_kept(service))
        with pytest.raises(UnavailableError, match="no cloud tier is configured"):
            await alone.infer("small", {"x": SURE}, route="cloud-only")


def _kept(service: InferenceService) -> tuple[Manifest, Path]:
    session = service._session("small")
    assert session is not None
    return session.manifest, session.folder


async def test_without_a_cloud_tier_unsure_answers_are_plain_local(manifest, tmp_path) -> None:
    """Nothing is degraded where nothing better was configured."""
    async with InferenceService() as service:
        await service.activate("small", manifest, tmp_path)
        assert where(await service.infer("small", {"x": UNSURE})) == ("local", "no-cloud")


async def test_a_model_without_a_local_bundle_is_answered_by_the_cloud(service, cloud) -> None:
    """auto and cloud-only reach the cloud, local-only is refused, and the metadata says why there is none."""
    found = await service.infer("other", {"x": SURE})
    assert where(found) == ("cloud", "no-local-model")
    assert found.version == ""
    assert "edgekit_model" not in found.parameters
    with pytest.raises(UnavailableError, match="no local bundle"):
        await service.infer("other", {"x": SURE}, route="local-only")
    with pytest.raises(UnavailableError, match="no local bundle yet"):
        service.describe("other", None)
    async with InferenceService() as alone:
        with pytest.raises(NotFoundError, match="no model 'other'"):
            alone.describe("other", None)
        with pytest.raises(NotFoundError, match="no model 'other'"):
            await alone.infer("other", {"x": SURE})


async def test_names_that_nobody_knows_never_leave_the_device(service, cloud) -> None:
    """A made-up name is 404 on every route, is not sent to the cloud, and adds no metrics; an assigned one exists."""
    for route in ("auto", "cloud-only", "local-only"):
        with pytest.raises(NotFoundError, match="no model 'made-up'"):
            await service.infer("made-up", {"x": SURE}, route=route)
    assert cloud.asked == []
    assert list(service.counters()) == ["small"]
    service.assign(["small", "made-up"])
    assert where(await service.infer("made-up", {"x": SURE})) == ("cloud", "no-local-model")
    service.assign([])
    with pytest.raises(NotFoundError):
        await service.infer("made-up", {"x": SURE})


async def test_a_cloud_answer_that_is_not_the_models_is_not_passed_on(service, cloud) -> None:
    """A missing output or another shape makes the local answer degraded."""
    cloud.outputs = {"scores": np.zeros((1, 3), np.float32)}
    assert where(await service.infer("small", {"x": UNSURE})) == ("degraded", "cloud-failed")
    cloud.outputs = {**CLOUD_OUTPUTS, "scores": np.zeros((1, 4), np.float32)}
    with pytest.raises(CloudError, match=r"shape is \[1, 4\], expected \[any, 3\]"):
        await service.infer("small", {"x": UNSURE}, route="cloud-only")


async def test_the_deadline_bounds_the_wait_for_the_cloud(service, cloud, clock) -> None:
    """The time-out is what the deadline leaves, less the time to return the local answer."""
    await service.infer("small", {"x": UNSURE}, deadline_ms=500)
    assert cloud.asked[-1][2] == pytest.approx(0.45)
    await service.infer("small", {"x": UNSURE}, deadline_ms=60_000)
    assert cloud.asked[-1][2] == pytest.approx(2.0)
    await service.infer("small", {"x": UNSURE}, deadline_ms=500, route="cloud-only")
    assert cloud.asked[-1][2] == pytest.approx(0.5)  # there is no local answer to return

    async def late(model: str, inputs: Any, *, timeout_seconds: float, wanted: object) -> CloudAnswer:
        clock.now += timeout_seconds
        raise CloudTimeoutError("too late")

    cloud.infer = late
    for _ in range(5):  # a short deadline says nothing about the cloud tier, so the breaker stays closed
        assert where(await service.infer("small", {"x": UNSURE}, deadline_ms=50)) == ("degraded", "deadline")
    found = [where(await service.infer("small", {"x": UNSURE}, deadline_ms=300)) for _ in range(4)]
    assert found == [("degraded", "deadline")] * 3 + [("degraded", "breaker-open")]
    clock.now += 1.0  # now a probe is due, but one of 40 ms would prove nothing
    assert where(await service.infer("small", {"x": UNSURE}, deadline_ms=50)) == ("degraded", "breaker-open")


async def test_a_failing_runtime_is_answered_by_the_cloud(cloud, manifest, tmp_path) -> None:
    """After a runtime error, or NaN in the answer, the cloud tier is called; without one the client gets the error."""
    made: list[Broken] = []

    def load(manifest: Manifest, folder: Path) -> Broken:
        made.append(Broken(manifest, folder))
        return made[-1]

    async with InferenceService(cloud=cloud, load=load) as service:
        await service.activate("small", manifest, tmp_path)
        made[0].nan = True
        assert where(await service.infer("small", {"x": SURE})) == ("cloud", "local-error")
        made[0].fails = True
        assert where(await service.infer("small", {"x": SURE})) == ("cloud", "local-error")
        with pytest.raises(RuntimeLoadError, match="the runtime failed"):
            await service.infer("small", {"x": SURE}, route="local-only")
        cloud.fault = CloudError("away")
        with pytest.raises(RuntimeLoadError, match="the runtime failed"):
            await service.infer("small", {"x": SURE})
        made[0].fails = False
        assert where(await service.infer("small", {"x": SURE})) == ("degraded", "cloud-failed")
        for odd in (np.nan, np.inf):  # not the model's fault
            await service.infer("small", {"x": np.full_like(SURE, odd)})
        found = service.counters()["small"]
        assert (found["runs"], found["runtime_errors"], found["unusable"]) == (7, 3, 2)
        assert found["run_us"] > 0


async def test_clients_that_send_nan_open_no_breaker_for_the_others(service, cloud) -> None:
    """The cloud tier's answer to it has NaN too."""
    cloud.outputs = {name: value * np.float32(np.nan) for name, value in CLOUD_OUTPUTS.items()}
    for _ in range(4):
        assert where(await service.infer("small", {"x": SURE * np.float32(np.nan)})) == ("cloud", "local-error")
    cloud.outputs = dict(CLOUD_OUTPUTS)
    assert where(await service.infer("small", {"x": UNSURE})) == ("cloud", "low-score")


async def test_only_the_rows_with_nan_and_the_unsure_ones_travel(cloud, tmp_path) -> None:
    """The others keep the device's answer."""
    cloud.outputs = {name: np.repeat(value, 2, axis=0) for name, value in CLOUD_OUTPUTS.items()}
    rows = np.concatenate([SURE, SURE * np.nan, SURE, UNSURE]).astype(np.float32)
    async with InferenceService(cloud=cloud) as service:
        await service.activate("small", onnx_bundle(tmp_path, batch=None), tmp_path)
        found = await service.infer("small", {"x": rows})
    assert where(found) == ("cloud", "local-error")
    np.testing.assert_array_equal(cloud.asked[0][1]["x"], rows[[1, 3]])
    np.testing.assert_allclose(found.outputs["scores"][[0, 2]], softmax(rows[[0, 2]]), atol=1e-6)
    np.testing.assert_array_equal(found.outputs["scores"][[1, 3]], cloud.outputs["scores"])


async def test_a_full_queue_goes_to_the_cloud_or_is_refused(cloud, manifest, tmp_path) -> None:
    """Overload is answered by the cloud in auto, and is an error where the request stays local."""
    async with InferenceService(cloud=cloud, options=ModelOptions(queue_limit=1)) as service:
        await service.activate("small", manifest, tmp_path)
        session = service._session("small")
        assert session is not None
        gate = threading.Event()
        busy = asyncio.ensure_future(session.call(lambda runtime: gate.wait(10)))
        await asyncio.sleep(0)
        assert where(await service.infer("small", {"x": SURE})) == ("cloud", "overloaded")
        with pytest.raises(OverloadedError):
            await service.infer("small", {"x": SURE}, route="local-only")
        assert service.counters()["small"]["shed"] == 2
        gate.set()
        await busy


async def test_a_deadline_that_the_local_model_cannot_keep_goes_to_the_cloud_with_its_own_reason(
    cloud, manifest, tmp_path
) -> None:
    """It is no overload: the queue has room."""
    async with InferenceService(cloud=cloud) as service:
        await service.activate("small", manifest, tmp_path)
        session = service._session("small")
        assert session is not None
        session._mean_seconds = 60.0
        gate = threading.Event()
        busy = asyncio.ensure_future(session.call(lambda runtime: gate.wait(10)))
        await asyncio.sleep(0)
        assert where(await service.infer("small", {"x": SURE}, deadline_ms=10_000)) == ("cloud", "deadline")
        gate.set()
        await busy
        counted = service.counters()["small"]
        assert (counted["expired"], counted["reasons.deadline"]) == (1, 1)


async def test_requests_that_name_no_deadline_have_the_services(cloud, manifest, tmp_path) -> None:
    """Behind a long run they fail in time, or are the cloud's; one of their own goes before it."""
    async with InferenceService(service=ServiceOptions(deadline_ms=20)) as service:
        await service.activate("small", manifest, tmp_path)
        session = service._session("small")
        assert session is not None
        gate = threading.Event()
        busy = asyncio.ensure_future(session.call(lambda runtime: gate.wait(10)))
        await asyncio.sleep(0)
        with pytest.raises(DeadlineError):
            await service.infer("small", {"x": SURE})
        assert (service.counters()["small"]["expired"], service.counters()["small"]["runs"]) == (1, 0)
        patient = asyncio.ensure_future(service.infer("small", {"x": SURE}, deadline_ms=60_000))
        await asyncio.sleep(0.05)
        assert not patient.done()
        gate.set()
        assert where(await patient)[0] == "local"
        await busy


async def test_health_answers_while_a_long_inference_runs(manifest, tmp_path) -> None:
    """Over HTTP: a request that takes long keeps neither health nor metadata waiting, and one of little patience
    gets 429 with the time to come back."""
    made: list[Broken] = []

    def load(manifest: Manifest, folder: Path) -> Broken:
        made.append(Broken(manifest, folder))
        return made[-1]

    def get(path: str, body: bytes | None = None) -> tuple[int, str | None]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("POST" if body else "GET", path, body)
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.headers["Retry-After"]

    async with InferenceService(load=load) as service:
        await service.activate("small", manifest, tmp_path)
        gate, entered = threading.Event(), threading.Event()
        real = made[0].run

        def slow(inputs: Mapping[str, Array]) -> dict[str, Array]:
            entered.set()
            assert gate.wait(10)
            return real(inputs)

        made[0].run = slow
        session = service._session("small")
        session._inline_bytes = -1  # as after a slow run
        async with serve(App(service, max_request_bytes=2**20), http="127.0.0.1:0") as bound:
            port = int(bound.url.rpartition(":")[2])
            infer = "/v2/models/small/infer"
            long = asyncio.ensure_future(asyncio.to_thread(get, infer, ask_body()))
            await asyncio.to_thread(entered.wait, 10)
            for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/small", "/metrics"):
                assert await asyncio.to_thread(get, path) == (200, None)
            assert not long.done()
            assert await asyncio.to_thread(get, infer, ask_body(edgekit_deadline_ms=20)) == (429, "1")
            gate.set()
            assert await long == (200, None)


def ask_body(**parameters: object) -> bytes:
    """A JSON request for SURE."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": SURE[0].tolist()}
    return msgspec.json.encode({"inputs": [tensor], "parameters": parameters})


async def test_bad_requests_are_told_and_stay_here(service, cloud) -> None:
    """Wrong inputs, routes, deadlines, versions and parameters are the client's errors."""
    for bad in ({"x": SURE.astype(np.int32)}, {"x": SURE[0]}, {}, {"x": SURE, "y": SURE}):
        for route in ("auto", "cloud-only"):
            with pytest.raises(DataError):
                await service.infer("small", bad, route=route)
    with pytest.raises(DataError, match="expected one of auto, local-only, cloud-only"):
        await service.infer("small", {"x": SURE}, route="cloud")
    with pytest.raises(NotFoundError, match=r"no version 2\.0\.0, its active version is 1\.0\.0"):
        await service.infer("small", {"x": SURE}, version="2.0.0")
    for parameters, says in (
        ({"edgekit_rout": "auto"}, "'edgekit_rout' is unknown"),
        ({"edgekit_route": ["auto"]}, "expected one of"),
        ({"edgekit_deadline_ms": True}, "edgekit_deadline_ms is True"),
        ({"edgekit_deadline_ms": "5"}, "edgekit_deadline_ms is '5', expected a number"),
        ({"edgekit_deadline_ms": -1}, "edgekit_deadline_ms is -1,"),
        ({"edgekit_deadline_ms": 10**400}, "edgekit_deadline_ms is 1000"),
    ):
        with pytest.raises(DataError, match=says):
            await service.answer("small", None, oip.InferRequest({"x": SURE}, parameters=parameters))
    with pytest.raises(DataError, match="'z' is unknown, expected scores, tag"):
        await service.answer("small", None, oip.InferRequest({"x": SURE}, outputs={"z": True}))
    assert cloud.asked == []


async def test_the_protocol_means_what_python_means(service) -> None:
    """Parameters of a request are the arguments of infer; foreign parameters are passed over."""
    parameters = {"edgekit_route": "local-only", "edgekit_deadline_ms": 50, "binary_data_output": True, "priority": 1}
    found = await service.answer("small", "1.0.0", oip.InferRequest({"x": UNSURE}, parameters=parameters))
    assert where(found) == ("local", "requested")


async def test_a_switch_under_load_loses_nothing_and_mixes_nothing(tmp_path: Path) -> None:
    """While versions change, every answer's version, digest and values are of one and the same bundle."""
    folders = [tmp_path / str(tag) for tag in range(6)]
    bundles = [onnx_bundle(folder, version=f"{tag}.0.0", tag=float(tag), work=20) for tag, folder in enumerate(folders)]
    digests = {bundle.version: bundle.digest for bundle in bundles}
    answers: list[oip.InferResponse] = []
    stop = asyncio.Event()

    async def client(service: InferenceService) -> None:
        while not stop.is_set():
            answers.append(await service.infer("small", {"x": SURE}))

    async with InferenceService(options=ModelOptions(queue_limit=1000)) as service:
        await service.activate("small", bundles[0], folders[0])
        clients = [asyncio.ensure_future(client(service)) for _ in range(8)]
        for bundle, folder in zip(bundles[1:], folders[1:], strict=True):
            await service.activate("small", bundle, folder)
            await asyncio.sleep(0.02)
        stop.set()
        await asyncio.gather(*clients)
    for found in answers:
        assert f"{found.outputs['tag'][0, 0]:.0f}.0.0" == found.version
        assert found.parameters["edgekit_model"] == digests[found.version]
    assert {found.version for found in answers} == set(digests)


async def test_a_bundle_that_cannot_be_loaded_leaves_the_old_one_answering(service, tmp_path) -> None:
    """A damaged artifact is refused before the switch."""
    bad = onnx_bundle(tmp_path / "bad", version="2.0.0")
    (tmp_path / "bad" / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(RuntimeLoadError, match=r"model\.onnx"):
        await service.activate("small", bad, tmp_path / "bad")
    assert (await service.infer("small", {"x": SURE})).version == "1.0.0"


async def test_several_models_answer_side_by_side(service, tmp_path) -> None:
    """Each name has its own bundle, runtime and counters; a removed one is gone."""
    other = litert_bundle(tmp_path / "other", name="other", version="3.0.0")
    await service.activate("other", other, tmp_path / "other")
    assert service.models() == ["small", "other"]
    assert (await service.infer("other", {"x": SURE})).version == "3.0.0"
    assert (service.provider("small"), service.provider("other")) == ("CPUExecutionProvider", "XNNPACK")
    assert service.describe("other", None).platform == "litert_tflite"
    await service.deactivate("other")
    await service.deactivate("never-there")
    assert service.models() == ["small"]
    assert service.provider("other") == ""


async def test_the_self_test_judges_the_live_model(service, tmp_path) -> None:
    """A sound model passes; one whose golden answers are others' fails, with output, difference and limit."""
    assert (await service.self_test("small")).passed
    wrong = onnx_bundle(tmp_path / "wrong", version="2.0.0", golden_gain=0.5)
    await service.activate("small", wrong, tmp_path / "wrong", compare=False)
    with pytest.raises(SelfTestError, match=r"small 2.0.0 .* scores: differs by 0.\d+, allowed 1e-05"):
        await service.self_test("small")
    with pytest.raises(NotFoundError):
        await service.self_test("none")


async def test_a_caller_that_gives_up_does_not_block_the_breaker(service, cloud, clock) -> None:
    """A cancelled probe lets the next request probe again."""
    cloud.fault = CloudError("away")
    for _ in range(3):
        await service.infer("small", {"x": UNSURE})
    clock.now += 1.0
    cloud.gate.clear()
    probe = asyncio.ensure_future(service.infer("small", {"x": UNSURE}))
    for _ in range(4):
        await cloud.arrivals.acquire()
    probe.cancel()
    await asyncio.gather(probe, return_exceptions=True)
    cloud.fault = None
    cloud.gate.set()
    assert where(await service.infer("small", {"x": UNSURE})) == ("cloud", "low-score")


async def test_calls_to_the_cloud_are_bounded(service, cloud) -> None:
    """When many wait for a slow cloud, the next unsure answer is given at once."""
    cloud.gate.clear()
    waiting = [asyncio.ensure_future(service.infer("small", {"x": UNSURE})) for _ in range(8)]
    for _ in waiting:
        await cloud.arrivals.acquire()
    assert where(await service.infer("small", {"x": UNSURE})) == ("degraded", "cloud-busy")
    cloud.gate.set()
    assert {where(found) for found in await asyncio.gather(*waiting)} == {("cloud", "low-score")}


async def test_every_datatype_goes_through_a_real_model(tmp_path) -> None:
    """BOOL, integers, half precision, floats and BYTES come back as they were sent, also with no rows."""
    numbers = [d.value for d in DType if d is not DType.BYTES]
    async with InferenceService() as service:
        for name, dtypes in (("kinds", numbers), ("text", ["bytes"])):
            await service.activate(
                name, identity_bundle(tmp_path / name, name=name, dtypes=tuple(dtypes)), tmp_path / name
            )
            assert (await service.self_test(name)).passed
            for rows in (3, 0):
                values = {d: np.ones((rows, 2), DType(d).numpy) for d in dtypes if d != "bytes"}
                if name == "text":
                    values = {"bytes": np.array([[b"a", "é".encode()]] * rows, object).reshape(rows, 2)}
                found = (await service.infer(name, values)).outputs
                for dtype, value in values.items():
                    assert found[f"{dtype}_out"].dtype == value.dtype
                    np.testing.assert_array_equal(found[f"{dtype}_out"], value)


async def test_models_over_the_budget_are_loaded_when_they_are_asked(tmp_path) -> None:
    """Of two models one fits. The other is described, listed and answered all the same, and waits for the
    first to have been there for a while; memory is told by model and kept on the disk."""
    kept = DiskFootprints(FolderDisk(tmp_path / "state"))
    bundles = {name: onnx_bundle(tmp_path / name, name=name, batch=None) for name in ("one", "two")}
    for manifest in bundles.values():
        kept.put(manifest.digest, 40 * MIB)  # as measured before; what such a small model really holds is less
    clock = HeldClock()
    async with InferenceService(
        service=ServiceOptions(memory_budget_bytes=60 * MIB), footprints=kept, clock=clock
    ) as service:
        for name, manifest in bundles.items():
            await service.activate(name, manifest, tmp_path / name)
        gauges = service.gauges()
        assert (gauges["one"]["loaded"], gauges["two"]["loaded"]) == (0, 1)
        assert (gauges["one"]["memory_bytes"], gauges["two"]["memory_bytes"]) == (0, 40 * MIB)
        assert service.models() == ["one", "two"]
        assert service.ready()
        reasons = {entry["name"]: entry["reason"] for entry in documents.index(service, ready_only=True)}
        assert reasons == {"one": documents.OUT_OF_MEMORY, "two": ""}
        with pytest.raises(DeadlineError, match="while model one was being loaded"):
            await service.infer("one", {"x": SURE}, deadline_ms=30)
        clock.now += SETTLE_SECONDS
        assert where(await service.infer("one", {"x": SURE})) == ("local", "confident")
        assert service.gauges()["two"]["loaded"] == 0
        clock.now += SETTLE_SECONDS
        assert (await service.self_test("two")).passed
        assert service.counters()["one"]["evictions"] == 2
        big = onnx_bundle(tmp_path / "big", name="big", gain=3.0)
        kept.put(big.digest, 70 * MIB)
        with pytest.raises(MemoryBudgetError):
            await service.activate("big", big, tmp_path / "big")
    again = DiskFootprints(FolderDisk(tmp_path / "state"))
    assert again.get(bundles["one"].digest) == 40 * MIB


async def test_the_cloud_answers_for_a_model_that_is_not_loaded_in_time(cloud, tmp_path) -> None:
    """A request that waits too long for its model is overload: `auto` calls the cloud tier while there is time."""
    async with InferenceService(cloud=cloud, options=ModelOptions(queue_limit=1)) as service:
        await service.activate("one", onnx_bundle(tmp_path, name="one"), tmp_path)
        model = service._manager.get("one")
        async with model.switching:
            session, model.session = model.session, None
            patient = asyncio.ensure_future(service.infer("one", {"x": SURE}))
            await asyncio.sleep(0.01)
            assert where(await service.infer("one", {"x": SURE})) == ("cloud", "overloaded")
            model.session = session
        assert where(await patient)[0] == "local"


def test_measured_sizes_survive_a_damaged_file_and_a_full_disk(tmp_path) -> None:
    """They are measured again; the oldest of too many are forgotten."""
    disk = FolderDisk(tmp_path)
    made = DiskFootprints(disk)
    for n in range(70):
        made.put(f"{n}", n)
    again = DiskFootprints(disk)
    assert (again.get("69"), again.get("6"), again.get("5")) == (69, 6, None)
    for damage in (b'{"69": "large"}', b'{"\xff9": 1}'):
        (tmp_path / "footprints.json").write_bytes(damage)
        assert DiskFootprints(disk).get("69") is None
    (tmp_path / "footprints.json").unlink()
    (tmp_path / "footprints.json").mkdir()
    broken = DiskFootprints(disk)
    broken.put("1", 1)
    assert broken.get("1") == 1


async def test_a_bundle_is_tried_as_it_will_run_and_says_when_that_takes_long(tmp_path) -> None:
    """The trial uses the service's own loader; the active bundle answers meanwhile, and a long trial is reported."""
    loaded, told, gate = [], [], threading.Event()
    gate.set()

    def load(manifest: Manifest, folder: Path) -> Any:
        assert gate.wait(10)
        loaded.append(manifest.version)
        return open_runtime(manifest, folder)

    first, second = (onnx_bundle(tmp_path / v, version=f"{v}.0.0") for v in "12")
    bad = onnx_bundle(tmp_path / "3", version="3.0.0", golden_gain=0.5)
    async with InferenceService(load=load) as service:
        service.listen(lambda kind, model, seconds: told.append((kind, model)), long_seconds=0.02)
        await service.activate("small", first, tmp_path / "1")
        told.clear()
        gate.clear()
        trial = asyncio.ensure_future(service.try_bundle(second, tmp_path / "2"))
        while not told:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert (await service.infer("small", {"x": SURE})).version == "1.0.0"
        gate.set()
        assert (await trial).passed
        assert told == [(load_progress.LOADING, "small"), (load_progress.LOADED, "small")]
        with pytest.raises(SelfTestError):
            await service.try_bundle(bad, tmp_path / "3")
        assert loaded == ["1.0.0", "2.0.0", "3.0.0"]
