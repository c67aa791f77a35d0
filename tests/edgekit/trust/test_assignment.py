"""Assignments are checked against the device, the time and the catalogue."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from securesystemslib.signer import CryptoSigner

from edgekit.errors import DowngradeError, EdgekitError, ExpiredError, SignatureError, VerificationError
from edgekit.trust.assignment import MAX_ASSIGNMENT_BYTES, Assignment, Entry, check_agrees, sign_assignment
from edgekit.trust.client import TrustClient
from edgekit.trust.keys import key_path, load_signer
from tests.simulators.publisher import DAY, Registry


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    made = Registry(tmp_path)
    made.publish()
    made.publish(version="1.1.0")
    return made


@pytest.fixture
def client(registry: Registry) -> TrustClient:
    return registry.device().client


def entry_of(client: TrustClient, version: str = "1.1.0") -> Entry:
    path = f"models/digits/pi/{version}/manifest.json"
    found = client.find_target(path)
    assert found is not None
    return Entry(path=path, length=found.length, sha256=found.hashes["sha256"], **found.custom)


def order(registry: Registry, client: TrustClient, **changes: object) -> bytes:
    """A signed assignment of 1.1.0 for pi-1 of lab, version 5, with `changes`."""
    assignment = Assignment(
        device="pi-1", fleet="lab", version=5, expires=registry.clock.now + DAY, entries={"digits": entry_of(client)}
    )
    return sign_assignment(
        msgspec.structs.replace(assignment, **changes), load_signer(key_path(registry.keys, "director"))
    )


def test_models_to_uninstall_are_signed_and_never_assigned_too(registry: Registry, client: TrustClient) -> None:
    """They survive; an assignment that both names and removes a model is refused."""
    made = client.verify_assignment(order(registry, client, uninstall=("wake",)), "pi-1", "lab", registry.clock.now)
    assert made.uninstall == ("wake",)
    with pytest.raises(VerificationError, match="both names and uninstalls digits"):
        client.verify_assignment(order(registry, client, uninstall=("digits",)), "pi-1", "lab", registry.clock.now)


def test_a_device_gets_back_what_the_director_signed(registry: Registry, client: TrustClient) -> None:
    """Every field survives, a repeated delivery of the same version included."""
    payload = order(registry, client)
    now = registry.clock.now
    for seen in (0, 4, 5):
        found = client.verify_assignment(payload, device="pi-1", fleet="lab", now=now, seen_version=seen)
        assert found == Assignment("pi-1", "lab", 5, now + DAY, {"digits": entry_of(client)})


def test_an_assignment_may_be_empty(registry: Registry, client: TrustClient) -> None:
    """A device without any model has an assignment too."""
    payload = order(registry, client, entries={})
    assert client.verify_assignment(payload, "pi-1", "lab", registry.clock.now).entries == {}


@pytest.mark.parametrize(
    ("device", "fleet", "days", "seen", "error"),
    [
        ("pi-2", "lab", 0, 0, VerificationError),
        ("pi-1", "field", 0, 0, VerificationError),
        ("pi-1", "lab", 1, 0, ExpiredError),
        ("pi-1", "lab", 0, 6, DowngradeError),
    ],
)
def test_an_order_for_another_or_of_yesterday_is_refused(
    registry: Registry, client: TrustClient, device: str, fleet: str, days: int, seen: int, error: type[EdgekitError]
) -> None:
    """A wrong device, fleet, expiry or version each refuse the assignment."""
    payload = order(registry, client)
    with pytest.raises(error):
        client.verify_assignment(payload, device, fleet, registry.clock.now + days * DAY, seen_version=seen)


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp", "publisher-digits", "root"])
def test_no_other_role_may_give_orders(registry: Registry, client: TrustClient, role: str) -> None:
    """An assignment that another role's key signed is refused, even an offline key."""
    assignment = Assignment("pi-1", "lab", 1, registry.clock.now + DAY, {})
    payload = sign_assignment(assignment, load_signer(key_path(registry.keys, role)))
    with pytest.raises(SignatureError):
        client.verify_assignment(payload, "pi-1", "lab", registry.clock.now)


def test_an_edited_order_is_refused(registry: Registry, client: TrustClient) -> None:
    """Any signed field that is changed breaks the signature."""
    for change in (
        lambda signed: signed.update(version=9),
        lambda signed: signed.update(expires="2099-01-01T00:00:00Z"),
        lambda signed: signed["custom"].update(device="pi-2"),
        lambda signed: signed["targets"].clear(),
        lambda signed: next(iter(signed["targets"].values()))["custom"].update(release=9),
    ):
        document = json.loads(order(registry, client))
        change(document["signed"])
        with pytest.raises(SignatureError):
            client.verify_assignment(json.dumps(document).encode(), "pi-1", "lab", registry.clock.now)


@pytest.mark.parametrize(
    "payload", [b"", b"{}", b"[" * 100_000, b"\xff", b"null", b'{"signed": {}, "signatures": []}', b" " * 300_000]
)
def test_garbage_is_refused(registry: Registry, client: TrustClient, payload: bytes) -> None:
    """Garbage on the topic gives a VerificationError."""
    with pytest.raises(VerificationError):
        client.verify_assignment(payload, "pi-1", "lab", registry.clock.now)
    assert MAX_ASSIGNMENT_BYTES < 300_000


def test_a_signed_timestamp_is_no_assignment(registry: Registry, client: TrustClient) -> None:
    """Another document of the repository is refused by its type."""
    with pytest.raises(VerificationError, match="Timestamp"):
        client.verify_assignment(registry.metadata()["timestamp.json"], "pi-1", "lab", registry.clock.now)


def test_a_strange_director_gives_no_orders(registry: Registry, client: TrustClient) -> None:
    """An assignment by a key that the targets role does not name as director is refused."""
    stranger = sign_assignment(
        Assignment("pi-1", "lab", 1, registry.clock.now + DAY, {}), CryptoSigner.generate_ed25519()
    )
    with pytest.raises(SignatureError):
        client.verify_assignment(stranger, "pi-1", "lab", registry.clock.now)


def test_an_honest_entry_agrees(registry: Registry, client: TrustClient) -> None:
    """The same release again, a newer one, and one never seen before may be installed."""
    entry = entry_of(client)
    for seen in (0, 1, 2):
        check_agrees(entry, client.find_target(entry.path), seen_release=seen)


def test_a_stolen_director_key_cannot_name_an_unknown_model(client: TrustClient) -> None:
    """A bundle that no publisher signed is not in the catalogue."""
    entry = msgspec.structs.replace(entry_of(client), path="models/evil/pi/1.0.0/manifest.json", name="evil")
    with pytest.raises(VerificationError, match="catalogue does not have"):
        check_agrees(entry, client.find_target(entry.path))


def test_a_stolen_director_key_cannot_go_back(client: TrustClient) -> None:
    """A genuine but older release is refused with the device's journal."""
    old = entry_of(client, "1.0.0")
    with pytest.raises(DowngradeError, match=r"\(release 1\) is older than \(release 2\)"):
        check_agrees(old, client.find_target(old.path), seen_release=2)


@pytest.mark.parametrize(
    "lie",
    [
        {"length": 1},
        {"sha256": "0" * 64},
        {"name": "other"},
        {"target": "jetson"},
        {"version": "9.0.0"},
        {"release": 9},
    ],
)
def test_a_stolen_director_key_cannot_lie_about_a_bundle(client: TrustClient, lie: dict[str, object]) -> None:
    """Every field is compared with the publisher's entry, and the error names it."""
    entry = entry_of(client)
    with pytest.raises(VerificationError, match=next(iter(lie))):
        check_agrees(msgspec.structs.replace(entry, **lie), client.find_target(entry.path))


def test_a_target_of_another_path_does_not_agree(client: TrustClient) -> None:
    """A target file of another path is refused, so a caller cannot mix up two of them."""
    with pytest.raises(VerificationError):
        check_agrees(entry_of(client, "1.1.0"), client.find_target(entry_of(client, "1.0.0").path))
