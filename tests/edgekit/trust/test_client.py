"""The reading side of TUF: what it trusts, and the attacks that it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Targets

from edgekit.errors import (
    DiskError,
    DowngradeError,
    EdgekitError,
    ExpiredError,
    NotFoundError,
    SignatureError,
    TransportError,
    UnavailableError,
    VerificationError,
)
from edgekit.trust.client import LIMITS, TrustClient
from edgekit.trust.keys import key_path, load_public, load_signer
from tests.simulators.bundles import manifest_of
from tests.simulators.publisher import DAY, Device, Registry


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    made = Registry(tmp_path)
    made.publish()
    return made


def test_a_device_finds_what_was_published(registry: Registry) -> None:
    """A target comes with length, digest and identity; an unknown one is None."""
    device = registry.device()
    device.client.refresh()
    found = device.client.find_target("models/digits/pi/1.0.0/manifest.json")
    data = manifest_of(model=b"m").canonical_bytes()
    assert found is not None
    found.verify_length_and_hashes(data)
    assert found.custom == {"name": "digits", "target": "pi", "version": "1.0.0", "release": 1}
    assert device.client.find_target("models/digits/pi/9.9.9/manifest.json") is None
    assert device.client.find_target("models/other/pi/1.0.0/manifest.json") is None


def test_a_quiet_registry_costs_two_fetches(registry: Registry) -> None:
    """Without news, a refresh fetches only the next root and the timestamp."""
    device = registry.device()
    device.client.refresh()
    device.fetched.clear()
    device.client.refresh()
    assert device.fetched == ["2.root.json", "timestamp.json"]


def test_the_catalogue_holds_every_model_or_one(registry: Registry) -> None:
    """All publishers are read when no model is named, and only its own when one is."""
    registry.publish("cloud", target="server")
    device = registry.device()
    device.client.refresh()
    device.fetched.clear()
    assert list(device.client.catalogue("cloud")) == ["models/cloud/server/1.0.0/manifest.json"]
    assert device.fetched == ["2.publisher-cloud.json"]
    assert len(device.client.catalogue()) == 2


def test_the_director_is_who_the_targets_role_names(registry: Registry) -> None:
    """The key for assignments and commands comes from verified metadata."""
    assert registry.device().client.director_key() == load_public(registry.keys / "director.pub")


Attack = Callable[[Registry, Device, dict[str, bytes]], None]


def edited(role: str) -> Attack:
    def attack(registry: Registry, device: Device, old: dict[str, bytes]) -> None:
        if role == "targets":  # the device holds the present one already
            registry.repository.add_model("another")
        name = next(n for n in sorted(registry.metadata(), reverse=True) if role in n)
        document = json.loads(registry.metadata()[name])
        document["signed"]["expires"] = "2099-01-01T00:00:00Z"
        device.files[name] = json.dumps(document).encode()

    return attack


def rolled_back_timestamp(registry: Registry, device: Device, old: dict[str, bytes]) -> None:
    device.client.refresh()
    device.files["timestamp.json"] = old["timestamp.json"]


def mixed_snapshot(registry: Registry, device: Device, old: dict[str, bytes]) -> None:
    newest = max(int(n.partition(".")[0]) for n in registry.metadata() if n.endswith(".snapshot.json"))
    device.files[f"{newest}.snapshot.json"] = registry.metadata()[f"{newest - 1}.snapshot.json"]


def mixed_publisher(registry: Registry, device: Device, old: dict[str, bytes]) -> None:
    device.files["3.publisher-digits.json"] = registry.metadata()["2.publisher-digits.json"]


def garbage(registry: Registry, device: Device, old: dict[str, bytes]) -> None:
    device.files["timestamp.json"] = b"{}"


def endless(registry: Registry, device: Device, old: dict[str, bytes]) -> None:
    device.files["timestamp.json"] = b" " * (LIMITS.timestamp_max_length + 1)


def foreign(registry: Registry, device: Device, old: dict[str, bytes]) -> None:
    other = Registry(registry.folder / "foreign")
    other.publish()
    device.files.update(other.metadata())


def forged_root(registry: Registry, device: Device, old: dict[str, bytes]) -> None:
    document = Metadata.from_bytes(registry.root)
    document.signed.version = 2
    document.sign(CryptoSigner.generate_ed25519())
    device.files["2.root.json"] = document.to_bytes()


def withheld_snapshot(registry: Registry, device: Device, old: dict[str, bytes]) -> None:
    newest = max(int(n.partition(".")[0]) for n in registry.metadata() if n.endswith(".snapshot.json"))
    device.files[f"{newest}.snapshot.json"] = NotFoundError("withheld")


@pytest.mark.parametrize(
    ("attack", "error"),
    [
        pytest.param(edited("timestamp"), SignatureError, id="edited timestamp"),
        pytest.param(edited("snapshot"), SignatureError, id="edited snapshot"),
        pytest.param(edited("targets"), SignatureError, id="edited targets"),
        pytest.param(edited("3.publisher"), SignatureError, id="edited publisher"),
        pytest.param(rolled_back_timestamp, DowngradeError, id="rollback"),
        pytest.param(mixed_snapshot, DowngradeError, id="mix and match of snapshots"),
        pytest.param(mixed_publisher, DowngradeError, id="mix and match of publishers"),
        pytest.param(garbage, VerificationError, id="garbage"),
        pytest.param(endless, VerificationError, id="endless data"),
        pytest.param(foreign, SignatureError, id="foreign registry"),
        pytest.param(forged_root, SignatureError, id="forged next root"),
        pytest.param(withheld_snapshot, UnavailableError, id="withheld snapshot"),
    ],
)
def test_an_attack_on_metadata_is_refused(registry: Registry, attack: Attack, error: type[EdgekitError]) -> None:
    """Each attack is refused with its own error, and the device continues when it ends."""
    device = registry.device()
    device.client.refresh()
    old = registry.metadata()
    registry.publish(version="1.1.0")
    attack(registry, device, old)

    def look() -> object:
        device.client.refresh()
        return device.client.find_target("models/digits/pi/1.1.0/manifest.json")

    with pytest.raises(error):
        look()
    device.files.clear()
    assert look() is not None


@pytest.mark.parametrize(("days", "stale"), [(6, False), (8, True)])
def test_a_frozen_registry_is_noticed_within_its_lifetime(registry: Registry, days: int, stale: bool) -> None:
    """Metadata that nobody renews is refused after a week, by the caller's time."""
    client = registry.device().client
    now = registry.clock.now + days * DAY
    if not stale:
        client.refresh(now)
        return
    with pytest.raises(ExpiredError, match="expired; this machine's clock shows 20"):
        client.refresh(now)
    registry.clock.now = now
    assert registry.repository.refresh_timestamp()
    client.refresh(now)


def test_a_registry_that_lost_its_memory_is_held_to_the_journal(registry: Registry) -> None:
    """After the cache is lost, versions from the caller's journal still forbid a step back."""
    first = registry.device()
    old = registry.metadata()
    registry.publish(version="1.1.0")
    first.client.refresh()
    seen = first.client.versions
    reborn = registry.device()
    reborn.files.update(old)
    with pytest.raises(DowngradeError, match="timestamp"):
        reborn.client.refresh(seen=seen)
    reborn.files.clear()
    reborn.client.refresh(seen=seen)
    assert reborn.client.versions == seen


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff" * 64])
def test_a_damaged_cache_counts_as_absent(registry: Registry, damage: bytes, tmp_path: Path) -> None:
    """A power cut may leave any bytes in the cache; the next refresh repairs it."""
    device = registry.device()
    device.client.refresh()
    device.client.catalogue()
    cached = [path for path in next(tmp_path.glob("device-*")).rglob("*.json") if not path.is_symlink()]
    assert len(cached) >= 5
    for path in cached:
        path.write_bytes(damage)
    device.client.refresh()
    assert device.client.find_target("models/digits/pi/1.0.0/manifest.json") is not None


def test_errors_of_the_way_there_pass_through(registry: Registry) -> None:
    """Errors of the transport pass through unchanged, and old trusted metadata is not used silently."""
    device = registry.device()
    device.client.refresh()
    device.files["timestamp.json"] = TransportError("broker away")
    with pytest.raises(TransportError, match="broker away"):
        device.client.refresh()
    with pytest.raises(TransportError, match="broker away"):
        device.client.find_target("models/digits/pi/1.0.0/manifest.json")


def test_a_cache_that_cannot_be_written_is_a_disk_error(registry: Registry, tmp_path: Path) -> None:
    """A file where the folder should be is reported as the disk's fault."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError):
        TrustClient(tmp_path / "file", registry.root, registry.device().fetch).refresh()


def test_a_root_that_is_no_root_is_refused(registry: Registry) -> None:
    """A device that was enrolled with garbage, or with another role's file, trusts nothing."""
    for root in (b"", b"{}", registry.metadata()["timestamp.json"]):
        device = Device(registry.folder / "cache", root, registry.store.blobs)
        with pytest.raises(VerificationError):
            device.client.refresh()


def test_a_publisher_cannot_name_another_model(registry: Registry) -> None:
    """A target that a stolen publisher key signs for another model's path is ignored."""
    registry.publish("cloud", target="server")
    signed = Metadata[Targets].from_bytes(registry.metadata()["2.publisher-digits.json"])
    (target,) = signed.signed.targets.values()
    target.path = "models/cloud/pi/6.6.6/manifest.json"
    signed.signed.targets = {target.path: target}
    signed.sign(load_signer(key_path(registry.keys, "publisher-digits")))
    device = registry.device()
    device.files["2.publisher-digits.json"] = signed.to_bytes()
    assert device.client.find_target(target.path) is None
    assert target.path not in device.client.catalogue()
    assert "2.publisher-digits.json" in device.fetched


def test_two_that_share_a_cache_do_not_disturb_each_other(registry: Registry, tmp_path: Path) -> None:
    """Two commands at once write to one cache; the library replaces a link there in two steps."""
    clients = [TrustClient(tmp_path / "cache", registry.root, registry.device().fetch) for _ in range(3)]

    def refresh(client: TrustClient) -> None:
        for _ in range(25):
            client.refresh()

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(refresh, clients)) == [None] * 3
