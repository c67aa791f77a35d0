"""Changes of keys: devices follow them without any change, and an interrupted change leaves a readable registry."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata

from edgekit.errors import ExpiredError, NotFoundError, SettingsError, SignatureError, StoreError
from edgekit.trust.assignment import Assignment, sign_assignment
from edgekit.trust.keys import generate_key, key_path, load_public, load_signer
from edgekit.trust.repository import Repository
from edgekit.trust.rotation import TOP_ROLES, KeyManager
from tests.simulators.bundles import manifest_of
from tests.simulators.publisher import DAY, Device, Registry
from tests.simulators.store import DyingStore

ROLES = (*TOP_ROLES, "director", "publisher-digits")
V2 = manifest_of(version="1.1.0").canonical_bytes()


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    made = Registry(tmp_path)
    made.publish()
    return made


def keeper(registry: Registry, store: object = None) -> KeyManager:
    return KeyManager(store or registry.store, registry.keys, clock=registry.clock)  # type: ignore[arg-type]


def keyids(registry: Registry, role: str) -> list[str]:
    return [row.keyid for row in keeper(registry).rows() if row.role == role]


def sees(device: Device, version: str = "1.0.0") -> bool:
    device.client.refresh()
    return device.client.find_target(f"models/digits/pi/{version}/manifest.json") is not None


@pytest.mark.parametrize("role", ROLES)
def test_devices_follow_a_new_key_untouched(registry: Registry, role: str) -> None:
    """Devices that used the old key, and devices enrolled before it, trust the new key and no longer the old one."""
    known = registry.device()
    assert sees(known)
    (old,) = keyids(registry, role)
    new = keeper(registry).rotate(role)
    assert keyids(registry, role) == [new] != [old]
    registry.repository.publish(V2)
    for device in (known, registry.device()):
        assert sees(device, "1.1.0")
    if role in ("timestamp", "snapshot", "publisher-digits"):
        away = key_path(registry.keys, f"{role}+2").rename(registry.folder / "away")
        with pytest.raises(NotFoundError, match=role):
            registry.repository.publish(manifest_of(version="1.2.0").canonical_bytes())
        away.rename(key_path(registry.keys, f"{role}+2"))
    key_path(registry.keys, role).unlink()
    registry.repository.publish(manifest_of(version="1.2.0").canonical_bytes())
    assert sees(known, "1.2.0")


@pytest.mark.parametrize("role", ROLES)
def test_a_rotation_that_dies_at_any_write_can_be_read_at_any_time(registry: Registry, role: str) -> None:
    """With the old key, every reader finds a valid registry after every write; a second attempt succeeds."""
    known = registry.device()
    assert sees(known)
    for limit in range(9):
        store = DyingStore(registry.store.blobs, limit)
        try:
            keeper(registry, store).rotate(role, keyids(registry, role)[0])
        except StoreError:
            for device in (known, registry.device()):
                assert sees(device)
            assert registry.repository.models() == ["digits"]
        else:
            break
    assert store.writes == limit >= 3
    registry.repository.publish(V2)
    for device in (known, registry.device()):
        assert sees(device, "1.1.0")


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
def test_a_lost_key_is_replaced(registry: Registry, role: str) -> None:
    """Then the new root is written before the timestamp; the next change completes an interrupted one."""
    key_path(registry.keys, role).unlink()
    known = registry.device()
    assert sees(known)
    unreadable = 0
    for limit in range(9):
        store = DyingStore(registry.store.blobs, limit)
        try:
            keeper(registry, store).rotate(role, keyids(registry, role)[0])
        except StoreError:
            try:
                assert sees(known)
            except SignatureError:
                unreadable += 1
            assert registry.repository.models() == ["digits"]  # which ends what had died
            assert sees(known)
        else:
            break
    assert unreadable == 1
    registry.repository.publish(V2)
    for device in (known, registry.device()):
        assert sees(device, "1.1.0")


def test_an_old_timestamp_does_not_come_back_once_the_change_is_done(registry: Registry) -> None:
    """After a replacement, a damaged timestamp is an error and is not replaced with the pending one."""
    key_path(registry.keys, "timestamp").unlink()
    keeper(registry).rotate("timestamp")
    registry.store.blobs["metadata/timestamp.json"] = b"{}"
    with pytest.raises(SignatureError, match="timestamp"):
        registry.repository.models()


def test_a_threshold_root_changes_one_key_at_a_time(tmp_path: Path) -> None:
    """Two of three keys must be here; they replace a lost one, and old devices follow."""
    registry = Registry(tmp_path, root_keys=3, root_threshold=2)
    registry.publish()
    lost = load_public(registry.keys / "root-3.pub").keyid
    key_path(registry.keys, "root-3").unlink()
    with pytest.raises(SettingsError, match="3 keys, 3 of which match"):
        keeper(registry).rotate("root")
    new = keeper(registry).rotate("root", lost[:10])
    assert lost not in keyids(registry, "root")
    assert new in keyids(registry, "root")
    assert Metadata.from_bytes(registry.metadata()["2.root.json"]).signed.roles["root"].threshold == 2
    key_path(registry.keys, "root-1").rename(tmp_path / "away")
    keeper(registry).revoke("root", load_public(registry.keys / "root-1.pub").keyid, threshold=1)
    assert sees(registry.device())
    key_path(registry.keys, "root-2").unlink()
    key_path(registry.keys, "root").unlink()
    before = dict(registry.store.blobs)
    with pytest.raises(NotFoundError, match="root") as caught:
        keeper(registry).rotate("timestamp")
    assert "offline" in caught.value.advice
    assert registry.store.blobs == before
    assert not key_path(registry.keys, "timestamp+2").exists()


def test_a_second_publisher_comes_and_goes(registry: Registry, tmp_path: Path) -> None:
    """A team publishes its model with its own key, of which it sent the public half, until the key is revoked."""
    team = tmp_path / "team"
    key = generate_key(team / "ours.key").public_key
    for name in ("snapshot.key", "timestamp.key", "root.json"):
        shutil.copy2(registry.keys / name, team / name)
    theirs = Repository(registry.store, team, clock=registry.clock)
    with pytest.raises(NotFoundError, match="publisher-digits"):
        theirs.publish(V2)
    assert keeper(registry).add("publisher-digits", key) == key.keyid
    theirs.publish(V2)
    device = registry.device()
    assert sees(device, "1.1.0")
    keeper(registry).revoke("publisher-digits", key.keyid)
    with pytest.raises(NotFoundError, match="publisher-digits"):
        theirs.publish(manifest_of(version="1.2.0").canonical_bytes())
    assert sees(device, "1.1.0")  # what it published while it was trusted stays, under the other key's signature


def test_a_new_director_is_believed_and_the_old_one_is_not(registry: Registry) -> None:
    """Only the current director's assignments are accepted, before and after; the controller finds its new key."""
    device = registry.device()
    device.client.refresh()
    now = registry.clock.now
    assignment = Assignment("pi-1", "f", 1, now + DAY, {})
    old = registry.repository.director()
    assert device.client.verify_assignment(sign_assignment(assignment, old), "pi-1", "f", now) == assignment
    keeper(registry).rotate("director")
    new = registry.repository.director()
    device.client.refresh()
    assert device.client.director_key().keyid == new.public_key.keyid != old.public_key.keyid
    assert device.client.verify_assignment(sign_assignment(assignment, new), "pi-1", "f", now) == assignment
    with pytest.raises(SignatureError, match="director"):
        device.client.verify_assignment(sign_assignment(assignment, old), "pi-1", "f", now)
    with pytest.raises(SettingsError, match="one key"):
        keeper(registry).add("director")


def test_what_cannot_be_is_refused_and_nothing_changes(registry: Registry) -> None:
    """Unknown roles and keys, a key twice, the last key and impossible thresholds are refused."""
    before = dict(registry.store.blobs), sorted(registry.keys.iterdir())
    (present,) = keyids(registry, "targets")
    for fault, message in (
        (lambda k: k.add("publisher-other"), "no role"),
        (lambda k: k.add("targets", load_signer(key_path(registry.keys, "targets")).public_key), "already"),
        (lambda k: k.add("targets", threshold=3), "expected 1 to 2"),
        (lambda k: k.add("targets", threshold=0), "expected 1 to 2"),
        (lambda k: k.revoke("targets", present), "expected 1 to 0"),
        (lambda k: k.revoke("targets", "ffff" + present), "0 of which match"),
    ):
        with pytest.raises(SettingsError, match=message):
            fault(keeper(registry))
    assert (dict(registry.store.blobs), sorted(registry.keys.iterdir())) == before


def test_renewal_gives_every_role_that_can_be_signed_its_whole_life(registry: Registry) -> None:
    """With the offline keys all roles are renewed; without them the others are, and the result lists them."""
    registry.clock.now += 364 * DAY
    assert keeper(registry).renew() == ["root", "publisher-digits", "targets", "snapshot", "timestamp"]
    registry.clock.now += 6 * DAY
    registry.device().client.refresh(registry.clock.now)
    for role in ("root", "targets"):
        key_path(registry.keys, role).unlink()
    registry.clock.now += 300 * DAY
    assert keeper(registry).renew() == ["publisher-digits", "snapshot", "timestamp"]
    registry.clock.now += 70 * DAY
    keeper(registry).renew()
    with pytest.raises(ExpiredError, match="root"):
        registry.device().client.refresh(registry.clock.now)


def test_a_device_follows_more_roots_than_one_refresh_takes_elsewhere(registry: Registry) -> None:
    """A device that missed a hundred changes of root reaches the newest one."""
    for _ in range(100):
        keeper(registry).renew()
    device = registry.device()
    assert sees(device)
    assert device.client.versions["root"] == 101
