"""Compatibility of a manifest with a device."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from edgekit.bundle.manifest import Manifest

KNOWN_DEMANDS = ("arch", "memory_mib", "runtime_version", "providers", "cpu_features")

# An older distribution with other version numbers reads the same file format; the self-test checks the rest.
_SUBSTITUTES = {"litert": "tflite-runtime"}


class Facts(msgspec.Struct, frozen=True):
    """Facts that a device measured about itself.

    Attributes:
        target: Name of the device's target profile, set at enrollment.
        arch: ``aarch64``, ``x86_64`` ...
        memory_mib: Physical memory.
        cpu_features: Linux names, sorted.
        runtimes: Version by name: ``litert``, ``onnxruntime``, ``tflite-runtime``.
        providers: ONNX Runtime execution providers that are installed.
        python: Version of Python.
        edgekit: Version of edgekit.
        seal_keys: Ids of the class keys with which it can open sealed bundles.
        board: The board's name, as its firmware tells; empty where it does not.
        cpus: Number of processors that the agent may use.
        disk_mib: Size of the file system of the agent's state; 0 where unknown.
        accelerators: Accelerators whose drivers are there, for example ``coral-edgetpu``.
        tags: From the device's own settings.
        unproven: By model, the runtime version that its installed bundle has no good evidence for.
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
    board: str = ""
    cpus: int = 0
    disk_mib: int = 0
    accelerators: tuple[str, ...] = ()
    tags: dict[str, str] = {}
    unproven: dict[str, str] = {}


def mismatches(manifest: Manifest, facts: Facts) -> list[str]:
    """One sentence for each reason why the device must refuse the bundle; empty if it fits."""
    reasons = []
    if manifest.target != facts.target:
        reasons.append(f"it is for target {manifest.target!r}, this device is {facts.target!r}")
    reasons += seal_mismatches(manifest, facts.seal_keys)
    reasons += _runtime_mismatches(manifest, facts)
    for key, value in sorted(manifest.requires.items()):
        reasons += _demand_mismatches(key, value, facts)
    return reasons


def seal_mismatches(manifest: Manifest, key_ids: Collection[str]) -> list[str]:
    """Why the class keys with these ids cannot open a bundle; empty if they can, or if it is not sealed."""
    if manifest.sealed is None or any(key.key_id in key_ids for key in manifest.sealed.keys):
        return []
    classes = ", ".join(f"{key.device_class} (key {key.key_id[:12]})" for key in manifest.sealed.keys)
    have = ", ".join(f"key {key_id[:12]}" for key_id in sorted(key_ids)) or "no class key"
    return [f"it is sealed for device class {classes}, this device has {have}"]


def _runtime_mismatches(manifest: Manifest, facts: Facts) -> list[str]:
    version = facts.runtimes.get(manifest.runtime)
    if version is None:
        if _SUBSTITUTES.get(manifest.runtime) in facts.runtimes and "runtime_version" not in manifest.requires:
            return []  # a demanded version means operators that the older distribution lacks
        have = ", ".join(f"{name} {version}" for name, version in sorted(facts.runtimes.items())) or "none"
        return [f"it needs runtime {manifest.runtime}, this device has {have}"]
    wanted = manifest.requires.get("runtime_version")
    if isinstance(wanted, str) and numbers(version) < numbers(wanted):
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
        return []  # checked in _runtime_mismatches
    if key in ("providers", "cpu_features") and isinstance(value, list | tuple):
        have: tuple[str, ...] = getattr(facts, key)
        missing = [str(item) for item in value if item not in have]
        return [f"it needs {key} {', '.join(missing)}, this device has {', '.join(have) or 'none'}"] if missing else []
    if key in KNOWN_DEMANDS:
        return [f"its demand {key} is {value!r}, which has the wrong type"]
    return [f"it demands {key!r}, which this version of edgekit does not support"]


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: ``1.23.2rc1`` is (1, 23, 2)."""
    numbers = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)
