"""The order of releases of a model: by version X.Y.Z, whatever the order in which they were published. Pure rules."""

from __future__ import annotations

from edgekit.bundle.manifest import VERSION


def version_order(version: str) -> tuple[int, ...]:
    """A value that sorts like the version ``X.Y.Z``; a text that is no version comes before every version."""
    return tuple(int(part) for part in version.split(".")) if VERSION.fullmatch(version) else ()


def is_older(version: str, release: int, *, than: str, than_release: int) -> bool:
    """True if a release is older than another one of the same model.

    Args:
        version, release: Its version and its release counter.
        than, than_release: Those of the other one. Where `than` is empty, because an earlier agent noted the counter
            only, the counters decide; else they decide between equal versions only.
    """
    if not than:
        return release < than_release
    return (version_order(version), release) < (version_order(than), than_release)
