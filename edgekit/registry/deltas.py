"""Deltas of a bundle that is about to be published: which base versions to use, and making them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from edgekit.bundle.manifest import BLOCK_BYTES, ROLE_MODEL, Manifest
from edgekit.deltas.description import MAX_DESCRIPTION_BYTES, MAX_OFFERS, Offer
from edgekit.deltas.making import Progress, apply_delta, make_delta
from edgekit.errors import NotFoundError, VerificationError
from edgekit.mqtt.messages import Running
from edgekit.registry.catalogue import CatalogueEntry, MadeDelta
from edgekit.registry.reader import RegistryReader

NO_DELTAS = "none"
MAX_AUTOMATIC = 4


class BaseChoice(msgspec.Struct, frozen=True):
    """Versions from which to make deltas.

    Attributes:
        versions: The base versions, the most used first; empty for no deltas.
        named: True if a person named them: then each must be published.
        reason: Why there are no deltas although versions were found, for people; else empty.
    """

    versions: tuple[str, ...] = ()
    named: bool = False
    reason: str = ""


def choose_bases(
    manifest: Manifest, named: Sequence[str], running: Iterable[tuple[str, Mapping[str, Running]]]
) -> BaseChoice:
    """Choose the versions from which to make deltas of the bundle of `manifest`.

    Args:
        manifest: Of the bundle that is about to be published.
        named: Versions that a person named. They win over `running`; ``none`` among them means no deltas.
        running: Target and running models of each device of the fleet. The versions of the model that most devices of
            the manifest's target run are chosen, at most MAX_AUTOMATIC of them.
    """
    if NO_DELTAS in named:
        return BaseChoice()
    versions = tuple(named or _most_used(manifest, running))
    if versions and manifest.sealed is not None:
        return BaseChoice(reason="encrypted bundles have no bytes in common, because each has its own key")
    return BaseChoice(versions, named=bool(named))


def _most_used(manifest: Manifest, running: Iterable[tuple[str, Mapping[str, Running]]]) -> list[str]:
    counts = Counter(
        models[manifest.name].version
        for target, models in running
        if target == manifest.target and manifest.name in models
    )
    others = [version for version, _ in counts.most_common() if version not in ("", manifest.version)]
    return others[:MAX_AUTOMATIC]


def find_chosen_bases(
    reader: RegistryReader, manifest: Manifest, choice: BaseChoice
) -> tuple[list[CatalogueEntry], str]:
    """The published bundles of `choice`; if an automatic one is missing, no bundles and the reason, for people.

    Raises:
        NotFoundError: a named version is not published for this target.
    """
    try:
        return find_bases(reader, manifest, choice.versions), ""
    except NotFoundError as error:
        if choice.named:
            raise
        return [], str(error)


def find_bases(reader: RegistryReader, manifest: Manifest, versions: Iterable[str]) -> list[CatalogueEntry]:
    """The published bundles of `versions` for the same model and target.

    Raises:
        NotFoundError: one is not published for this target; the advice lists the published ones.
    """
    rows = {row.version: row for row in reader.list(manifest.name) if row.target == manifest.target}
    wanted = [version for version in dict.fromkeys(versions) if version != manifest.version]
    absent = [version for version in wanted if version not in rows]
    if absent:
        raise NotFoundError(
            f"{manifest.name} has no version {', '.join(absent)} for {manifest.target}",
            advice=f"Name a published version: {', '.join(rows) or 'there is none'}.",
        )
    return [rows[version] for version in wanted[:MAX_OFFERS]]


def make_deltas(
    reader: RegistryReader,
    bundle: Path,
    manifest: Manifest,
    bases: Iterable[CatalogueEntry],
    *,
    progress: Progress = lambda done, total: None,
) -> list[tuple[CatalogueEntry, MadeDelta | None]]:
    """Make a delta of the bundle's artifact from each base; None for a base from which it would save too little.

    Args:
        reader: A refreshed reader; the bases are read from it and verified.
        bundle: Folder of the checked bundle.
        manifest: The bundle's manifest.
        bases: Published bundles, from `find_bases`.
        progress: Called with bytes done and bytes in total; starts again for each base.

    Raises:
        NotFoundError, DigestMismatchError, StoreError: a base in the store is missing or differs from what was signed.
        VerificationError: a delta does not reproduce the artifact.
    """
    entry = manifest.file(ROLE_MODEL)
    made: list[tuple[CatalogueEntry, MadeDelta | None]] = []
    new = (bundle / entry.path).read_bytes()
    for row in bases:
        base = reader.load(row).manifest.file(ROLE_MODEL)
        if entry.size <= BLOCK_BYTES or base.sha256 == entry.sha256:
            made.append((row, None))  # the whole file is one block, or the device already has it
            continue
        made.append((row, _make(reader.read(base), new, progress)))
    return made


def _make(base: bytes, new: bytes, progress: Progress) -> MadeDelta | None:
    result = make_delta(base, new, progress=progress)
    if result is None:
        return None
    delta, payload = result
    if hashlib.sha256(apply_delta(delta, payload, base)).hexdigest() != delta.result:
        raise VerificationError("a delta does not reproduce its file; this is a defect of edgekit, please report it")
    data = delta.to_bytes()
    if len(data) > MAX_DESCRIPTION_BYTES:
        return None
    digest = hashlib.sha256(data).hexdigest()
    return MadeDelta(Offer(delta.base, delta.result, digest, len(data), len(payload)), data, payload)
