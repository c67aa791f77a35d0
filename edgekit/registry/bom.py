"""The bill of materials of a bundle as CycloneDX 1.6 JSON (an ML-BOM), from what its signed manifest says.

The same bundle always has the same bill: it has no time, and its serial number comes from the bundle's digest.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense, License, LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from edgekit.bundle.manifest import Manifest
from edgekit.errors import SettingsError
from edgekit.registry.components import PACKAGES

_NAMESPACE = uuid.UUID("6f1c1a0e-6f5f-5d6e-9d0f-0a4f3f5b7c11")  # of edgekit's serial numbers
_PYPI = {"python", "edgekit"}  # tools that are no packages of PyPI, or not only


def bill_of(
    manifest: Manifest, *, licences: Sequence[str] = (), report: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The bill of materials of a bundle, as the JSON document.

    Args:
        manifest: The bundle's manifest.
        licences: SPDX ids or expressions of the model, as its publisher gives them; a bundle does not know them.
        report: The bundle's ``report.json``, for the digests of the data; None where it has none.

    Raises:
        SettingsError: a licence is empty, or an expression stands beside others, which CycloneDX does not allow.
    """
    model = _component(
        ComponentType.MACHINE_LEARNING_MODEL,
        manifest.name,
        version=manifest.version,
        digest=manifest.digest,
        properties=_properties(manifest),
    )
    model.licenses.update(_licences(licences))
    parts = [*_files(manifest), *_source(manifest, report or {}), *_data(report or {}), _runtime(manifest)]
    tools = [_tool(name, version) for name, version in sorted(manifest.tools.items())]
    bom = Bom(serial_number=uuid.uuid5(_NAMESPACE, manifest.digest), components=parts)
    bom.metadata.component = model
    bom.metadata.timestamp = None  # type: ignore[assignment,unused-ignore]  # the same bundle has the same bill
    bom.metadata.tools.components.update(tools)
    bom.register_dependency(model, parts)
    document: dict[str, Any] = msgspec.json.decode(JsonV1Dot6(bom).output_as_string())
    document.get("metadata", {}).pop("timestamp", None)
    return document


def no_spdx(texts: Sequence[str]) -> list[str]:
    """The licences that are neither SPDX ids nor SPDX expressions: most are typing errors."""
    made = {one: LicenseFactory().make_from_string(one) for one in texts}
    return [text for text, one in made.items() if isinstance(one, DisjunctiveLicense) and one.id is None]


def _licences(texts: Sequence[str]) -> list[License]:
    if any(not one.strip() for one in texts):
        raise SettingsError("a licence is empty", advice="Give an SPDX id, for example Apache-2.0.")
    made = [LicenseFactory().make_from_string(one) for one in dict.fromkeys(texts)]
    if len(made) > 1 and any(isinstance(one, LicenseExpression) for one in made):
        together = " AND ".join(f"({one})" for one in texts)
        raise SettingsError(
            f"{len(made)} licences, of which one is an expression, cannot stand beside each other",
            advice=f"Write one expression, for example: --licence {together!r}",
        )
    return made


def _component(
    kind: ComponentType,
    name: str,
    *,
    version: str | None = None,
    digest: str = "",
    properties: Mapping[str, str] | None = None,
    purl: PackageURL | None = None,
    description: str | None = None,
) -> Component:
    hashes = [HashType(alg=HashAlgorithm.SHA_256, content=digest)] if digest else []
    return Component(
        type=kind,
        name=name,
        version=version,
        bom_ref=f"{kind.value}:{name}:{digest or version}",
        hashes=hashes,
        properties=[Property(name=f"edgekit:{key}", value=value) for key, value in (properties or {}).items()],
        purl=purl,
        description=description,
    )


def _properties(manifest: Manifest) -> dict[str, str]:
    found = {
        "target": manifest.target,
        "runtime": manifest.runtime,
        "recipe": msgspec.json.encode(manifest.recipe, order="sorted").decode(),
        "task": manifest.task.kind,
        "requires": msgspec.json.encode(manifest.requires, order="sorted").decode(),
    }
    if manifest.quality is not None:
        found["quality"] = msgspec.json.encode(manifest.quality, order="sorted").decode()
    return found


def _files(manifest: Manifest) -> Iterator[Component]:
    for entry in manifest.files:
        properties = {"role": entry.role, "bytes": str(entry.size)}
        yield _component(ComponentType.FILE, entry.path, digest=entry.sha256, properties=properties)


def _source(manifest: Manifest, report: Mapping[str, Any]) -> Iterator[Component]:
    if manifest.source_sha256:
        source = report.get("source")
        form = str(source.get("format", "")) if isinstance(source, Mapping) else ""
        yield _component(
            ComponentType.MACHINE_LEARNING_MODEL,
            f"{manifest.name}-source",
            digest=manifest.source_sha256,
            properties={"format": form} if form else None,
            description="The trained model that was converted.",
        )


def _data(report: Mapping[str, Any]) -> Iterator[Component]:
    split = report.get("split")
    digest = split.get("digest") if isinstance(split, Mapping) else None
    if isinstance(digest, str) and digest and isinstance(split, Mapping):
        sizes = {part: str(split[part]) for part in ("calibration", "choice", "proof") if part in split}
        yield _component(
            ComponentType.DATA,
            "samples",
            version=digest,
            properties=sizes,
            description="The samples of calibration, choice and proof; the version is the digest of their split.",
        )


def _runtime(manifest: Manifest) -> Component:
    package = PACKAGES.get(manifest.runtime, manifest.runtime)
    demanded = manifest.requires.get("runtime_version")
    return _component(
        ComponentType.LIBRARY,
        package,
        purl=PackageURL("pypi", name=package),
        properties={"at least": demanded} if isinstance(demanded, str) else None,
        description="The runtime on the device; its version is a fact of each device.",
    )


def _tool(name: str, version: str) -> Component:
    purl = None if name in _PYPI else PackageURL("pypi", name=name, version=version)
    return _component(ComponentType.LIBRARY, name, version=version, purl=purl)
