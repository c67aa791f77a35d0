"""Which bundles contain a component: a digest, a model, or a tool or runtime with or without a version. Pure."""

from __future__ import annotations

import re

from edgekit.bundle.manifest import Manifest

SHORTEST_DIGEST = 8
_DIGEST = re.compile(r"[0-9a-f]{8,64}")
PACKAGES = {"litert": "ai-edge-litert", "onnxruntime": "onnxruntime", "tflite-runtime": "tflite-runtime"}


def matches(manifest: Manifest, wanted: str) -> list[str]:
    """The parts of a bundle that are the component; empty if none is.

    Args:
        manifest: The bundle's manifest.
        wanted: A digest or its first characters (8 or more), a model's name, a tool or a runtime. A name may have a
            version: ``tensorflow==2.21.0``, ``digits==1.0.0``.
    """
    if _DIGEST.fullmatch(wanted):
        digests = {"bundle": manifest.digest, "source model": manifest.source_sha256}
        digests |= {f"file {entry.path}": entry.sha256 for entry in manifest.files}
        found = [what for what, digest in digests.items() if digest.startswith(wanted)]
        if found:
            return found
    name, _, version = wanted.partition("==")
    found = []
    if manifest.name == name and version in ("", manifest.version):
        found.append("model")
    found += [f"tool {tool} {have}" for tool, have in manifest.tools.items() if tool == name and version in ("", have)]
    if not version and name in (manifest.runtime, PACKAGES.get(manifest.runtime)):
        found.append(f"runtime {manifest.runtime}")
    return found


def runs_runtime(runtimes: dict[str, object], wanted: str) -> list[str]:
    """The runtimes of a device that are the component, with their versions, from its fact ``runtimes``."""
    name, _, version = wanted.partition("==")
    return [
        f"{runtime} {have}"
        for runtime, have in runtimes.items()
        if name in (runtime, PACKAGES.get(runtime)) and version in ("", str(have))
    ]
