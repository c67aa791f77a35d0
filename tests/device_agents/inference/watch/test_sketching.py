"""Sketches of real answers: what they count, how small they are, and that nothing is counted twice."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from device_agents.control.telemetry import MAX_WAITING, joined, split_sketches
from device_agents.inference.egress_rules import tells_inputs
from device_agents.inference.options import ServiceOptions
from device_agents.inference.service import InferenceService
from device_agents.inference.watch.sketching import ServedSketches
from edgekit.bundle.manifest import Task
from edgekit.errors import DataError
from edgekit.mqtt.messages import Telemetry, encode
from edgekit.serving.models.options import ModelSettings
from edgekit.sketches.signals import MAX_SKETCHES
from edgekit.sketches.sketch import Recorder, Sketch, sketch_fault
from tests.simulators.small_models import CLASSIFICATION, SURE, UNSURE, onnx_bundle


async def test_a_service_counts_what_it_answers(tmp_path: Path) -> None:
    """Latency, route and score of every request, class and inputs of one a second; once taken, they begin anew."""
    manifest = onnx_bundle(tmp_path, name="digits")
    async with InferenceService() as service:
        await service.activate("digits", manifest, tmp_path)
        for inputs in (SURE, UNSURE, SURE):
            await service.infer("digits", {"x": inputs})
        with pytest.raises(DataError):
            await service.infer("digits", {"x": np.zeros((1, 99), np.float32)})
        taken = service.take_sketches()
        assert service.take_sketches() == {}
    bundle = f"digits@{manifest.digest[:12]}"
    names = {f"{bundle}/{name}" for name in ("latency", "route", "score", "class", "input.x")}
    assert taken.keys() == names
    assert all(sketch_fault(sketch) == "" for sketch in taken.values())
    assert taken[f"{bundle}/route"].bins(0) == {0: 3}, "the client's fault is no error of the model"
    assert taken[f"{bundle}/latency"].total == taken[f"{bundle}/score"].total == 3
    assert taken[f"{bundle}/score"].maximum > 0.99
    assert (taken[f"{bundle}/class"].bins(0), taken[f"{bundle}/input.x"].samples) == ({0: 1}, 1)


def served(requests: int, inputs: int = 1) -> dict[str, Sketch]:
    rng = np.random.default_rng(1)
    sketches = ServedSketches()
    for number in range(requests):
        digest = "0123456789abcdef"
        sketches.answered("m", digest, seconds=rng.lognormal(-4, 1), route="local", score=rng.beta(8, 2))
        if sketches.wants_sample("m", digest, float(number)):
            values = {f"input-{at}": rng.normal(size=(1, 32, 32, 3)).astype(np.float32) for at in range(inputs)}
            outputs = {"scores": rng.random((1, 1000))}
            sketches.sample("m", digest, CLASSIFICATION, values, outputs)
    return sketches.take()


def test_a_message_is_small() -> None:
    """A busy model with one input: at most 700 bytes a minute; an idle one adds nothing."""
    sketches = served(600)
    assert len(sketches) == 5
    full, empty = (encode(Telemetry("d1", 1.0, 60.0, {}, found, 1, 1)) for found in (sketches, {}))
    assert len(full) - len(empty) <= 700


def test_a_strange_model_cannot_make_it_large() -> None:
    """At most eight inputs of a model, 64 values each, and NaN, text and empty tensors are left out."""
    found = served(5, inputs=20)
    assert sum("/input." in key for key in found) == 8
    assert all(sketch.samples == 5 and sketch.total == 5 * 64 for key, sketch in found.items() if "/input." in key)
    sketches = ServedSketches()
    odd = {
        "nan": np.array([np.nan]),
        "text": np.array(["x"], object),
        "none": np.zeros((0, 3)),
        "inf": np.array([np.inf]),
    }
    sketches.sample("m", "0" * 64, Task("other", "y", ""), odd, {})
    assert sketches.take() == {}


def test_sketches_that_were_not_sent_wait_and_stay_bounded() -> None:
    """They join the next ones; names beyond the limit are dropped, the oldest first. The oldest are sent first."""
    one, other = (Recorder(0) for _ in range(2))
    one.add(1.0)
    other.add(2.0)
    first, second = one.sketch(), other.sketch()
    assert joined({"m/score": first}, {"m/score": second})["m/score"] == first.merged(second)
    many = joined({f"old-{n}/score": first for n in range(MAX_WAITING)}, {"new/score": second})
    assert len(many) == MAX_WAITING
    assert "new/score" in many
    assert "old-0/score" not in many
    sent, later = split_sketches(many)
    assert len(sent) == MAX_SKETCHES
    assert {**sent, **later} == many
    busy = {f"m{n}/score": first for n in range(MAX_SKETCHES + 20)}
    sent, later = split_sketches(busy)
    assert set(split_sketches(joined(later, busy))[0]) > busy.keys() - sent.keys(), "every model has its turn"


def test_the_wire_form_is_read_back() -> None:
    """Old agents send no sketches, and old controllers ignore them."""
    sent = Telemetry("d1", 1.0, 60.0, {"n": 1.0}, served(50), 3, 4)
    assert msgspec.msgpack.decode(encode(sent), type=Telemetry) == sent
    old = msgspec.msgpack.encode({"device": "d1", "at": 1.0, "seconds": 60.0, "counters": {}})
    assert msgspec.msgpack.decode(old, type=Telemetry).sketches == {}


@pytest.mark.parametrize(
    ("telemetry", "policy", "told"),
    [
        ("auto", "allowed", True),
        ("auto", "decoded", True),
        ("auto", "never", False),
        ("always", "never", True),
        ("never", "allowed", False),
    ],
)
async def test_inputs_that_may_not_leave_are_not_counted(tmp_path: Path, telemetry, policy, told: bool) -> None:
    """Not even their histograms leave the device, unless the owner says so; the answers are counted as before."""
    manifest = onnx_bundle(tmp_path, name="digits")
    options = ServiceOptions(telemetry_inputs=telemetry)
    own = {"digits": ModelSettings(send_inputs=policy)}
    async with InferenceService(service=options, models=own) as service:
        await service.activate("digits", manifest, tmp_path)
        await service.infer("digits", {"x": SURE})
        names = {key.partition("/")[2] for key in service.take_sketches()}
    assert names == {"latency", "route", "score", "class"} | ({"input.x"} if told else set())


def test_the_owner_cannot_widen_what_the_bundle_says() -> None:
    """`always` is the owner's word against the owner's `send_inputs`; the publisher's limit stays."""
    assert tells_inputs("always", "never", "allowed")
    assert not tells_inputs("always", "never", "never")
