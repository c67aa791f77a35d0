"""Original bytes to the cloud tier: its model has another size and preprocessing of its own. The tier is a process."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from device_agents.deployment import Installed, UpdateRecord
from device_agents.diagnostics.check_rules import bytes_faults
from device_agents.diagnostics.checks import checks_of
from device_agents.inference.cloud_client import CloudClient
from device_agents.inference.options import ServiceOptions
from device_agents.inference.service import InferenceService
from device_agents.storage.journal import Journal
from edgekit.bundle.manifest import MANIFEST_NAME, Manifest, parse_manifest
from edgekit.certificate.document import CERTIFICATE_NAME, parse_certificate, void_reasons
from edgekit.cli.main import edgekit
from edgekit.decoding import open_processor
from edgekit.errors import DataError, ManifestError, SettingsError, UnavailableError
from edgekit.registry.publishing import publish
from edgekit.runtimes import open_runtime
from edgekit.serving.models.options import ModelSettings
from edgekit.serving.oip.codec import InferResponse
from edgekit.settings import AgentSettings
from edgekit.storage.disk import FolderDisk
from edgekit.storage.stores import open_store
from edgekit.trust.repository import Repository
from edgekit.versions import runtime_version
from tests.device_agents.inference.test_processing import raw
from tests.device_agents.inference.test_service import HeldClock, where
from tests.simulators.cloud import MemoryCloud
from tests.simulators.picture_models import COLOURS, cloud_bundle, edge_bundle, pictures

ALL = ServiceOptions(cloud_inputs="original", fallback_threshold="all", cloud_timeout_seconds=20.0)
PICTURES, TRUE = pictures(40, seed=7)


class Tier:
    """A folder with both bundles, and the URL of `edgekit cloud serve` with the large model, and one without steps."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self.edge, self.cloud = (self._manifest(name) for name in ("edge", "cloud"))

    def _manifest(self, name: str) -> Manifest:
        return parse_manifest((self.folder / name / MANIFEST_NAME).read_bytes())

    def scores(self, name: str) -> np.ndarray:
        """Logits (N, 3) of PICTURES, from the bundle itself."""
        folder, manifest = self.folder / name, self._manifest(name)
        processor, runtime = open_processor(manifest, folder), open_runtime(manifest, folder)
        assert processor is not None
        found = runtime.run(processor.convert_rows("photo", PICTURES))["scores"]
        runtime.close()
        return found


@pytest.fixture(scope="module")
def tier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tier]:
    root = tmp_path_factory.mktemp("tier")
    edge_bundle(root / "edge")
    store = open_store(f"file://{root}/registry")
    repository = Repository(store, root / "keys")
    repository.create()
    for name, steps in (("colours-large", True), ("tensors-only", False)):
        cloud_bundle(root / ("cloud" if steps else "plain"), name=name, steps=steps)
        publish(store, repository, root / ("cloud" if steps else "plain"))
    program = "from edgekit.cli.main import main; main()"
    command = [sys.executable, "-c", program, "cloud", "serve", "--all", "--port", "0"]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            found = re.search(r"http://[0-9.:]+", child.stdout.readline())
            assert found
            yield Tier(root, found.group())
        finally:
            child.terminate()


@contextlib.asynccontextmanager
async def device(tier: Tier, options: ServiceOptions = ALL, *, model: str = "colours-large", **more: object):
    """A device with the small model, which asks the tier."""
    client = CloudClient(tier.url)
    own = {"colours": ModelSettings(cloud_model=model)}
    async with InferenceService(cloud=client, service=options, models=own, **more) as service:
        await service.activate("colours", tier.edge, tier.folder / "edge")
        yield service
    client.close()


def labels(found: InferResponse) -> list[str]:
    return [name.decode() for name in found.outputs["labels"][:, 0]]


async def test_the_tiers_model_of_another_size_answers_from_the_original_bytes(tier: Tier) -> None:
    """Its logits of 64 by 64 pixels, with the device's own steps after them; decoded tensors would not fit it."""
    better = tier.scores("cloud")
    assert (better.argmax(1) == TRUE).sum() > (tier.scores("edge").argmax(1) == TRUE).sum()
    async with device(tier) as service:
        found = await service.infer("colours", {"photo": raw(*PICTURES)})
        assert where(found) == ("cloud", "low-score")
        assert labels(found) == [COLOURS[one] for one in better.argmax(1)]
        assert found.parameters["edgekit_model"] == tier.cloud.digest
        plain = await service.infer("colours", {"photo": raw(*PICTURES)}, postprocess=False, route="cloud-only")
        np.testing.assert_allclose(plain.outputs["scores"], better, atol=1e-3)
        assert list(plain.outputs) == ["scores"]
    async with device(tier, msgspec.structs.replace(ALL, cloud_inputs="decoded")) as service:
        found = await service.infer("colours", {"photo": raw(*PICTURES[:1])})
        assert where(found) == ("degraded", "cloud-failed")


async def test_only_unsure_rows_of_a_batch_travel_as_bytes(tier: Tier) -> None:
    """The tier's answers are joined with the device's own."""
    scores, better = tier.scores("edge"), tier.scores("cloud")
    odds = np.exp(scores - scores.max(1, keepdims=True))
    unsure = (odds / odds.sum(1, keepdims=True)).max(1) < 0.6
    assert 5 < unsure.sum() < 35
    async with device(tier, msgspec.structs.replace(ALL, fallback_threshold=0.6)) as service:
        found = await service.infer("colours", {"photo": raw(*PICTURES)})
    assert found.parameters["edgekit_cloud_rows"] == unsure.sum()
    assert labels(found) == [COLOURS[one] for one in np.where(unsure, better.argmax(1), scores.argmax(1))]


async def test_a_tier_that_takes_no_bytes_costs_no_answer_and_is_left_alone(tier: Tier) -> None:
    """The reason is named, the breaker opens for bytes, and tensors are still sent."""
    clock = HeldClock()
    async with device(tier, model="tensors-only", clock=clock) as service:
        for reason in ("bytes-refused", "bytes-refused", "bytes-refused", "breaker-open"):
            found = await service.infer("colours", {"photo": raw(*PICTURES[:2])})
            assert where(found) == ("degraded", reason)
            assert labels(found) == [COLOURS[one] for one in tier.scores("edge")[:2].argmax(1)]
        counters = service.counters()["colours"]
        assert (counters["cloud_failures.bytes-refused"], counters["cloud_failures.breaker-open"]) == (3, 1)
        tensor = np.zeros((1, 32, 32, 3), np.float32)
        assert where(await service.infer("colours", {"x": tensor})) == ("degraded", "cloud-failed")
        clock.now += 15.0  # a slow breaker: a person must mend this
        assert where(await service.infer("colours", {"photo": raw(PICTURES[0])}))[1] == "breaker-open"


@pytest.mark.parametrize("policy", ["decoded", "never"])
async def test_a_stricter_policy_keeps_the_bytes_here(tier: Tier, policy: str) -> None:
    """Of the settings or of the bundle; the local answer is kept."""
    cloud = MemoryCloud({"scores": np.zeros((1, 3), np.float32)})
    bundled = msgspec.structs.replace(tier.edge, send_inputs=policy)
    for options, manifest in ((msgspec.structs.replace(ALL, send_inputs=policy), tier.edge), (ALL, bundled)):
        async with InferenceService(cloud=cloud, service=options) as service:
            await service.activate("colours", manifest, tier.folder / "edge")
            found = await service.infer("colours", {"photo": raw(PICTURES[0])})
            assert found.parameters["edgekit_reason"] == "private"
            assert found.parameters["edgekit_route"] != "cloud"
    assert not cloud.asked


async def test_the_steps_after_the_model_are_done_once(tier: Tier) -> None:
    """By the device where it has the bundle, by the tier where only the tier has the model, unless the client says."""
    cloud = MemoryCloud({"scores": np.eye(3, dtype=np.float32)[:1]})
    options = msgspec.structs.replace(ALL, fallback_threshold=0.0)
    async with InferenceService(cloud=cloud, service=options, models={"far": ModelSettings()}) as service:
        await service.activate("colours", tier.edge, tier.folder / "edge")
        await service.infer("colours", {"photo": raw(PICTURES[0])}, route="cloud-only")
        await service.infer("far", {"photo": raw(PICTURES[0])})
        await service.infer("far", {"photo": raw(PICTURES[0])}, postprocess=False)
    assert cloud.postprocess == [False, None, False]


def settings(tier: Tier, state: Path, there: str, **more: object) -> AgentSettings:
    """Settings of a device on which the small model is installed."""
    edge = edge_bundle(state / "models" / "colours" / "a")
    Journal(FolderDisk(state)).save("colours", UpdateRecord(active=Installed("a", edge.digest, "1.0.0", 1)))
    own = {"cloud_url": tier.url, "cloud_model": there, "cloud_inputs": "original", "state": state, **more}
    return AgentSettings(device="d", fleet="f", target="x86-64", **own)


async def test_check_compares_what_the_tier_decodes(tier: Tier, tmp_path: Path) -> None:
    """The model of another size fits; one without steps, tensors for the large one, and a contradiction are faults."""

    async def found(there: str, name: str = "cloud tier", **more: object) -> str:
        checks = checks_of(settings(tier, tmp_path / "state", there, **more), tmp_path / "agent.toml")
        return await asyncio.to_thread(checks[name])

    assert await found("colours-large") == "colours is colours-large 1.0.0 there, and decodes the original bytes"
    with pytest.raises(UnavailableError, match=r"'tensors-only': input 'photo' cannot be sent as bytes"):
        await found("tensors-only")
    with pytest.raises(UnavailableError, match=r"input 'x' has the shape \[-1, 64, 64, 3\]"):
        await found("colours-large", cloud_inputs="decoded")
    with pytest.raises(SettingsError, match=r"send_inputs allows decoded tensors only: colours\."):
        await found("colours-large", "fallback", send_inputs="decoded")


def test_labels_and_kinds_of_bytes_are_compared_and_metadata_may_be_anything(tier: Tier) -> None:
    """Classes in another order would be answered under wrong names; servers without `edgekit_bytes` may take BYTES."""
    assert not isinstance(tier.edge.processing, msgspec.UnsetType)
    steps, inputs = tier.edge.processing, [one.spec for one in tier.edge.inputs]
    photo = {"name": "photo", "kind": "image"}
    answers = [{"name": "classes", "labels": ["blue", "green", "red"]}]
    assert bytes_faults({"edgekit_bytes": [photo]}, steps, inputs) == []
    assert bytes_faults({"inputs": [{"name": "photo", "datatype": "BYTES"}]}, steps, inputs) == []
    (fault,) = bytes_faults({"edgekit_bytes": [photo], "edgekit_answers": answers}, steps, inputs)
    assert fault == "the classes of output 'classes' have other names or another order than the device's"
    (fault,) = bytes_faults({"edgekit_bytes": [{**photo, "kind": "sound"}]}, steps, inputs)
    assert fault == "input 'photo' takes sound there, and image on the device"
    for odd in ({}, {"edgekit_bytes": None, "inputs": 3}, {"edgekit_bytes": ["photo"], "edgekit_answers": [None]}):
        assert len(bytes_faults(odd, steps, inputs)) == 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Held-out pictures in one folder for each colour."""
    root = tmp_path_factory.mktemp("pictures")
    files, classes = pictures(600, seed=3)
    for index, (data, one) in enumerate(zip(files, classes, strict=True)):
        (root / COLOURS[one]).mkdir(exist_ok=True)
        (root / COLOURS[one] / f"{index}.png").write_bytes(data)
    return root


def calibrate(tier: Tier, cloud: str, data: Path, output: Path, *more: str):
    fixed = ["--edge", str(tier.folder / "edge"), "--cloud", cloud, "--data", str(data), "--regret", "0.15"]
    named = ["--cloud-model", "colours-large", "-o", str(output), "--json", *more]
    return CliRunner().invoke(edgekit, ["calibrate", *fixed, *named])


def test_the_certificate_is_proven_with_the_same_form_of_input(tier: Tier, folder: Path, tmp_path: Path) -> None:
    """From the tier and from its bundle alike; it is void where the device sends decoded tensors, and older agents
    cannot read it."""
    found = {}
    for name, cloud in (("tier", tier.url), ("bundle", str(tier.folder / "cloud"))):
        done = calibrate(tier, cloud, folder, tmp_path / name, "--cloud-inputs", "original")
        assert done.exit_code == 0, done.output + str(done.exception)
        found[name] = parse_certificate((tmp_path / name / "colours-1.0.1-x86-64" / CERTIFICATE_NAME).read_bytes())
    one = found["tier"]
    assert one.bound == found["bundle"].bound
    assert one.threshold == pytest.approx(found["bundle"].threshold, rel=1e-3)
    assert (one.bound.cloud_digest, one.bound.cloud_inputs, one.format) == (tier.cloud.digest, "original", 2)
    assert one.cloud_accuracy > one.edge_accuracy
    version = runtime_version("onnxruntime")
    assert void_reasons(one, tier.edge, version, original=True) == []
    assert void_reasons(one, tier.edge, version) == [
        "the form of inputs for the cloud tier (cloud_inputs) is decoded, certified was original"
    ]
    with pytest.raises(ManifestError, match="format is 1, this edgekit reads 2 here"):
        parse_certificate(msgspec.structs.replace(one, format=1).canonical_bytes())


def test_calibration_refuses_what_has_no_original_bytes(tier: Tier, folder: Path, tmp_path: Path) -> None:
    """Tensors in a file, a cloud bundle without steps, a model file; without the option the sizes differ."""
    np.savez(tmp_path / "data.npz", x=np.zeros((9, 32, 32, 3), np.float32))
    original = ("--cloud-inputs", "original")
    for cloud in (tier.url, str(tier.folder / "cloud")):
        done = calibrate(tier, cloud, tmp_path / "data.npz", tmp_path / "out", *original)
        assert isinstance(done.exception, DataError), done.output
        assert "needs the bytes of images" in str(done.exception)
    done = calibrate(tier, str(tier.folder / "plain"), folder, tmp_path / "out", *original)
    assert "takes no bytes as 'photo'; it takes none" in str(done.exception)
    assert (
        calibrate(tier, str(tier.folder / "plain" / "model.onnx"), folder, tmp_path / "out", *original).exit_code == 2
    )
    assert calibrate(tier, tier.url, folder, tmp_path / "out").exit_code == 1
    assert not (tmp_path / "out").exists()


async def test_a_certificate_holds_only_for_requests_of_its_form(tier: Tier, folder: Path, tmp_path: Path) -> None:
    """Bytes are claimed once the tier has shown its digest; a request that came as tensors is not, nor is any where the
    device sends decoded tensors."""
    cloud = str(tier.folder / "cloud")
    assert calibrate(tier, cloud, folder, tmp_path, "--cloud-inputs", "original").exit_code == 0
    bundle = tmp_path / "colours-1.0.1-x86-64"
    manifest = parse_manifest((bundle / MANIFEST_NAME).read_bytes())
    threshold = parse_certificate((bundle / CERTIFICATE_NAME).read_bytes()).threshold
    processor = open_processor(manifest, bundle)
    assert processor is not None
    options = msgspec.structs.replace(ALL, fallback_threshold=0.6, exploration_share=0.0)
    for form, claimed in (("original", True), ("decoded", False)):
        told: list[str] = []
        async with device(tier, msgspec.structs.replace(options, cloud_inputs=form)) as service:
            service.listen_certificates(lambda kind, *_, told=told: told.append(kind))
            await service.activate("colours", manifest, bundle)
            await service.infer("colours", {"photo": raw(PICTURES[0])}, route="cloud-only" if claimed else "auto")
            claims = 0
            for one in PICTURES:
                found = await service.infer("colours", {"photo": raw(one)})
                tensors = await service.infer("colours", processor.convert_rows("photo", [one]))
                claims += "edgekit_certificate" in found.parameters
                assert "edgekit_certificate" not in tensors.parameters
            assert bool(claims) is claimed, threshold
            assert told == ([] if claimed else ["certificate-void"])
