"""Versions of edgekit and of the packages that are installed beside it."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata

from edgekit import __version__


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution, None where it is not installed.

    edgekit's own comes from its source: an editable installation keeps the metadata of the day that it was made.
    """
    if distribution == "edgekit":
        return __version__
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def versions_of(distributions: Iterable[str]) -> dict[str, str]:
    """Versions by distribution, without those that are not installed."""
    return {name: version for name in distributions if (version := version_of(name)) is not None}
