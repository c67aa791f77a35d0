"""Sealed bundles: sealing is repeatable, and only devices of the right class can open them."""

import os
import stat
from pathlib import Path

import msgspec
import numpy as np
import pytest

from device_agents.inference.service import InferenceService
from edgekit.bundle.manifest import ROLE_MODEL, file_entry, parse_manifest
from edgekit.decoding import open_processor
from edgekit.errors import CompatibilityError, ManifestError, NotFoundError, RuntimeLoadError, SealError, SettingsError
from edgekit.preprocess import Processing
from edgekit.registry import check_bundle
from edgekit.runtimes import _provider_options, open_runtime
from edgekit.runtimes.providers import TENSORRT, Acceleration
from edgekit.sealing.bundles import seal_bundle
from edgekit.sealing.class_keys import add_class, class_path, content_secret, find_class, list_classes
from edgekit.sealing.keyring import Keyring
from edgekit.sealing.opening import read_file, use_keyring
from edgekit.serving.cloud import CloudModels
from edgekit.serving.models.options import ModelOptions
from edgekit.serving.oip.codec import InferRequest
from edgekit.serving.worker.runtime import WorkerRuntime
from edgekit.trust.keys import generate_key
from tests.simulators.small_models import SURE, identity_bundle, litert_bundle, onnx_bundle, softmax


@pytest.fixture(autouse=True)
def without_keys():
    """Remove a test's keyring afterwards, because it belongs to the whole process."""
    yield
    use_keyring(None)


@pytest.fixture
def keys(tmp_path):
    """A key folder with two classes."""
    for name in ("cameras", "doors"):
        add_class(tmp_path / "keys", name)
    return tmp_path / "keys"


def seal(keys: Path, source: Path, folder: Path, *classes: str):
    chosen = [find_class(keys, name) for name in classes or ("cameras",)]
    return seal_bundle(source, check_bundle(source), folder, classes=chosen, secret=content_secret(keys))


def use(keys: Path, *classes: str) -> None:
    use_keyring(Keyring([class_path(keys, name) for name in classes]))


def test_a_sealed_bundle_is_a_bundle_and_tells_nothing_of_its_files(keys, tmp_path):
    """It passes the check of every bundle. Its files differ from the plain ones, the rest of its manifest does not."""
    plain = onnx_bundle(tmp_path / "plain")
    made = seal(keys, tmp_path / "plain", tmp_path / "sealed")
    assert check_bundle(tmp_path / "sealed") == made
    for entry in plain.files:
        before, after = (Path(tmp_path, kind, entry.path).read_bytes() for kind in ("plain", "sealed"))
        assert before[:32] not in after
    assert msgspec.structs.replace(made, files=plain.files, encryption=msgspec.UNSET) == plain


def test_sealing_again_gives_the_same_bytes(keys, tmp_path):
    """Publishing again changes nothing. Another content, or another publisher's secret, gives other files and keys."""
    onnx_bundle(tmp_path / "plain")
    onnx_bundle(tmp_path / "other", tag=1.0)
    first, again = (seal(keys, tmp_path / "plain", tmp_path / folder, "doors", "cameras") for folder in "ab")
    assert first == again
    assert [key.device_class for key in first.sealed.keys] == ["cameras", "doors"]
    other = seal(keys, tmp_path / "other", tmp_path / "c")
    class_path(keys, "_content").unlink()
    stranger = seal(keys, tmp_path / "plain", tmp_path / "d")
    for one in (other, stranger):
        assert not {e.sha256 for e in one.files} & {e.sha256 for e in first.files}
        assert one.sealed.keys[0].public != first.sealed.keys[0].public


def test_what_cannot_be_sealed_is_refused(keys, tmp_path):
    """A sealed bundle, a bundle for no class, and a bundle whose file changes while it is sealed are refused."""
    manifest = onnx_bundle(tmp_path / "plain")
    seal(keys, tmp_path / "plain", tmp_path / "sealed")
    with pytest.raises(ManifestError, match="is already sealed"):
        seal(keys, tmp_path / "sealed", tmp_path / "twice")
    with pytest.raises(ManifestError, match="for 0 device classes"):
        seal_bundle(tmp_path / "plain", manifest, tmp_path / "none", classes=[], secret=bytes(32))
    model = tmp_path / "plain" / "model.onnx"
    model.write_bytes(b"X" + model.read_bytes()[1:])
    with pytest.raises(SealError, match="changed while it was sealed"):
        seal_bundle(
            tmp_path / "plain", manifest, tmp_path / "late", classes=[find_class(keys, "doors")], secret=bytes(32)
        )


@pytest.mark.parametrize("make", [onnx_bundle, litert_bundle])
@pytest.mark.parametrize("isolation", ["thread", "process"])
async def test_a_sealed_bundle_is_tested_and_answers(keys, tmp_path, make, isolation):
    """On both runtimes, in this process and in a worker process; no plain file appears beside the sealed ones."""
    make(tmp_path / "plain")
    made = seal(keys, tmp_path / "plain", tmp_path / "sealed", "cameras", "doors")
    use(keys, "doors")
    async with InferenceService(options=ModelOptions(isolation=isolation)) as service:
        assert (await service.try_bundle(made, tmp_path / "sealed")).passed
        await service.activate("small", made, tmp_path / "sealed")
        session = service._session("small")
        assert isinstance(session.runtime, WorkerRuntime) is (isolation == "process")
        for _ in range(3):
            found = await service.infer("small", {"x": SURE})
            np.testing.assert_allclose(found.outputs["scores"], softmax(SURE), atol=1e-5)
        assert (await service.self_test("small")).passed
    assert check_bundle(tmp_path / "sealed") == made


def test_what_comes_before_the_model_reads_sealed_files_too(keys, tmp_path):
    """Files of the processing, for example a vocabulary, are sealed and opened like the model."""
    words = b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nhello\n"
    manifest = identity_bundle(tmp_path / "plain", name="words", dtypes=("int64",))
    (tmp_path / "plain" / "words.txt").write_bytes(words)
    steps = '[[before]]\nraw = "text"\nsteps = [{do = "word-pieces", vocabulary = "words.txt", length = 2}]'
    manifest = msgspec.structs.replace(
        manifest,
        files=(*manifest.files, file_entry("words.txt", "processing", words)),
        processing=msgspec.toml.decode(steps, type=Processing),
    )
    (tmp_path / "plain" / "manifest.json").write_bytes(manifest.canonical_bytes())
    made = seal(keys, tmp_path / "plain", tmp_path / "sealed")
    with pytest.raises(CompatibilityError):
        open_processor(made, tmp_path / "sealed")
    use(keys, "cameras")
    found = open_processor(made, tmp_path / "sealed").before({"text": np.array([b"hello"], object)})
    assert found["int64"].tolist() == [[2, 3]]


async def test_the_cloud_tier_opens_with_its_class_key(keys, tmp_path):
    """Without a class key, the error names the classes that the bundle is sealed for."""
    onnx_bundle(tmp_path / "plain", batch=None)
    made = seal(keys, tmp_path / "plain", tmp_path / "sealed")
    with pytest.raises(CompatibilityError, match=r"sealed for device class cameras .* has no class key"):
        await CloudModels.open(["small"], lambda _: (made, tmp_path / "sealed"), threads=1)
    use(keys, "cameras")
    models = await CloudModels.open(["small"], lambda _: (made, tmp_path / "sealed"), threads=1)
    found = await models.answer("small", None, InferRequest({"x": SURE}))
    np.testing.assert_allclose(found.outputs["scores"], softmax(SURE), atol=1e-5)
    await models.close()


def test_another_class_cannot_open_it(keys, tmp_path):
    """The error names the class that can open the bundle and the key that the device has."""
    onnx_bundle(tmp_path / "plain")
    made = seal(keys, tmp_path / "plain", tmp_path / "sealed")
    use(keys, "doors")
    key = find_class(keys, "doors").key_id[:12]
    with pytest.raises(CompatibilityError, match=f"for device class cameras .* this device has key {key}"):
        open_runtime(made, tmp_path / "sealed")


def test_files_are_not_taken_from_another_bundle(keys, tmp_path):
    """This holds even if somebody signs a manifest that lists the ciphertext of another version."""
    for version in ("1.0.0", "1.1.0"):
        onnx_bundle(tmp_path / version, version=version)
    old, new = (seal(keys, tmp_path / v, tmp_path / f"sealed-{v}") for v in ("1.0.0", "1.1.0"))
    use(keys, "cameras")
    mixed = msgspec.structs.replace(new, files=old.files)
    with pytest.raises(SealError, match=r"model\.onnx cannot be opened: frame 0"):
        read_file(mixed, tmp_path / "sealed-1.0.0", mixed.file(ROLE_MODEL))
    mixed = msgspec.structs.replace(mixed, encryption=old.encryption)
    with pytest.raises(SealError, match=r"small 1\.1\.0 for device class cameras"):
        read_file(mixed, tmp_path / "sealed-1.0.0", mixed.file(ROLE_MODEL))


def test_a_sealed_file_that_is_no_model_is_named(keys, tmp_path):
    """The error names the file, although it is opened from a path in memory, and no file descriptor stays open."""
    manifest = onnx_bundle(tmp_path / "plain")
    (tmp_path / "plain" / "model.onnx").write_bytes(b"nonsense")
    files = tuple(file_entry(e.path, e.role, (tmp_path / "plain" / e.path).read_bytes()) for e in manifest.files)
    broken = msgspec.structs.replace(manifest, files=files).canonical_bytes()
    (tmp_path / "plain" / "manifest.json").write_bytes(broken)
    made = seal(keys, tmp_path / "plain", tmp_path / "sealed")
    use(keys, "cameras")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(RuntimeLoadError, match=r"model\.onnx, opened in memory: .* cannot be loaded"):
        open_runtime(made, tmp_path / "sealed")
    assert len(os.listdir("/proc/self/fd")) == len(before)
    (tmp_path / "sealed" / "model.onnx").unlink()
    with pytest.raises(RuntimeLoadError, match=r"model\.onnx cannot be opened in memory: .*No such file"):
        open_runtime(made, tmp_path / "sealed")
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_no_engine_of_a_sealed_model_is_kept(keys, tmp_path):
    """An engine contains the plain model, and its folder is on a disk."""
    plain = onnx_bundle(tmp_path / "plain")
    made = seal(keys, tmp_path / "plain", tmp_path / "sealed")
    wanted = Acceleration(engine_cache=str(tmp_path / "engines"))
    for manifest, kept in ((plain, True), (made, False)):
        found = _provider_options(manifest, [TENSORRT], wanted)[TENSORRT]
        assert ("trt_engine_cache_enable" in found) is kept


def test_class_keys_are_private_files_that_are_never_overwritten(tmp_path):
    """They have the passphrase and the permissions of the signing keys; a publisher needs only the public keys."""
    keys = tmp_path / "keys"
    made = add_class(keys, "cameras", "secret")
    path = class_path(keys, "cameras")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert b"ENCRYPTED" in path.read_bytes()
    assert content_secret(keys, "secret") == content_secret(keys, "secret")
    with pytest.raises(SettingsError, match="already a class cameras"):
        add_class(keys, "cameras")
    with pytest.raises(SettingsError, match="class 'No' is not of the form"):
        add_class(keys, "No")
    with pytest.raises(SettingsError, match="is encrypted and no passphrase"):
        Keyring([path])
    path.unlink()
    assert list_classes(keys) == [msgspec.structs.replace(made, private_here=False)]
    with pytest.raises(SettingsError, match="already a class cameras"):
        add_class(keys, "cameras", "secret")  # its devices would be locked out
    with pytest.raises(NotFoundError, match="no device class 'doors'"):
        find_class(keys, "doors")


def test_signing_keys_are_no_class_keys(tmp_path):
    """The error states the kind of key that was found and the kind that was expected."""
    generate_key(tmp_path / "classes" / "signer.key")
    with pytest.raises(SettingsError, match=r"is a .*Ed25519PrivateKey, expected X25519"):
        Keyring([tmp_path / "classes" / "signer.key"])
    with pytest.raises(SettingsError, match=r"is a .*Ed25519PublicKey, expected X25519"):
        find_class(tmp_path, "signer")
    with pytest.raises(NotFoundError, match="there is no key"):
        Keyring([tmp_path / "none.key"])


def test_older_manifests_are_read_as_before(tmp_path):
    """A manifest without sealing has the bytes and the digest that it had before sealing existed."""
    manifest = onnx_bundle(tmp_path)
    assert parse_manifest((tmp_path / "manifest.json").read_bytes()) == manifest
    assert b"encrypt" not in manifest.canonical_bytes()
