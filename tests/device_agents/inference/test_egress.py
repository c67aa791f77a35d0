"""What may leave the device: no route gets a forbidden tensor out, and a stream is not sent too often."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import device_agents
from device_agents.inference.egress_rules import MOST_STREAMS, StreamPauses, release, release_sample, stricter
from device_agents.inference.options import ServiceOptions
from device_agents.inference.service import InferenceService
from device_agents.inference.watch.observation import Observation
from edgekit.bundle.manifest import Manifest, parse_manifest
from edgekit.errors import CloudError, EdgekitError, SelfTestError, UnavailableError
from edgekit.serving.models.options import ModelSettings
from edgekit.serving.oip.codec import InferRequest
from edgekit.serving.session.sequence import Sequence
from tests.device_agents.inference.test_processing import photo, raw, with_processing
from tests.device_agents.inference.test_service import HeldClock, where
from tests.simulators.cloud import CLOUD_OUTPUTS, MemoryCloud
from tests.simulators.small_models import SURE, UNSURE, onnx_bundle

KINDS, POLICIES = ("photo", "plain", "far"), ("allowed", "decoded", "never")
Device = tuple[asyncio.AbstractEventLoop, InferenceService, MemoryCloud, HeldClock, str]
NAN = np.full_like(UNSURE, np.nan)
PHOTO = {"photo": raw(photo((9, 9, 9)))}  # it is decoded to a tensor that the model is unsure of
INPUTS = ({"x": UNSURE}, {"x": SURE}, {"x": NAN}, PHOTO, {"x": raw(b"text")}, {**PHOTO, "x": UNSURE})
ROUTES = ("auto", "local-only", "cloud-only")


def limited(manifest: Manifest, limit: str) -> Manifest:
    """A bundle's manifest with a policy, as a device reads it."""
    send_inputs = msgspec.UNSET if limit == "allowed" else limit
    return parse_manifest(msgspec.structs.replace(manifest, send_inputs=send_inputs).canonical_bytes())


@pytest.fixture(scope="module", params=["decoded", "original"])
def device(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """For each policy of settings and bundle: a model with preprocessing, one without, and one only the tier has."""
    form = request.param
    cloud, clock = MemoryCloud(CLOUD_OUTPUTS), HeldClock()
    names = [f"{kind}-{policy}-{limit}" for kind, policy, limit in itertools.product(KINDS, POLICIES, POLICIES)]
    own = {name: ModelSettings(send_inputs=name.split("-")[1], cloud_inputs=form) for name in names}
    loop = asyncio.new_event_loop()

    async def made() -> InferenceService:
        service = InferenceService(cloud=cloud, models=own, clock=clock)
        for policy, limit in itertools.product(POLICIES, POLICIES):
            for kind, bundle in (("photo", with_processing), ("plain", onnx_bundle)):
                folder = tmp_path_factory.mktemp(kind)
                name = f"{kind}-{policy}-{limit}"
                await service.activate(name, limited(bundle(folder, name=name), limit), folder)
        return service

    service = loop.run_until_complete(made())
    yield loop, service, cloud, clock, form
    loop.run_until_complete(service.close())
    loop.close()


def test_no_request_gets_a_forbidden_tensor_out(device: Device) -> None:
    """Every combination: the stricter of settings and bundle holds, and nothing leaves with local-only.

    Whatever the settings say of the form of inputs: original bytes need a policy that allows everything.
    """
    loop, service, cloud, clock, form = device
    sent_by = dict.fromkeys(POLICIES, 0)
    requests = (ROUTES, INPUTS, (None, True), (None, Sequence("a", start=True)), (None, 0.001))
    choices = itertools.product(KINDS, POLICIES, POLICIES, *requests)
    for kind, own, limit, route, inputs, postprocess, stream, deadline_ms in choices:
        policy = own if kind == "far" else max(own, limit, key=POLICIES.index)
        cloud.asked.clear()
        clock.now += 10_000.0  # no open breaker hides what would be sent
        request = service.infer(
            f"{kind}-{own}-{limit}",
            inputs,
            route=route,
            postprocess=postprocess,
            sequence=stream,
            deadline_ms=deadline_ms,
        )
        with contextlib.suppress(EdgekitError):  # also a refusal keeps the policy
            loop.run_until_complete(request)
        sent = [value for _, tensors, _ in cloud.asked for value in tensors.values()]
        sent_by[policy] += len(cloud.asked)
        assert not (sent and (policy == "never" or route == "local-only")), (kind, policy, route)
        if policy == "decoded" or (kind == "photo" and form == "decoded"):
            assert all(value.dtype.kind == "f" for value in sent), (kind, policy, route)
    assert min(sent_by["allowed"], sent_by["decoded"]) > 50


class Recorder:
    """Takes every observation of a model."""

    def __init__(self) -> None:
        self.seen: list[Observation] = []

    def wants(self, model: str) -> bool:
        return True

    def take(self, seen: Observation) -> None:
        self.seen.append(seen)


def test_no_request_gives_a_forbidden_tensor_to_the_spool(device: Device) -> None:
    """What may not be sent is not seen by who collects samples: no policy and no local-only request lets it out."""
    loop, service, _, clock, _ = device
    recorder = Recorder()
    service.give_samples(recorder)
    seen_by = dict.fromkeys(POLICIES, 0)
    choices = (("photo", "plain"), POLICIES, POLICIES, ROUTES, INPUTS, (None, True))
    for kind, settings, bundle, route, inputs, postprocess in itertools.product(*choices):
        recorder.seen.clear()
        clock.now += 10_000.0
        policy = stricter(settings, bundle)
        request = service.infer(f"{kind}-{settings}-{bundle}", inputs, route=route, postprocess=postprocess)
        with contextlib.suppress(EdgekitError):
            loop.run_until_complete(request)
        seen_by[policy] += len(recorder.seen)
        assert len(recorder.seen) <= 1
        assert not (recorder.seen and (policy == "never" or route == "local-only")), (kind, policy, route)
        for seen in recorder.seen:
            assert all(value.dtype.kind == "f" for value in seen.inputs.values()), (kind, policy, route)
    service.give_samples(Recorder())
    assert seen_by["never"] == 0
    assert min(seen_by["allowed"], seen_by["decoded"]) > 10


def test_steps_of_a_stream_and_local_only_requests_are_no_samples() -> None:
    """Whatever the policy is; a request of its own follows it."""
    for route, stateful, allowed in (("auto", False, True), ("auto", True, False), ("local-only", False, False)):
        found = release_sample("allowed", "m", {"x": UNSURE}, route=route, stateful=stateful)
        assert bool(found.inputs) is allowed
        assert bool(found.fault) is not allowed


def test_what_is_allowed_does_leave_the_device(device: Device) -> None:
    """The test above could not fail if nothing was ever sent."""
    loop, service, cloud, _, form = device
    kept = ("photo-decoded-allowed", "photo-allowed-decoded")  # where the settings also ask for the original bytes
    for model in kept if form == "original" else ():
        with pytest.raises(CloudError, match=f"'photo' of model '{model}' is bytes, and only"):
            loop.run_until_complete(service.infer(model, PHOTO, route="cloud-only"))
    for model, inputs, kind in [
        *((model, PHOTO, "f") for model in kept if form == "decoded"),
        ("photo-allowed-allowed", PHOTO, "f" if form == "decoded" else "O"),
        ("plain-decoded-decoded", {"x": UNSURE}, "f"),
        ("far-decoded-allowed", {"x": UNSURE}, "f"),
        ("far-allowed-allowed", PHOTO, "O"),
    ]:
        cloud.asked.clear()
        assert where(loop.run_until_complete(service.infer(model, inputs, route="cloud-only")))[0] == "cloud"
        ((_, sent, _),) = cloud.asked
        assert {value.dtype.kind for value in sent.values()} == {kind}
    with pytest.raises(UnavailableError, match="'photo' of model 'far-decoded-never' is bytes, and only"):
        loop.run_until_complete(service.infer("far-decoded-never", PHOTO))


@given(st.text(), st.sampled_from([{"x": UNSURE}, PHOTO]))
def test_a_policy_that_is_not_known_releases_nothing(policy, inputs) -> None:
    """Only the two words that allow something do."""
    found = release(policy, "m", inputs)
    assert bool(found.inputs) is (policy == "allowed" or (policy == "decoded" and inputs is not PHOTO))
    assert bool(found.fault) is not bool(found.inputs)


@given(st.lists(st.sampled_from([*POLICIES, "else"]), min_size=2, max_size=2))
def test_the_stricter_policy_wins(pair) -> None:
    """In either order; a word that is not known is never."""
    one, other = ("never" if word == "else" else word for word in pair)
    assert stricter(*pair) == stricter(*reversed(pair)) == max(one, other, key=POLICIES.index)


async def test_a_bundles_limit_holds_through_switches_and_failures(tmp_path: Path) -> None:
    """A bundle that cannot be loaded still limits where there is no other; where there is, the old limit comes back."""
    cloud = MemoryCloud(CLOUD_OUTPUTS)
    async with InferenceService(cloud=cloud, models={"small": ModelSettings()}) as service:
        assert (await service.infer("small", {"x": UNSURE})).parameters["edgekit_route"] == "cloud"
        bad = limited(onnx_bundle(tmp_path / "bad", golden_gain=5.0), "never")
        with pytest.raises(SelfTestError):
            await service.activate("small", bad, tmp_path / "bad")
        with pytest.raises(UnavailableError, match="has no local bundle"):
            await service.infer("small", {"x": UNSURE})
        for limit, found in (("allowed", ("cloud", "low-score")), ("never", ("local", "private")), ("allowed", None)):
            folder = tmp_path / limit
            await service.activate("small", limited(onnx_bundle(folder), limit), folder)
            assert where(await service.infer("small", {"x": UNSURE})) == (found or ("cloud", "low-score"))
        with pytest.raises(SelfTestError):
            await service.activate("small", bad, tmp_path / "bad")
        assert where(await service.infer("small", {"x": UNSURE})) == ("cloud", "low-score")
        await service.activate("small", limited(onnx_bundle(tmp_path / "last"), "never"), tmp_path / "last")
        await service.deactivate("small")
        with pytest.raises(UnavailableError, match="has no local bundle"):
            await service.infer("small", {"x": UNSURE})
    assert len(cloud.asked) == 4


def test_one_function_calls_the_cloud_tier() -> None:
    """No other file of the device calls the client's infer."""
    callers = []
    for path in Path(device_agents.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "infer":
                callers.append((path.name, ast.unparse(node.func.value)))
    assert [one for one in callers if "cloud" in one[1].lower() or "tier" in one[1]] == [
        ("fallback.py", "one.endpoint.tier")
    ]


async def test_a_stream_is_sent_once_in_its_pause(tmp_path: Path) -> None:
    """Its other unsure answers stay local; other streams, requests without one and NaN are sent."""
    cloud, clock = MemoryCloud(CLOUD_OUTPUTS), HeldClock()
    options = ServiceOptions(stream_pause_seconds=5.0)
    async with InferenceService(cloud=cloud, clock=clock, service=options) as service:
        await service.activate("small", onnx_bundle(tmp_path), tmp_path)

        async def ask(parameters: dict[str, object], values: np.ndarray = UNSURE) -> tuple[str, str]:
            return where(await service.answer("small", None, InferRequest({"x": values}, parameters=parameters)))

        sent, kept = ("cloud", "low-score"), ("degraded", "stream-pause")
        assert await ask({"sequence_id": 7}) == sent
        assert await ask({"sequence_id": 7}) == kept
        assert await ask({"sequence_id": "7"}) == sent
        assert await ask({}) == await ask({}) == sent
        assert await ask({"sequence_id": 7}, NAN) == ("cloud", "local-error")
        clock.now += 5.0
        assert await ask({"sequence_id": 7}) == sent
        assert await ask({"sequence_id": True}) == sent  # no stream; a model without state takes it, as before
        assert service.counters()["small"]["cloud_failures.stream-pause"] == 1


def test_streams_are_bounded() -> None:
    """The one that was sent longest ago is forgotten."""
    pauses = StreamPauses()
    for stream in range(MOST_STREAMS):
        pauses.note(stream, 0.0)
    pauses.note(0, 0.0)
    pauses.note("new", 0.0)
    assert not pauses.allow(0, 1.0, 5.0)
    assert pauses.allow(1, 1.0, 5.0)
    assert pauses.allow(0, 5.0, 5.0)
