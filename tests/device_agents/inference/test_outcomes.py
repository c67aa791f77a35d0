"""The application's judgement of answers over HTTP, and how each bundle's behaviour is counted."""

import asyncio
import http.client
import json

import numpy as np
import pytest

from device_agents.inference.service import InferenceService
from device_agents.inference.watch import behaviour as log
from device_agents.inference.watch.behaviour import BehaviourLog
from edgekit.errors import ConflictError, DataError, NotFoundError
from edgekit.mqtt.messages import LATENCY_BOUNDS_MS
from edgekit.serving.cloud import CloudModels
from edgekit.serving.http.app import App
from edgekit.serving.http.server import serve
from tests.simulators.small_models import SURE, onnx_bundle


async def ask(port, path, document):
    """POST a document and return the status and the answer."""

    def post():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", path, json.dumps(document), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    return await asyncio.to_thread(post)


def request(name):
    row = np.asarray(SURE, np.float32)
    inputs = [{"name": "x", "datatype": "FP32", "shape": list(row.shape), "data": row.ravel().tolist()}]
    return {"id": name, "inputs": inputs}


async def test_an_outcome_is_accepted_once_and_counted_for_the_bundle_that_answered(tmp_path):
    """A second one gets 409, an unknown answer 404, and what is no outcome 400. A switch starts new counts."""
    first = onnx_bundle(tmp_path / "1", name="m", version="1.0.0")
    second = onnx_bundle(tmp_path / "2", name="m", version="2.0.0")
    async with InferenceService() as service:
        await service.activate("m", first, tmp_path / "1")
        async with serve(App(service, max_request_bytes=2**20), http="127.0.0.1:0", socket=None) as bound:
            port = int(bound.url.rsplit(":", 1)[1])
            for name in ("a", "b"):
                assert (await ask(port, "/v2/models/m/infer", request(name)))[0] == 200
            outcome = "/v2/models/m/outcome"
            assert await ask(port, outcome, {"id": "a", "good": True}) == (200, {"id": "a", "good": True})
            assert (await ask(port, outcome, {"id": "a", "good": False}))[0] == 409
            await service.activate("m", second, tmp_path / "2")
            assert (await ask(port, outcome, {"id": "b", "good": False}))[0] == 200
            status, answer = await ask(port, outcome, {"id": "nobody", "good": True})
            assert status == 404
            assert "'nobody'" in answer["error"]
            for bad in ({"id": "a"}, {"id": 1, "good": True}, {"id": "a", "good": "yes"}, []):
                assert (await ask(port, outcome, bad))[0] == 400
            assert (await ask(port, "/v2/models/m/infer", request("c")))[0] == 200
        behaviour = service.behaviour("m")
    assert list(behaviour) == [first.digest, second.digest]
    old = behaviour[first.digest]
    assert (old.requests, old.errors, old.local, old.outcomes, old.good) == (2, 0, 2, 2, 1)
    assert behaviour[second.digest].requests == 1
    assert len(old.slower) == len(LATENCY_BOUNDS_MS)


async def test_a_cloud_tier_counts_no_outcomes():
    """It answers 404 with the reason."""
    async with serve(App(CloudModels(), max_request_bytes=2**20), http="127.0.0.1:0", socket=None) as bound:
        status, answer = await ask(int(bound.url.rsplit(":", 1)[1]), "/v2/models/m/outcome", {"id": "a", "good": True})
    assert (status, answer["error"]) == (404, "this server counts no outcomes; the agent on a device does")


async def test_a_clients_fault_is_no_error_of_the_model(tmp_path):
    """Inputs of the wrong shape count for the requests of the metrics, not for the behaviour of the bundle."""
    async with InferenceService() as service:
        manifest = onnx_bundle(tmp_path / "1", name="m", version="1.0.0")
        await service.activate("m", manifest, tmp_path / "1")
        with pytest.raises(DataError):
            await service.infer("m", {"x": np.zeros((1, 99), np.float32)})
        assert service.behaviour("m") == {}


def test_an_outcome_is_accepted_within_an_hour():
    """And not after; an id that is used again names the newer answer."""
    counts = BehaviourLog()
    counts.remember("m", "a", "d1", 0.0)
    with pytest.raises(NotFoundError):
        counts.outcome("m", "a", 3601.0, good=True)
    counts.remember("m", "b", "d1", 0.0)
    counts.outcome("m", "b", 3599.0, good=True)
    with pytest.raises(ConflictError):
        counts.outcome("m", "b", 3600.0, good=True)
    counts.remember("m", "b", "d2", 3601.0)
    counts.outcome("m", "b", 3602.0, good=False)
    assert {digest: (one.outcomes, one.good) for digest, one in counts.behaviour("m").items()} == {
        "d1": (1, 1),
        "d2": (1, 0),
    }


def test_memory_is_bounded(monkeypatch):
    """The oldest answers and the oldest bundles are forgotten."""
    monkeypatch.setattr(log, "MAX_ANSWERS", 10)
    counts = BehaviourLog()
    for number in range(100):
        counts.remember("m", str(number), "d", 0.0)
        counts.answered("m", f"d{number}", 0.003, local=True)
    with pytest.raises(NotFoundError):
        counts.outcome("m", "89", 1.0, good=True)
    counts.outcome("m", "90", 1.0, good=True)
    assert list(counts.behaviour("m")) == ["d98", "d99", "d"]
    assert counts.behaviour("m")["d99"].slower[:4] == (1, 1, 0, 0)


async def test_an_application_answers_for_the_user(tmp_path):
    """The agent takes the answer; where nothing asks for one it is 404, and what is no answer 400."""
    answers = []

    async def take(model, agreed):
        answers.append((model, agreed))
        return "1.1.0"

    service = InferenceService()
    async with serve(App(service, max_request_bytes=2**20), http="127.0.0.1:0", socket=None) as bound:
        port = int(bound.url.rsplit(":", 1)[1])
        assert (await ask(port, "/v2/models/m/consent", {"agree": True}))[0] == 404
        service.ask_consent(take)
        found = await ask(port, "/v2/models/m/consent", {"agree": False})
        assert found == (200, {"model": "m", "version": "1.1.0", "agree": False})
        assert (await ask(port, "/v2/models/m/consent", {"agree": "no"}))[0] == 400
    assert answers == [("m", False)]
