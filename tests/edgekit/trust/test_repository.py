"""The publishing side of TUF: one commit point, few keys, and verification before signing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, Targets

from edgekit.errors import ManifestError, NotFoundError, SettingsError, SignatureError, StoreError, UnavailableError
from edgekit.storage.stores import FileStore
from edgekit.trust.keys import key_path
from edgekit.trust.repository import Repository
from tests.simulators.bundles import manifest_of
from tests.simulators.publisher import DAY, Registry
from tests.simulators.store import DyingStore, MemoryStore

V1, V2 = manifest_of().canonical_bytes(), manifest_of(version="1.1.0").canonical_bytes()


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    made = Registry(tmp_path)
    made.publish()
    return made


Change = Callable[[Repository], object]


def add_model(repository: Repository) -> None:
    repository.add_model("another")


def publish(repository: Repository) -> None:
    repository.publish(V2)


def retire(repository: Repository) -> None:
    repository.mark("digits", "1.0.0", retired=True)


def renew(repository: Repository) -> None:
    repository.refresh_timestamp(force=True)


@pytest.mark.parametrize(("change", "writes"), [(add_model, 4), (publish, 3), (retire, 3), (renew, 2)])
def test_a_change_that_dies_at_any_write_is_not_seen(registry: Registry, change: Change, writes: int) -> None:
    """Until the last write every reader sees the old state; a second attempt succeeds."""
    old_device = registry.device()
    old_device.client.refresh()
    before = old_device.client.versions, {p: f.to_dict() for p, f in old_device.client.catalogue().items()}
    for limit in range(writes):
        dying = DyingStore(registry.store.blobs, limit)
        with pytest.raises(StoreError, match=f"died at write {limit}"):
            change(Repository(dying, registry.keys, clock=registry.clock))
        for device in (old_device, registry.device()):
            device.client.refresh()
            assert (device.client.versions, {p: f.to_dict() for p, f in device.client.catalogue().items()}) == before
    counted = DyingStore(registry.store.blobs, writes)
    change(Repository(counted, registry.keys, clock=registry.clock))
    assert counted.writes == writes
    for device in (old_device, registry.device()):
        device.client.refresh()
        assert device.client.versions["timestamp"] == before[0]["timestamp"] + 1
        device.client.catalogue()


@pytest.mark.parametrize("limit", range(4))
def test_a_creation_that_dies_leaves_no_registry(tmp_path: Path, limit: int) -> None:
    """Readers find no registry, and a second creation does not overwrite the keys."""
    store = DyingStore({}, limit)
    with pytest.raises(StoreError):
        Repository(store, tmp_path / "keys").create()
    assert "metadata/timestamp.json" not in store.blobs
    with pytest.raises(SettingsError, match="already holds keys"):
        Repository(MemoryStore(), tmp_path / "keys").create()
    shutil.rmtree(tmp_path / "keys")
    repository = Repository(DyingStore(store.blobs, 4), tmp_path / "keys")
    repository.create()
    assert repository.models() == []


def test_a_second_creation_is_refused(registry: Registry, tmp_path: Path) -> None:
    """An existing registry is not replaced, with other keys or with the same ones."""
    for keys in (registry.keys, tmp_path / "other"):
        with pytest.raises(SettingsError, match="already a registry"):
            Repository(registry.store, keys).create()
    assert not (tmp_path / "other").exists()


def test_releases_rise_by_one_for_each_model(registry: Registry) -> None:
    """The counter rises over versions and targets of a model; each model has its own."""
    published = [
        registry.repository.publish(manifest_of(version=version, target=target).canonical_bytes())
        for version, target in [("1.1.0", "pi"), ("1.1.0", "jetson"), ("1.0.5", "pi")]
    ]
    assert [target.custom["release"] for target in published] == [2, 3, 4]
    registry.publish("cloud", target="server")
    catalogue = registry.device().client.catalogue("cloud")
    assert [file.custom["release"] for file in catalogue.values()] == [1]


def test_the_same_content_again_changes_nothing(registry: Registry) -> None:
    """Publishing twice leaves the registry byte for byte the same."""
    registry.repository.publish(V2)
    before = dict(registry.store.blobs)
    assert registry.repository.publish(V2).custom["release"] == 2
    assert registry.store.blobs == before


def test_a_published_version_never_changes(registry: Registry) -> None:
    """Other content under a published version is refused with advice."""
    before = dict(registry.store.blobs)
    with pytest.raises(ManifestError, match="other content") as caught:
        registry.repository.publish(manifest_of(model=b"changed").canonical_bytes())
    assert "--version" in caught.value.advice
    assert registry.store.blobs == before


def test_publishing_needs_no_offline_key(registry: Registry) -> None:
    """With root and targets keys gone, a known model is published and renewed; a new model is not made."""
    for role in ("root", "targets"):
        key_path(registry.keys, role).unlink()
    registry.repository.publish(V2)
    assert registry.repository.refresh_timestamp(force=True)
    before = dict(registry.store.blobs)
    with pytest.raises(NotFoundError, match="targets") as caught:
        registry.repository.add_model("another")
    assert "offline" in caught.value.advice
    assert registry.store.blobs == before
    assert not key_path(registry.keys, "publisher-another").exists()


def test_renewing_needs_the_online_keys_only(registry: Registry, tmp_path: Path) -> None:
    """With the snapshot key, the timestamp key and the root file a controller can renew the registry only."""
    held = tmp_path / "controller"
    held.mkdir(mode=0o700)
    for name in ("snapshot.key", "timestamp.key", "root.json"):
        shutil.copy2(registry.keys / name, held / name)
    controller = Repository(registry.store, held, clock=registry.clock)
    assert not controller.refresh_timestamp()
    registry.clock.now += 4 * DAY
    assert controller.refresh_timestamp()
    assert not controller.refresh_timestamp()
    with pytest.raises(NotFoundError, match="publisher-digits"):
        controller.publish(V2)
    registry.device().client.refresh(registry.clock.now + 6 * DAY)


def test_a_new_model_takes_the_offline_key(registry: Registry) -> None:
    """Its first publish makes its publisher in the same change; without the targets key neither of them is made."""
    new = manifest_of("another").canonical_bytes()
    away = key_path(registry.keys, "targets").rename(registry.folder / "targets.key")
    before = dict(registry.store.blobs)
    for change in (registry.repository.publish, registry.repository.check):
        with pytest.raises(NotFoundError, match="targets") as caught:
            change(new)
        assert "offline" in caught.value.advice
    assert registry.store.blobs == before
    away.rename(key_path(registry.keys, "targets"))
    assert registry.repository.check(new) is None
    assert registry.repository.publish(new).custom["release"] == 1
    assert registry.repository.models() == ["another", "digits"]
    assert registry.device().client.find_target("models/another/pi/1.0.0/manifest.json") is not None


@pytest.mark.parametrize("name", ["digits", "Digits", "a/b", "*", "", "-x"])
def test_a_model_is_added_once_and_by_a_plain_name(registry: Registry, name: str) -> None:
    """A second publisher for a model, and a name that a path pattern could misread, are refused."""
    with pytest.raises(ManifestError):
        registry.repository.add_model(name)


def test_what_was_tampered_with_is_never_signed(registry: Registry) -> None:
    """A publisher that finds foreign content in the store does not sign it."""
    name = "metadata/2.publisher-digits.json"
    document = json.loads(registry.store.blobs[name])
    path, target = next(iter(document["signed"]["targets"].items()))
    document["signed"]["targets"][path.replace("1.0.0", "6.6.6")] = target
    registry.store.blobs[name] = json.dumps(document).encode()
    with pytest.raises(SignatureError, match="publisher-digits"):
        registry.repository.publish(V2)


def test_a_role_that_went_back_is_never_signed(registry: Registry) -> None:
    """An old file under a new number is refused when publishing too."""
    registry.repository.publish(V2)
    registry.store.blobs["metadata/3.publisher-digits.json"] = registry.store.blobs["metadata/2.publisher-digits.json"]
    with pytest.raises(SignatureError, match="version 2"):
        registry.repository.mark("digits", "1.0.0", retired=True)


def test_foreign_keys_do_not_publish_here(registry: Registry, tmp_path: Path) -> None:
    """Keys of another registry are refused before anything is written."""
    other = Registry(tmp_path / "other")
    with pytest.raises(SignatureError, match="is not trusted") as caught:
        Repository(registry.store, other.keys).publish(V2)
    assert "another registry" in caught.value.advice


def test_no_registry_is_said_plainly(registry: Registry, tmp_path: Path) -> None:
    """For an empty store and for an empty key folder the advice is init."""
    for store, keys in ((MemoryStore(), registry.keys), (registry.store, tmp_path / "none")):
        with pytest.raises(NotFoundError) as caught:
            Repository(store, keys).models()
        assert "registry init" in caught.value.advice


def test_marks_are_signed_fields_of_every_target_of_a_version(registry: Registry) -> None:
    """A mark reaches both targets of 1.1.0 and leaves identity and release as they were."""
    for target in ("pi", "jetson"):
        registry.repository.publish(manifest_of(version="1.1.0", target=target).canonical_bytes())
    changed = registry.repository.mark("digits", "1.1.0", retired=True)
    assert sorted(changed) == ["models/digits/jetson/1.1.0/manifest.json", "models/digits/pi/1.1.0/manifest.json"]
    catalogue = registry.device().client.catalogue()
    assert {path for path, file in catalogue.items() if file.custom.get("retired")} == set(changed)
    assert sorted(file.custom["release"] for file in catalogue.values()) == [1, 2, 3]
    with pytest.raises(NotFoundError, match=r"9\.9\.9"):
        registry.repository.mark("digits", "9.9.9", retired=True)


def test_a_root_threshold_of_two_takes_two_signatures(tmp_path: Path) -> None:
    """The first root carries every root key's signature, and devices accept the registry."""
    registry = Registry(tmp_path, root_keys=3, root_threshold=2)
    document = Metadata.from_bytes(registry.root)
    assert len(document.signatures) == 3
    assert document.signed.roles["root"].threshold == 2
    registry.publish()
    registry.device().client.refresh()
    with pytest.raises(SettingsError, match="threshold"):
        Repository(MemoryStore(), tmp_path / "x").create(root_keys=1, root_threshold=2)


def test_the_director_names_no_target(registry: Registry) -> None:
    """Its delegation has no path, so its key cannot add targets."""
    top = Metadata[Targets].from_bytes(registry.metadata()["2.targets.json"]).signed
    assert top.delegations is not None
    assert top.delegations.roles is not None
    assert top.delegations.roles["director"].paths == []
    assert not top.targets


def test_a_lost_race_changes_nothing(registry: Registry, tmp_path: Path) -> None:
    """Without a lock, a change that finds another commit fails before its first write."""

    class Racing:
        """A store without a lock; another publisher commits just before the second read of the timestamp."""

        def __init__(self) -> None:
            self.reads = 0

        def get(self, name: str) -> bytes:
            self.reads += name == "metadata/timestamp.json"
            if self.reads == 2 and name == "metadata/timestamp.json":
                registry.repository.refresh_timestamp(force=True)
            return registry.store.get(name)

        def __getattr__(self, name: str) -> object:
            if name == "lock":
                raise AttributeError(name)
            return getattr(registry.store, name)

    with pytest.raises(UnavailableError, match="another publisher"):
        Repository(Racing(), registry.keys, clock=registry.clock).publish(V2)
    assert "metadata/3.publisher-digits.json" not in registry.store.blobs


def test_two_publishers_at_once_both_get_in(tmp_path: Path) -> None:
    """On file:// the lock makes them take turns: every version is published, each with its own release."""
    store = FileStore(tmp_path / "registry")
    Repository(store, tmp_path / "keys").create()
    Repository(store, tmp_path / "keys").add_model("digits")

    def run(minor: int) -> None:
        for patch in range(3):
            manifest = manifest_of(version=f"1.{minor}.{patch}")
            Repository(FileStore(tmp_path / "registry"), tmp_path / "keys").publish(manifest.canonical_bytes())

    threads = [threading.Thread(target=run, args=(minor,)) for minor in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    published = Metadata[Targets].from_bytes(store.get("metadata/7.publisher-digits.json")).signed.targets
    assert sorted(file.custom["release"] for file in published.values()) == [1, 2, 3, 4, 5, 6]


def test_a_killed_publisher_leaves_the_registry_whole(tmp_path: Path) -> None:
    """A process that is killed while it holds the lock blocks no other publisher and damages nothing."""
    store = FileStore(tmp_path / "registry")
    Repository(store, tmp_path / "keys").create()
    Repository(store, tmp_path / "keys").add_model("digits")
    (tmp_path / "manifest.json").write_bytes(V1)
    script = """
import os, pathlib
from edgekit.storage.stores import FileStore
from edgekit.trust.keys import key_path
from edgekit.trust.repository import Repository
class Killed(FileStore):
    def put(self, name, data):
        if "snapshot" in name:
            os.kill(os.getpid(), 9)
        super().put(name, data)
Repository(Killed(pathlib.Path("registry")), pathlib.Path("keys")).publish(pathlib.Path("manifest.json").read_bytes())
"""
    assert subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False).returncode == -9
    assert "metadata/2.publisher-digits.json" in store.list("metadata")
    assert Repository(store, tmp_path / "keys").publish(V1).custom["release"] == 1
