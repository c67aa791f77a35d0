"""The registry: published bundles are resolved, downloaded and verified; faults are named."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, Targets

from edgekit.bundle.manifest import Manifest
from edgekit.errors import DigestMismatchError, ManifestError, NotFoundError, StoreError, VerificationError
from edgekit.registry import (
    RegistryReader,
    blob_name,
    check_bundle,
    metadata_name,
    publish,
)
from edgekit.registry.catalogue import PART_BYTES
from edgekit.registry.verification import verify
from edgekit.trust.keys import key_path, load_signer
from edgekit.trust.repository import Repository
from tests.simulators.bundles import manifest_of, write_bundle
from tests.simulators.publisher import Registry
from tests.simulators.store import DyingStore, MemoryStore


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path)


@pytest.fixture
def reader(registry: Registry, tmp_path: Path) -> RegistryReader:
    return RegistryReader(registry.store, registry.root, tmp_path / "cache")


def put(registry: Registry, folder: Path, *args: str, **kwargs: bytes) -> Manifest:
    return publish(registry.store, registry.repository, write_bundle(folder, *args, **kwargs)).manifest


def model_blob(manifest: Manifest) -> str:
    return blob_name(manifest.file("model").sha256)


def test_a_published_bundle_comes_back_byte_for_byte(
    registry: Registry, reader: RegistryReader, tmp_path: Path
) -> None:
    """Resolve gives the assignment entry, and download gives the published files."""
    model = os.urandom(PART_BYTES + 7)
    bundle = write_bundle(tmp_path, model=model)
    released = publish(registry.store, registry.repository, bundle)
    reader.refresh()
    found = reader.resolve("digits", "pi")
    assert found == released
    assert (found.path, found.release) == ("models/digits/pi/1.0.0/manifest.json", 1)
    assert found.sha256 == hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    assert found.entry.version == "1.0.0"
    reader.download(found.manifest, tmp_path / "copy")
    assert check_bundle(tmp_path / "copy") == found.manifest
    assert (tmp_path / "copy" / "model.onnx").read_bytes() == model


def test_the_newest_version_that_is_not_retired_is_chosen(
    registry: Registry, reader: RegistryReader, tmp_path: Path
) -> None:
    """Versions are ordered by number, not by text or time; a retired version is chosen only when it is named."""
    for version in ("1.9.0", "1.10.0", "1.2.0"):
        put(registry, tmp_path, "digits", version)
    reader.refresh()
    assert reader.resolve("digits", "pi").manifest.version == "1.10.0"
    assert [row.version for row in reader.list()] == ["1.2.0", "1.9.0", "1.10.0"]
    registry.repository.mark("digits", "1.10.0", retired=True)
    registry.repository.mark("digits", "1.2.0", channel="stable")
    reader.refresh()
    assert reader.resolve("digits", "pi").manifest.version == "1.9.0"
    assert reader.resolve("digits", "pi", "1.10.0").manifest.version == "1.10.0"
    assert reader.resolve("digits", "pi", channel="stable").manifest.version == "1.2.0"


@pytest.mark.parametrize(
    ("name", "target", "version"), [("other", "pi", None), ("digits", "jetson", None), ("digits", "pi", "2.0.0")]
)
def test_what_is_not_published_is_not_found(
    registry: Registry, reader: RegistryReader, tmp_path: Path, name: str, target: str, version: str | None
) -> None:
    """The advice lists the published versions."""
    put(registry, tmp_path)
    reader.refresh()
    with pytest.raises(NotFoundError) as caught:
        reader.resolve(name, target, version)
    assert "registry list" in caught.value.advice or "1.0.0 for pi" in caught.value.advice


def test_a_version_with_other_content_is_refused(registry: Registry, tmp_path: Path) -> None:
    """A published version cannot change; publishing the same content again changes nothing."""
    put(registry, tmp_path / "a")
    before = registry.metadata()
    put(registry, tmp_path / "b")
    assert registry.metadata() == before
    blobs = set(registry.store.blobs)
    with pytest.raises(ManifestError, match="other content"):
        put(registry, tmp_path / "c", model=b"other")
    assert registry.metadata() == before
    assert set(registry.store.blobs) == blobs  # it was refused before its upload


@pytest.mark.parametrize("limit", range(7))
def test_a_publish_that_dies_leaves_the_registry_as_it_was(registry: Registry, tmp_path: Path, limit: int) -> None:
    """A publish writes three blobs, two roles, snapshot and timestamp; before the last write nothing is visible."""
    bundle = write_bundle(tmp_path)
    dying = DyingStore(registry.store.blobs, limit)
    with pytest.raises(StoreError):
        publish(dying, Repository(dying, registry.keys, clock=registry.clock), bundle)
    reader = RegistryReader(registry.store, registry.root, tmp_path / "cache")
    reader.refresh()
    assert reader.list() == []
    assert registry.repository.models() == []
    assert verify(registry.store, registry.root) == []
    publish(registry.store, registry.repository, bundle)
    reader.refresh()
    assert len(reader.list()) == 1
    assert verify(registry.store, registry.root) == []


def test_seven_writes_are_all_that_a_first_publish_takes(registry: Registry, tmp_path: Path) -> None:
    """So the test above interrupts every write."""
    counted = DyingStore(registry.store.blobs, 7)
    publish(counted, Repository(counted, registry.keys, clock=registry.clock), write_bundle(tmp_path))
    assert counted.writes == 7


def damage_model(bundle: Path) -> None:
    data = bytearray((bundle / "model.onnx").read_bytes())
    data[70_000] ^= 1
    (bundle / "model.onnx").write_bytes(data)


def shorten_model(bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"short")


def remove_model(bundle: Path) -> None:
    (bundle / "model.onnx").unlink()


def link_model(bundle: Path) -> None:
    data = bundle.parent / "elsewhere"
    (bundle / "model.onnx").rename(data)
    (bundle / "model.onnx").symlink_to(data)


def add_file(bundle: Path) -> None:
    (bundle / "extra.py").write_text("")


def grow_manifest(bundle: Path) -> None:
    os.truncate(bundle / "manifest.json", 1 << 40)  # sparse; nobody may try to read it whole


def remove_manifest(bundle: Path) -> None:
    (bundle / "manifest.json").unlink()


def lie_about_blocks(bundle: Path) -> None:
    text = (bundle / "manifest.json").read_text()
    block = manifest_of().file("model").blocks[1]
    (bundle / "manifest.json").write_text(text.replace(block, "0" * 64))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (damage_model, "model.onnx has sha256"),
        (shorten_model, "has 5 bytes, expected 150000"),
        (remove_model, "model.onnx is missing"),
        (link_model, "model.onnx is missing"),
        (add_file, "extra.py is not in the manifest"),
        (remove_manifest, "is not a bundle"),
        (grow_manifest, "the limit is"),
        (lie_about_blocks, "block digests"),
    ],
)
def test_a_bundle_that_is_not_whole_is_not_published(
    registry: Registry, tmp_path: Path, fault: object, reason: str
) -> None:
    """Every file is checked against the manifest before the first byte is uploaded."""
    bundle = write_bundle(tmp_path)
    fault(bundle)  # type: ignore[operator]
    before = dict(registry.store.blobs)
    with pytest.raises(ManifestError, match=reason):
        publish(registry.store, registry.repository, bundle)
    assert registry.store.blobs == before


@pytest.mark.parametrize("damage", ["flipped", "short", "long", "missing"])
def test_a_damaged_blob_is_named_and_mended_by_publishing_again(
    registry: Registry, reader: RegistryReader, tmp_path: Path, damage: str
) -> None:
    """Verify and download both refuse it; no damaged data ever gets the file's name."""
    manifest = put(registry, tmp_path / "a")
    name = model_blob(manifest)
    data = registry.store.blobs[name]
    changed = {"flipped": b"X" + data[1:], "short": data[:-1], "long": data + b"X"}
    if damage == "missing":
        del registry.store.blobs[name]
    else:
        registry.store.blobs[name] = changed[damage]
    (fault,) = verify(registry.store, registry.root)
    assert manifest.file("model").sha256 in fault
    reader.refresh()
    with pytest.raises(NotFoundError if damage == "missing" else DigestMismatchError):
        reader.download(manifest, tmp_path / "copy")
    assert not list((tmp_path / "copy").iterdir())
    put(registry, tmp_path / "b")
    assert verify(registry.store, registry.root) == []


def test_a_changed_manifest_is_refused(registry: Registry, reader: RegistryReader, tmp_path: Path) -> None:
    """Resolve and verify both compare the manifest with the signed digest."""
    manifest = put(registry, tmp_path)
    registry.store.blobs[blob_name(manifest.digest)] = manifest_of(model=b"evil").canonical_bytes()
    reader.refresh()
    with pytest.raises(DigestMismatchError):
        reader.resolve("digits", "pi")
    assert len(verify(registry.store, registry.root)) == 1


def test_changed_metadata_is_a_fault(registry: Registry, tmp_path: Path) -> None:
    """A foreign root, a missing file and an edited file each give one sentence."""
    put(registry, tmp_path)
    assert len(verify(registry.store, Registry(tmp_path / "foreign").root)) == 1
    edited = dict(registry.store.blobs)
    registry.store.blobs["metadata/2.targets.json"] = edited["metadata/1.targets.json"]
    assert "metadata" in verify(registry.store, registry.root)[0]
    del registry.store.blobs["metadata/2.targets.json"]
    assert "2.targets.json" in verify(registry.store, registry.root)[0]


def test_a_publisher_that_signs_nonsense_harms_its_own_model_only(
    registry: Registry, reader: RegistryReader, tmp_path: Path
) -> None:
    """A catalogue entry with a wrong identity is refused; other models still resolve."""
    put(registry, tmp_path, "digits")
    put(registry, tmp_path, "other")
    role = Metadata[Targets].from_bytes(registry.metadata()["1.publisher-other.json"])
    role.signed.targets["models/other/pi/1.0.0/manifest.json"].custom["version"] = "one"
    role.sign(load_signer(key_path(registry.keys, "publisher-other")))
    registry.store.blobs["metadata/1.publisher-other.json"] = role.to_bytes()
    reader.refresh()
    with pytest.raises(VerificationError, match="is for"):
        reader.resolve("other", "pi")
    assert reader.resolve("digits", "pi").manifest.version == "1.0.0"


def test_a_store_that_is_away_is_not_a_fault(registry: Registry, tmp_path: Path) -> None:
    """If the store cannot be read, verify raises an error and reports no fault."""

    class Away(MemoryStore):
        def get(self, name: str) -> bytes:
            raise StoreError("away")

    with pytest.raises(StoreError):
        verify(Away(), registry.root)


@pytest.mark.parametrize("name", ["../keys/root", "a/b.json", "", "root", ".json", "x" * 200 + ".json"])
def test_a_hostile_name_is_not_found(name: str) -> None:
    """Names and digests from the network cannot point elsewhere in the store."""
    with pytest.raises(NotFoundError):
        metadata_name(name)
    with pytest.raises(NotFoundError):
        blob_name(name)
    assert metadata_name("2.publisher-digits.json") == "metadata/2.publisher-digits.json"
    assert blob_name("a" * 64) == f"blobs/sha256/aa/{'a' * 64}"
