"""Evidence that a bundle answers on a version of its runtime: what was found, and what a device makes of it. Pure.

A bundle was proven on the runtime version that it was made with, which its manifest names. `edgekit recheck` compares
other versions with that one, and signs each outcome into the ``custom`` fields of the bundle's TUF target: the bundle
and its digest stay, and agents that do not know the field ignore it.
"""

# No `from __future__ import annotations`: msgspec would compile each annotation, in every start of a process.

import enum
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import msgspec

from edgekit.bundle.manifest import SHA256, Manifest

TARGET_FIELD = "evidence"
MAX_EVIDENCE = 64
TFLITE_RUNTIME = "tflite-runtime"
EQUAL, WITHIN, WORSE, FAILED = "equal", "within-budget", "worse", "failed"
OUTCOMES = (EQUAL, WITHIN, WORSE, FAILED)
GOOD = (EQUAL, WITHIN)
# Equal samples from which on versions count as equal: then at most 1.5 % of such inputs have other bits, at 95 %
# confidence (3 / n, the rule of three).
LEAST_EQUAL = 200
# The packages that provide a bundle's runtime; the first is the one that conversion uses.
_PACKAGES = {"litert": ("ai-edge-litert", TFLITE_RUNTIME), "onnxruntime": ("onnxruntime",)}


class RuntimeVersion(msgspec.Struct, frozen=True, order=True):
    """A package that provides a runtime, and its version; as text ``onnxruntime 1.31.1``."""

    package: str
    version: str

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


class Evidence(msgspec.Struct, frozen=True):
    """One recheck of a bundle.

    Attributes:
        runtime, version: The package and version that was compared.
        arch: Processor architecture of the comparison: ``x86_64`` or ``aarch64``. It says nothing about another one.
        outcome: ``equal`` (every bit), ``within-budget``, ``worse``, or ``failed`` (it could not run the bundle).
        against: Package and version that it was compared with, as in ``onnxruntime 1.31.1``.
        report: sha256 of the report, hex; the report is a blob of the registry.
        samples: Number of samples that were compared.
    """

    runtime: str
    version: str
    arch: str
    outcome: str
    against: str
    report: str
    samples: Annotated[int, msgspec.Meta(ge=0)] = 0

    @property
    def compared(self) -> str:
        """Package and version that was compared, as text."""
        return f"{self.runtime} {self.version}"


_EVIDENCE = msgspec.msgpack.Decoder(Evidence)  # built at import, as in edgekit.mqtt.messages


class Standing(str, enum.Enum):
    """The knowledge of a bundle on one runtime version."""

    PROVEN = "proven"  # made with it, or compared with a good outcome
    UNPROVEN = "unproven"  # nobody has compared it
    REFUTED = "refuted"  # compared, and worse or failed


def packages_of(runtime: str) -> tuple[str, ...]:
    """The packages that provide a bundle's runtime (``litert`` or ``onnxruntime``); empty for another."""
    return _PACKAGES.get(runtime, ())


def made_with(manifest: Manifest) -> RuntimeVersion | None:
    """The runtime version that a bundle was made with; None where its manifest does not say."""
    for package in packages_of(manifest.runtime):
        if version := manifest.tools.get(package):
            return RuntimeVersion(package, version)
    return None


def parse_evidence(custom: Mapping[str, Any]) -> tuple[Evidence, ...]:
    """The evidence in a target's signed custom fields.

    Entries that cannot be used are skipped, because a newer edgekit may have written them.
    """
    found = custom.get(TARGET_FIELD)
    entries = []
    for item in found[:MAX_EVIDENCE] if isinstance(found, list) else ():
        try:
            entry = msgspec.convert(item, Evidence)
        except msgspec.ValidationError:
            continue
        if entry.outcome in OUTCOMES and SHA256.fullmatch(entry.report):
            entries.append(entry)
    return tuple(entries)


def with_evidence(custom: Mapping[str, Any], entry: Evidence) -> dict[str, Any]:
    """The fields to sign with one more piece of evidence; it takes the place of an earlier one of the same version."""
    others = [one for one in parse_evidence(custom) if _key(one) != _key(entry)]
    return {TARGET_FIELD: [msgspec.to_builtins(one) for one in [*others, entry][-MAX_EVIDENCE:]]}


def _key(entry: Evidence) -> tuple[str, str, str]:
    return entry.runtime, entry.version, entry.arch


def standing(manifest: Manifest, running: str, arch: str, evidence: Iterable[Evidence]) -> Standing:
    """The knowledge of a bundle on the runtime of a device.

    Args:
        manifest: The bundle. One that does not name the version that it was made with is not judged.
        running: Package and version on the device, as in ``onnxruntime 1.31.1``; empty where none is installed.
        arch: The device's architecture.
        evidence: The bundle's evidence.
    """
    made = made_with(manifest)
    if made is None or not running or running == str(made):
        return Standing.PROVEN
    for one in evidence:
        if one.compared == running and one.arch == arch:
            return Standing.PROVEN if one.outcome in GOOD else Standing.REFUTED
    return Standing.UNPROVEN


def equal_versions(running: str, arch: str, evidence: Iterable[Evidence]) -> frozenset[str]:
    """The runtime versions that give the same bits as `running`, itself included: chains of comparisons say so.

    A comparison of fewer than LEAST_EQUAL samples, such as the golden ones alone, says too little.
    """
    known = [one for one in evidence if one.outcome == EQUAL and one.arch == arch and one.samples >= LEAST_EQUAL]
    pairs = [(one.compared, one.against) for one in known]
    reached, size = {running}, 0
    while len(reached) > size:
        size = len(reached)
        reached |= {name for pair in pairs if reached & set(pair) for name in pair}
    return frozenset(reached)


def standing_text(manifest: Manifest, running: str, found: Standing) -> str:
    """One sentence for people about a version that is not proven."""
    bundle, made = f"{manifest.name} {manifest.version}", made_with(manifest)
    if found is Standing.REFUTED:
        return f"{bundle} gave wrong answers with {running} when it was compared; it was made with {made}"
    return f"there is no evidence for {bundle} with {running}; it was made with {made}"
