"""Assignments: what one device should run, as a TUF Targets document signed by the director.

An assignment is not part of the TUF snapshot: it is retained on the device's ``desired`` topic and verified with the
key that the trusted top-level targets role delegates to ``director``. It may name only bundles of the catalogue;
`check_agrees` checks that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import msgspec
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key, Signer
from tuf.api.exceptions import RepositoryError, UnsignedMetadataError
from tuf.api.metadata import Metadata, TargetFile, Targets
from tuf.api.serialization.json import JSONSerializer

from edgekit.bundle.manifest import target_path
from edgekit.bundle.order import is_older
from edgekit.errors import DowngradeError, ExpiredError, SignatureError, VerificationError

DIRECTOR = "director"
DOWNGRADE = "downgrade"
MAX_ASSIGNMENT_BYTES = 256 * 1024


class Entry(msgspec.Struct, frozen=True):
    """One model of an assignment.

    Attributes:
        path: TUF targets path of the bundle's manifest.
        length: Size of the manifest in bytes.
        sha256: The bundle digest in hex.
        name, target, version: Identity of the bundle.
        release: Counter that rises by one with every publish of this model.
        downgrade: True if the device may go back to this release from a newer one; the publisher must allow it too.
        consent: True if the device waits until its user agrees.
        window: The time of day in which the device may change, in its own time zone, as in ``22:00-05:00``.
        shadow: Inputs on which the device compares the bundle with the active one, before another assignment without
            this lets it be activated; 0 for none.
        shadow_seconds: Longest time of the comparison; canonical JSON has no fractions.
    """

    path: str
    length: int
    sha256: str
    name: str
    target: str
    version: str
    release: int
    downgrade: bool = False
    consent: bool = False
    window: str = ""
    shadow: int = 0
    shadow_seconds: int = 0


_ENTRY = msgspec.msgpack.Decoder(Entry)  # built at import, as in edgekit.mqtt.messages


class Assignment(msgspec.Struct, frozen=True):
    """The models that one device should run.

    Attributes:
        device, fleet: The device.
        version: Rises from 1 with every new assignment for the device.
        expires: Wall clock seconds; signing drops fractions.
        entries: Entries by model name.
        uninstall: Models that the device removes. A model that is only missing from `entries` stays on the device.
    """

    device: str
    fleet: str
    version: int
    expires: float
    entries: Mapping[str, Entry]
    uninstall: tuple[str, ...] = ()


def sign_assignment(assignment: Assignment, signer: Signer) -> bytes:
    """The signed TUF document, as published on the ``desired`` topic."""
    targets = {entry.path: _target_file(entry) for entry in assignment.entries.values()}
    custom: dict[str, Any] = {"device": assignment.device, "fleet": assignment.fleet}
    if assignment.uninstall:
        custom["uninstall"] = list(assignment.uninstall)
    signed = Targets(
        version=assignment.version,
        expires=datetime.fromtimestamp(math.floor(assignment.expires), timezone.utc),
        targets=targets,
        unrecognized_fields={"custom": custom},
    )
    document = Metadata(signed)
    document.sign(signer)
    return document.to_bytes(JSONSerializer(compact=True))


def verify_assignment(
    payload: bytes, trusted: Targets, *, device: str, fleet: str, now: float, seen_version: int = 0
) -> Assignment:
    """Verify and parse an assignment: the director signed it, it is for this device, and it is current.

    Args:
        payload: A signed TUF document.
        trusted: The verified top-level targets role.
        device, fleet: This device.
        now: Wall clock seconds.
        seen_version: The highest assignment version that this device accepted; the same version may come again.

    Raises:
        SignatureError: the director's key did not sign it.
        ExpiredError: it has expired.
        DowngradeError: its version is below `seen_version`.
        VerificationError: it is malformed, or is for another device or fleet.
    """
    if len(payload) > MAX_ASSIGNMENT_BYTES:
        raise VerificationError(f"assignment has {len(payload)} bytes, the limit is {MAX_ASSIGNMENT_BYTES}")
    document = _verified(payload, trusted)
    assignment = _parse(document)
    if (assignment.device, assignment.fleet) != (device, fleet):
        raise VerificationError(
            f"assignment is for device {assignment.device!r} of fleet {assignment.fleet!r}, "
            f"expected {device!r} of {fleet!r}"
        )
    if now >= assignment.expires:
        raise ExpiredError(f"assignment {assignment.version} expired at {document.expires:%Y-%m-%d %H:%M:%S} UTC")
    if assignment.version < seen_version:
        raise DowngradeError(
            f"assignment has version {assignment.version}, expected at least {seen_version}, which was accepted before"
        )
    return assignment


def open_assignment(payload: bytes, director: Key) -> Assignment:
    """Parse an assignment that a known director key has signed, also an expired one.

    Raises:
        SignatureError: the key did not sign it.
        VerificationError: it is malformed.
    """
    try:
        document = Metadata[Targets].from_bytes(payload)
        if not isinstance(document.signed, Targets) or director.keyid not in document.signatures:
            raise SignatureError("assignment is not signed by the director's key")
        director.verify_signature(document.signatures[director.keyid], document.signed_bytes)
    except UnverifiedSignatureError as error:
        raise SignatureError("assignment is not signed by the director's key") from error
    except (RepositoryError, ValueError) as error:
        raise VerificationError(f"assignment cannot be parsed: {error}") from error
    return _parse(document.signed)


def check_agrees(
    entry: Entry, target_file: TargetFile | None, *, seen_release: int = 0, seen_version: str = ""
) -> None:
    """Check that an assignment's entry agrees with the catalogue.

    Args:
        entry: The director's entry.
        target_file: The catalogue's target at `entry.path`; None if there is none.
        seen_release, seen_version: Counter and version of the highest release of this model that the device committed;
            the version is empty where it is not known, and then the counters are compared.

    Raises:
        DowngradeError: the release is older than the one that was seen, and the director (in `entry`) and the publisher
            (in the catalogue) do not both allow that.
        VerificationError: catalogue and entry differ; lists every difference.
    """
    if target_file is None:
        raise VerificationError(f"the assignment names {entry.path!r}, which the catalogue does not have")
    custom = target_file.custom if isinstance(target_file.custom, Mapping) else {}
    expected = {
        "path": target_path(entry.name, entry.target, entry.version),
        "length": target_file.length,
        "sha256": target_file.hashes.get("sha256"),
        **{field: custom.get(field) for field in ("name", "target", "version", "release")},
    }
    faults = [
        f"{field} is {getattr(entry, field)!r}, expected {value!r}"
        for field, value in expected.items()
        if getattr(entry, field) != value
    ]
    if target_file.path != entry.path:
        faults.append(f"the catalogue's target is {target_file.path!r}")
    if faults:
        raise VerificationError(f"assignment and catalogue disagree about {entry.path!r}: " + "; ".join(faults))
    older = is_older(entry.version, entry.release, than=seen_version, than_release=seen_release)
    if older and not (entry.downgrade and custom.get(DOWNGRADE) is True):
        reason = "its publisher does not allow a downgrade to it" if entry.downgrade else "no downgrade was requested"
        raise DowngradeError(
            f"{entry.name}: {entry.version} (release {entry.release}) is older than "
            f"{f'{seen_version} ' if seen_version else ''}(release {seen_release}), which ran here before, and {reason}"
        )


def _target_file(entry: Entry) -> TargetFile:
    custom: dict[str, str | int | bool] = {
        "name": entry.name,
        "target": entry.target,
        "version": entry.version,
        "release": entry.release,
    }
    if entry.downgrade:
        custom[DOWNGRADE] = True
    if entry.consent:
        custom["consent"] = True
    if entry.window:
        custom["window"] = entry.window
    if entry.shadow:
        custom |= {"shadow": entry.shadow, "shadow_seconds": entry.shadow_seconds}
    return TargetFile(entry.length, {"sha256": entry.sha256}, entry.path, {"custom": custom})


def _verified(payload: bytes, trusted: Targets) -> Targets:
    try:
        document = Metadata[Targets].from_bytes(payload)
        if not isinstance(document.signed, Targets):
            raise VerificationError(f"assignment is a TUF {type(document.signed).__name__}, expected Targets")
        trusted.verify_delegate(DIRECTOR, document.signed_bytes, document.signatures)
    except UnsignedMetadataError as error:
        raise SignatureError("assignment is not signed by the director's key") from error
    except ValueError as error:
        raise SignatureError("the trusted metadata names no director, so no assignment can be verified") from error
    except RepositoryError as error:
        raise VerificationError(f"assignment cannot be parsed: {error}") from error
    return document.signed


def _parse(signed: Targets) -> Assignment:
    entries: dict[str, Entry] = {}
    try:
        recipient = msgspec.convert(signed.unrecognized_fields.get("custom"), _Recipient)
        for path, file in signed.targets.items():
            custom: Any = file.custom if isinstance(file.custom, dict) else {}
            fields = {**custom, "path": path, "length": file.length, "sha256": file.hashes.get("sha256")}
            entry = msgspec.convert(fields, Entry)
            if entry.name in entries:
                raise VerificationError(f"assignment names model {entry.name!r} twice")
            entries[entry.name] = entry
    except msgspec.ValidationError as error:
        raise VerificationError(f"assignment is not valid: {error}") from error
    if both := sorted(entries.keys() & set(recipient.uninstall)):
        raise VerificationError(f"assignment both names and uninstalls {', '.join(both)}")
    return Assignment(
        device=recipient.device,
        fleet=recipient.fleet,
        version=signed.version,
        expires=signed.expires.timestamp(),
        entries=entries,
        uninstall=recipient.uninstall,
    )


class _Recipient(msgspec.Struct, frozen=True):
    device: str
    fleet: str
    uninstall: tuple[str, ...] = ()


_RECIPIENT = msgspec.msgpack.Decoder(_Recipient)
