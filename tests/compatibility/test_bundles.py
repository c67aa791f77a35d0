"""Bundles of earlier releases parse to the same bytes, pass their self-test, and answer correctly."""

import io
import json

import msgspec
import numpy as np
import pytest

from converters.report.report import Report
from device_agents.inference.service import InferenceService
from device_agents.update.self_test import run_self_test
from edgekit.bundle.manifest import MANIFEST_NAME, parse_manifest
from edgekit.errors import CompatibilityError
from edgekit.registry.publishing import check_bundle
from edgekit.sealing.keyring import Keyring
from edgekit.sealing.opening import use_keyring
from tests.simulators.releases import RELEASES, without_new_keys

BUNDLES = [
    pytest.param(release, folder, id=f"{release.folder.name}-{folder.name}")
    for release in RELEASES
    for folder in sorted((release.folder / "bundles").iterdir())
]
# A sealed bundle has a sealed report.
PLAIN = [bundle for bundle in BUNDLES if not bundle.id.endswith("-sealed")]


@pytest.fixture
def class_keys(release, tmp_path):
    """Load the class key that opens the sealed bundles into this process."""
    key = release.control(tmp_path) / "keys" / "classes" / "gates.key"
    use_keyring(Keyring([key]))
    yield key
    use_keyring(None)


def bundle(release, name):
    folder = release.folder / "bundles" / name
    return folder, parse_manifest((folder / MANIFEST_NAME).read_bytes())


def test_every_kind_of_bundle_is_here():
    """Each release has bundles for both runtimes, static int8, processing steps and sealing."""
    for release in RELEASES:
        manifests = [bundle(release, path.name)[1] for path in (release.folder / "bundles").iterdir()]
        assert {manifest.runtime for manifest in manifests} == {"litert", "onnxruntime"}
        assert any(manifest.recipe.precision == "int8" for manifest in manifests)
        assert any(manifest.processing for manifest in manifests)
        assert any(manifest.sealed for manifest in manifests)


@pytest.mark.parametrize(("release", "folder"), BUNDLES)
def test_manifest_is_encoded_to_the_same_bytes(release, folder):
    """A parsed manifest encodes to the bytes that were signed, and every file has its size and digests."""
    data = (folder / MANIFEST_NAME).read_bytes()
    assert parse_manifest(data).canonical_bytes() == data
    assert check_bundle(folder) == parse_manifest(data)


@pytest.mark.parametrize(("release", "folder"), BUNDLES)
async def test_golden_samples_pass(release, folder, class_keys):
    """The self-test of the current code passes on every golden row."""
    manifest = parse_manifest((folder / MANIFEST_NAME).read_bytes())
    result = await run_self_test(manifest, folder)
    assert result.passed
    assert result.rows == manifest.golden.samples > 0


async def test_sealed_bundle_stays_closed_without_its_key(release):
    """Without the class key the self-test is refused, and the error names the class."""
    folder, manifest = bundle(release, "shapes-1.0.0-raspberry-pi-4-sealed")
    with pytest.raises(CompatibilityError, match="sealed for device class gates"):
        await run_self_test(manifest, folder)


async def test_sealed_bundle_is_the_plain_one(release, class_keys):
    """The sealed and the plain copy of a bundle give equal answers."""
    answers = []
    for name in ("shapes-1.0.0-raspberry-pi-4", "shapes-1.0.0-raspberry-pi-4-sealed"):
        folder, manifest = bundle(release, name)
        async with InferenceService() as service:
            await service.activate("shapes", manifest, folder)
            rows = np.random.default_rng(1).random((3, 1, 8, 8), np.float32)
            answers.append((await service.infer("shapes", {"image": rows})).outputs["scores"])
    np.testing.assert_array_equal(*answers)


@pytest.mark.parametrize("columns", [True, False], ids=["down", "across"])
async def test_steps_before_and_after_the_model_are_done(release, columns):
    """The bundle with processing steps accepts a photo and returns the right label."""
    image = pytest.importorskip("PIL.Image")
    across = np.arange(8)[None] % 2 if columns else np.arange(8)[:, None] % 2
    photo = io.BytesIO()
    image.fromarray(np.broadcast_to(across * 255, (8, 8)).astype(np.uint8)).save(photo, "PNG")
    folder, manifest = bundle(release, "photos-1.0.0-server")
    async with InferenceService() as service:
        await service.activate("photos", manifest, folder)
        answer = await service.infer("photos", {"photo": np.array([photo.getvalue()], object)})
    assert answer.outputs["labels"][0, 0] == (b"across" if columns else b"down")


@pytest.mark.parametrize(("release", "folder"), PLAIN)
def test_report_is_read(release, folder):
    """The type with which `edgekit convert` reads an earlier report still knows every key."""
    data = (folder / "report.json").read_bytes()
    report = msgspec.json.decode(data, type=Report)
    assert report.chosen in {candidate.id for candidate in report.candidates}
    written, again = json.loads(data), json.loads(msgspec.json.encode(report))
    assert without_new_keys(again, written) == written
