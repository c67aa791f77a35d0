"""Versions of edgekit and of other installed packages."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Iterable

from edgekit import __version__

_SEPARATORS = re.compile(r"[-_.]+")


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution; None if it is not installed.

    The version of edgekit comes from its source, because the metadata of an editable installation can be out of date.
    """
    if distribution == "edgekit":
        return __version__
    name = _SEPARATORS.sub("_", distribution).lower()
    for entry in sys.path:
        folder = entry or os.curdir
        try:
            found = _versions_in(folder, os.stat(folder).st_mtime_ns).get(name)
        except FileNotFoundError:
            continue
        except OSError:  # an archive, for example
            return _version_in_metadata(distribution)
        if found is not None:
            return found or _version_in_metadata(distribution)
    return None


@functools.lru_cache(maxsize=32)
def _versions_in(folder: str, changed_ns: int) -> dict[str, str]:
    """By normalised name, the versions of the distributions in a folder of `sys.path`; empty where the name has none.

    The name of a folder ``*.dist-info`` says both (PyPA, "Recording installed projects"). To read it costs a hundredth
    of the import of importlib.metadata, for which a device would wait before its first answer.

    Args:
        folder: The folder.
        changed_ns: When it was changed last, so that a new distribution is found.

    Raises:
        OSError: it cannot be listed.
    """
    found: dict[str, str] = {}
    for entry in os.listdir(folder):
        stem, _, kind = entry.rpartition(".")
        project, _, version = stem.partition("-")
        if kind in ("dist-info", "egg-info"):
            found[_SEPARATORS.sub("_", project).lower()] = version if kind == "dist-info" else ""
    return found


def _version_in_metadata(distribution: str) -> str | None:
    from importlib import metadata  # only for distributions whose folder does not name the version

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
