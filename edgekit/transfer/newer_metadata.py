"""Rules for the metadata that a device lacks: what it has, by role, and what the repository has. Pure.

Files are those of a TUF repository with consistent snapshots: the timestamp names the version of the snapshot, and the
snapshot the versions of all targets roles.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from edgekit.errors import DataError

ROOT, TIMESTAMP, SNAPSHOT, TARGETS = "root", "timestamp", "snapshot", "targets"
MAX_ROLES = 100
MAX_HINTS = 20
_MODELS = "models/"


class _Version(msgspec.Struct, frozen=True):
    version: int


class _Listing(msgspec.Struct, frozen=True):
    meta: dict[str, _Version]


class _Signed(msgspec.Struct, frozen=True):
    signed: _Listing


class _Order(msgspec.Struct, frozen=True):
    targets: dict[str, msgspec.Raw]


class _Assignment(msgspec.Struct, frozen=True):
    signed: _Order


# Built at import, because the first decoding of a type in two threads at once crashes in msgspec 0.22.
_SIGNED = msgspec.json.Decoder(_Signed)
_ASSIGNMENT = msgspec.json.Decoder(_Assignment)


def listed_versions(document: bytes) -> dict[str, int]:
    """Versions by role that a timestamp or a snapshot lists. Raises DataError if it is neither."""
    try:
        meta = _SIGNED.decode(document).signed.meta
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"the metadata lists no versions: {error}") from error
    return {name.removesuffix(".json"): one.version for name, one in meta.items()}


def newer_files(have: Mapping[str, int], listed: Mapping[str, int]) -> list[str]:
    """Names of the files whose roles the device has or needs, in a lower version than the listed one.

    Args:
        have: Versions by role; 0 for a role that it needs and does not have.
        listed: Versions by role in a timestamp or a snapshot.
    """
    return [f"{version}.{role}.json" for role, version in listed.items() if have.get(role, version) < version]


def hinted_models(assignment: bytes) -> list[str]:
    """The first models that an assignment names, which was not verified: a hint for what to ask, and nothing else."""
    try:
        paths = _ASSIGNMENT.decode(assignment).signed.targets
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return []
    named = [path.removeprefix(_MODELS).partition("/")[0] for path in paths if path.startswith(_MODELS)]
    return list(dict.fromkeys(named))[:MAX_HINTS]
