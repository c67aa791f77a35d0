"""A device after a year offline, with a wrong clock, or after a theft of keys."""

from __future__ import annotations

from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, Snapshot, Timestamp

from edgekit.errors import ClockError, DowngradeError, ExpiredError
from edgekit.trust.commit import signed_bytes
from edgekit.trust.keys import key_path, load_signer
from edgekit.trust.rotation import KeyManager
from tests.simulators.publisher import DAY, Device, Registry


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    made = Registry(tmp_path)
    made.publish()
    return made


def keeper(registry: Registry) -> KeyManager:
    return KeyManager(registry.store, registry.keys, clock=registry.clock)


def asleep_for_a_year(registry: Registry) -> None:
    """Everything is renewed twice and every key changes; then three quiet weeks with a renewed timestamp."""
    for _ in range(2):
        registry.clock.now += 180 * DAY
        keeper(registry).renew()
    for role in ("timestamp", "snapshot", "targets", "root", "director", "publisher-digits"):
        (old,) = [row.keyid for row in keeper(registry).rows() if row.role == role]
        keeper(registry).rotate(role, old)
    registry.clock.now += 21 * DAY
    registry.repository.refresh_timestamp()


@pytest.mark.parametrize("lost_cache", [False, True])
def test_a_device_that_slept_for_a_year_recovers(registry: Registry, lost_cache: bool) -> None:
    """The device follows the chain of roots first; its own metadata has expired and its keys were replaced."""
    device = registry.device()
    device.client.refresh(registry.clock.now)
    seen = device.client.versions
    asleep_for_a_year(registry)
    registry.publish(version="2.0.0")
    awake = registry.device() if lost_cache else device
    awake.fetched.clear()
    awake.client.refresh(registry.clock.now, seen)
    assert awake.client.find_target("models/digits/pi/2.0.0/manifest.json") is not None
    roots = [name for name in awake.fetched if name.endswith(".root.json")]
    assert awake.fetched[: len(roots) + 1] == [*roots, "timestamp.json"]
    assert awake.client.versions["root"] == len(roots)
    assert awake.client.versions["time"] > seen["time"] + 365 * DAY


def test_a_sleeper_is_not_kept_in_its_dream(registry: Registry) -> None:
    """Last year's genuine metadata is refused with the true time, and with last year's time by the journal."""
    device = registry.device()
    device.client.refresh(registry.clock.now)
    then, old = registry.clock.now, registry.metadata()
    asleep_for_a_year(registry)
    dreaming = Device(registry.folder / "dream", registry.root, {f"metadata/{k}": v for k, v in old.items()})
    with pytest.raises(ExpiredError):
        dreaming.client.refresh(registry.clock.now)
    device.client.refresh(registry.clock.now)
    with pytest.raises(DowngradeError):
        dreaming.client.refresh(then, device.client.versions)


@pytest.mark.parametrize("wrong", [0.0, 1_600_000_000.0])
def test_a_clock_that_lost_its_time_is_said(registry: Registry, wrong: float) -> None:
    """A clock in the past raises ClockError; when it is set, the device continues."""
    device = registry.device()
    with pytest.raises(ClockError, match=r"clock shows (1970|2020)-"):
        device.client.refresh(wrong)
    with pytest.raises(ClockError):
        device.client.refresh(registry.clock.now - 2 * DAY)
    device.client.refresh(registry.clock.now - 0.5 * DAY)  # two honest clocks may differ
    device.client.refresh(registry.clock.now)


def test_the_time_floor_outlives_the_cache(registry: Registry) -> None:
    """With the time from the journal, a clock that was set back is noticed without the cache."""
    device = registry.device()
    device.client.refresh(registry.clock.now)
    seen = {**device.client.versions, "time": int(registry.clock.now + 30 * DAY)}
    with pytest.raises(ClockError):
        registry.device().client.refresh(registry.clock.now, seen)


def signed_then(registry: Registry, signed_at: object) -> Device:
    """A device that is served a timestamp with this time of signing."""
    timestamp = Metadata[Timestamp].from_bytes(registry.metadata()["timestamp.json"]).signed
    timestamp.unrecognized_fields["custom"] = {"signed_at": signed_at}
    timestamp.version += 1
    device = registry.device()
    key = load_signer(key_path(registry.keys, "timestamp"))
    device.files["timestamp.json"] = signed_bytes(timestamp, [key])
    return device


@pytest.mark.parametrize("signed_at", ["soon", None, [], -5, 1 << 60])
def test_a_nonsense_time_in_the_timestamp_is_no_floor(registry: Registry, signed_at: object) -> None:
    """An invalid time counts as not stated, as in a registry that another tool signs."""
    device = signed_then(registry, signed_at)
    device.client.refresh(registry.clock.now)
    assert device.client.versions["time"] == 0


def test_a_timestamp_from_the_future_is_not_remembered(registry: Registry) -> None:
    """A thief of the timestamp key can stop changes only until the next honest timestamp."""
    device = signed_then(registry, int(registry.clock.now + 3 * DAY))
    with pytest.raises(ClockError):
        device.client.refresh(registry.clock.now)
    del device.files["timestamp.json"]
    for _ in range(2):
        registry.repository.refresh_timestamp(force=True)
    device.client.refresh(registry.clock.now)


def test_a_device_that_was_born_again_with_a_newer_root_goes_on(registry: Registry) -> None:
    """Its journal holds an older root version than the root that it starts from."""
    device = registry.device()
    device.client.refresh()
    seen = device.client.versions
    keeper(registry).rotate("timestamp")
    newer = registry.metadata()["2.root.json"]
    Device(registry.folder / "again", newer, registry.store.blobs).client.refresh(seen=seen)


def test_new_keys_let_a_registry_come_back_from_absurd_versions(registry: Registry) -> None:
    """A thief of the online keys signs version 99,999; it counts until these keys are replaced."""
    honest = dict(registry.store.blobs)
    meta = registry.metadata()
    snapshot = Metadata[Snapshot].from_bytes(meta["3.snapshot.json"]).signed
    timestamp = Metadata[Timestamp].from_bytes(meta["timestamp.json"]).signed
    snapshot.version = timestamp.snapshot_meta.version = timestamp.version = 99_999
    keys = {role: load_signer(key_path(registry.keys, role)) for role in ("snapshot", "timestamp")}
    registry.store.blobs["metadata/99999.snapshot.json"] = signed_bytes(snapshot, [keys["snapshot"]])
    registry.store.blobs["metadata/timestamp.json"] = signed_bytes(timestamp, [keys["timestamp"]])
    device = registry.device()
    device.client.refresh()
    seen = device.client.versions
    assert seen["timestamp"] == 99_999
    registry.store.blobs.clear()
    registry.store.blobs.update(honest)
    reborn = registry.device()
    with pytest.raises(DowngradeError):
        reborn.client.refresh(seen=seen)
    keeper(registry).rotate("snapshot")
    keeper(registry).rotate("timestamp")
    for recovered in (device, reborn):
        recovered.client.refresh(seen=seen)
        assert recovered.client.versions["timestamp"] < 10
        recovered.client.refresh(seen=recovered.client.versions)
