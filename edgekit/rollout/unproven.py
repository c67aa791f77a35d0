"""Which devices of a rollout run a runtime version that the bundle has no good evidence for. Pure rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from edgekit.bundle.evidence import Evidence, Standing, packages_of, standing
from edgekit.bundle.manifest import Manifest

MAX_NAMED = 10
_FACTS = {"ai-edge-litert": "litert"}  # a package's name in the fact ``runtimes``, where it is another one


class Unproven(msgspec.Struct, frozen=True):
    """Devices with one runtime version that is not proven for the bundle of their target.

    Attributes:
        target: Their target.
        runtime: Package and version, as in ``onnxruntime 1.32.0``.
        standing: ``unproven`` (no evidence) or ``refuted`` (wrong answers, so the devices refuse the bundle).
        devices: Their names.
    """

    target: str
    runtime: str
    standing: str
    devices: tuple[str, ...]

    @property
    def message(self) -> str:
        """One line that counts the devices, names ten of them at most, and says what to type."""
        names = list(self.devices[:MAX_NAMED])
        if len(self.devices) > MAX_NAMED:
            names.append(f"and {len(self.devices) - MAX_NAMED} more")
        count = "1 device runs" if len(self.devices) == 1 else f"{len(self.devices)} devices run"
        if self.standing == Standing.REFUTED.value:
            what = "with which the bundle gave wrong answers, and will refuse it"
        else:
            package = self.runtime.replace(" ", "==")
            what = f"which the bundle has no evidence for; see: edgekit recheck BUNDLE --runtime {package}"
        return f"{self.target}: {count} {self.runtime}, {what} ({', '.join(names)})"


def running_version(runtime: str, facts: Mapping[str, Any]) -> str:
    """Package and version that run a bundle on a device, from its facts; empty where it has reported none."""
    versions = facts.get("runtimes")
    if not isinstance(versions, Mapping):
        return ""
    for package in packages_of(runtime):
        if version := versions.get(_FACTS.get(package, package)):
            return f"{package} {version}"
    return ""


def unproven(
    target: str, manifest: Manifest, evidence: tuple[Evidence, ...], facts: Mapping[str, Mapping[str, Any]]
) -> list[Unproven]:
    """The devices of one target whose runtime version is not proven, one entry a version.

    Args:
        target: The target.
        manifest: Its bundle.
        evidence: The bundle's evidence.
        facts: Facts by the name of each device. Devices that have not reported a runtime are not judged.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for name, one in sorted(facts.items()):
        running = running_version(manifest.runtime, one)
        stands = standing(manifest, running, str(one.get("arch", "")), evidence)
        if stands is not Standing.PROVEN:
            found.setdefault((running, stands.value), []).append(name)
    return [Unproven(target, *key, tuple(names)) for key, names in sorted(found.items())]
