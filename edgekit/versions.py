"""Versions of edgekit and of other installed packages."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata

from edgekit import __version__


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution; None if it is not installed.

    The version of edgekit comes from its source, because the metadata of an editable installation can be out of date.
    """
    if distribution == "edgekit":
        return __version__
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def versions_of(distributions: Iterable[str]) -> dict[str, str]:
    """Versions by distribution; distributions that are not installed are left out."""
    return {name: version for name in distributions if (version := version_of(name)) is not None}


# Distributions that provide a runtime, in the order in which the adapters try them.
_RUNTIMES = {
    "litert": ("ai-edge-litert", "tflite-runtime"),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
}


def runtime_version(runtime: str) -> str:
    """The distribution and version that provide a bundle's runtime here; empty if none does."""
    found = versions_of(_RUNTIMES.get(runtime, ()))
    return " ".join(next(iter(found.items()))) if found else ""
