"""Every reason why a manifest does not fit a device."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from edgekit.bundle.manifest import Manifest

KNOWN_DEMANDS = ("arch", "memory_mib", "runtime_version", "providers", "cpu_features")

# The same file format under another distribution's name and numbering; the self-test judges what it can run.
_STANDS_IN = {"litert": "tflite-runtime"}


class Facts(msgspec.Struct, frozen=True):
    """What a device measured of itself.

    Attributes:
        target: Name of the target profile that it was enrolled as.
        arch: ``aarch64``, ``x86_64`` ...
        memory_mib: Physical memory.
        cpu_features: As Linux names them, sorted.
        runtimes: Version by name: ``litert``, ``onnxruntime``, ``tflite-runtime``.
        providers: ONNX Runtime execution providers that are installed.
        python: Its version.
        edgekit: Version of edgekit.
        seal_keys: Ids of the class keys that it can open sealed bundles with.
    """

    target: str
    arch: str
    memory_mib: int
    cpu_features: tuple[str, ...] = ()
    runtimes: dict[str, str] = {}
    providers: tuple[str, ...] = ()
    python: str = ""
    edgekit: str = ""
    seal_keys: tuple[str, ...] = ()


def mismatches(manifest: Manifest, facts: Facts) -> list[str]:
    """One sentence for each reason why the device must refuse the bundle; empty when it fits."""
    found = []
    if manifest.target != facts.target:
        found.append(f"it is for target {manifest.target!r}, this device is {facts.target!r}")
    found += seal_mismatches(manifest, facts.seal_keys)
    found += _runtime_mismatches(manifest, facts)
    for key, value in sorted(manifest.requires.items()):
        found += _demand_mismatches(key, value, facts)
    return found


def seal_mismatches(manifest: Manifest, key_ids: Collection[str]) -> list[str]:
    """Why a bundle cannot be opened with the class keys of these ids; empty when it can, or is not sealed."""
    if manifest.sealed is None or any(key.key_id in key_ids for key in manifest.sealed.keys):
        return []
    classes = ", ".join(f"{key.device_class} (key {key.key_id[:12]})" for key in manifest.sealed.keys)
    have = ", ".join(f"key {key_id[:12]}" for key_id in sorted(key_ids)) or "no class key"
    return [f"it is sealed for device class {classes}, this device has {have}"]


def _runtime_mismatches(manifest: Manifest, facts: Facts) -> list[str]:
    version = facts.runtimes.get(manifest.runtime)
    if version is None:
        if _STANDS_IN.get(manifest.runtime) in facts.runtimes and "runtime_version" not in manifest.requires:
            return []  # where a version is demanded, the file holds what the older distribution cannot run
        have = ", ".join(f"{name} {version}" for name, version in sorted(facts.runtimes.items())) or "none"
        return [f"it needs runtime {manifest.runtime}, this device has {have}"]
    wanted = manifest.requires.get("runtime_version")
    if isinstance(wanted, str) and _numbers(version) < _numbers(wanted):
        return [f"it needs {manifest.runtime} {wanted} or later, this device has {version}"]
    return []


def _demand_mismatches(key: str, value: Any, facts: Facts) -> list[str]:
    if key == "arch" and isinstance(value, str):
        fits = value in ("any", facts.arch)
        return [] if fits else [f"it needs arch {value}, this device is {facts.arch}"]
    if key == "memory_mib" and isinstance(value, int | float):
        fits = facts.memory_mib >= value
        return [] if fits else [f"it needs {value} MiB of memory, this device has {facts.memory_mib}"]
    if key == "runtime_version" and isinstance(value, str):
        return []  # judged with the runtime itself
    if key in ("providers", "cpu_features") and isinstance(value, list | tuple):
        have: tuple[str, ...] = getattr(facts, key)
        missing = [str(item) for item in value if item not in have]
        return [f"it needs {key} {', '.join(missing)}, this device has {', '.join(have) or 'none'}"] if missing else []
    if key in KNOWN_DEMANDS:
        return [f"its demand {key} is {value!r}, which is of the wrong type"]
    return [f"it demands {key!r}, which this edgekit does not know"]


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: ``1.23.2rc1`` is (1, 23, 2)."""
    numbers = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)
