"""Deltas of a bundle that is about to be published, from versions that are published already."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from edgekit.bundle.manifest import BLOCK_BYTES, ROLE_MODEL, Manifest
from edgekit.deltas.description import MAX_DESCRIPTION_BYTES, MAX_OFFERS, Offer
from edgekit.deltas.making import Progress, apply_delta, make_delta
from edgekit.errors import NotFoundError, VerificationError
from edgekit.registry.catalogue import MadeDelta, Row
from edgekit.registry.reader import RegistryReader


def find_bases(reader: RegistryReader, manifest: Manifest, versions: Iterable[str]) -> list[Row]:
    """The published bundles of `versions` for the same model and target.

    Raises:
        NotFoundError: one is not published for this target; says what is.
    """
    rows = {row.version: row for row in reader.list(manifest.name) if row.target == manifest.target}
    wanted = [version for version in dict.fromkeys(versions) if version != manifest.version]
    absent = [version for version in wanted if version not in rows]
    if absent:
        raise NotFoundError(
            f"{manifest.name} has no version {', '.join(absent)} for {manifest.target}",
            advice=f"A delta starts from a published version; there is: {', '.join(rows) or 'none'}.",
        )
    return [rows[version] for version in wanted[:MAX_OFFERS]]


def make_deltas(
    reader: RegistryReader,
    bundle: Path,
    manifest: Manifest,
    bases: Iterable[Row],
    *,
    progress: Progress = lambda done, total: None,
) -> list[tuple[Row, MadeDelta | None]]:
    """A delta of the bundle's artifact from each base; None where it would save too little.

    Args:
        reader: Refreshed; where the bases are read from, verified.
        bundle: Folder of the checked bundle, whose manifest is `manifest`.
        bases: As `find_bases` gave them.
        progress: Called with bytes done and bytes in all, for each base anew.

    Raises:
        NotFoundError, DigestMismatchError, StoreError: a base in the store is not what was signed.
        VerificationError: what a delta makes is not the file.
    """
    entry = manifest.file(ROLE_MODEL)
    made: list[tuple[Row, MadeDelta | None]] = []
    new = (bundle / entry.path).read_bytes()
    for row in bases:
        base = reader.load(row).manifest.file(ROLE_MODEL)
        if entry.size <= BLOCK_BYTES or base.sha256 == entry.sha256:
            made.append((row, None))  # a few messages, or nothing, whichever way
            continue
        made.append((row, _made(reader.read(base), new, progress)))
    return made


def _made(base: bytes, new: bytes, progress: Progress) -> MadeDelta | None:
    found = make_delta(base, new, progress=progress)
    if found is None:
        return None
    delta, payload = found
    if hashlib.sha256(apply_delta(delta, payload, base)).hexdigest() != delta.result:
        raise VerificationError("a delta does not make the file that it was made for; this is a defect of edgekit")
    data = delta.to_bytes()
    if len(data) > MAX_DESCRIPTION_BYTES:
        return None
    digest = hashlib.sha256(data).hexdigest()
    return MadeDelta(Offer(delta.base, delta.result, digest, len(data), len(payload)), data, payload)
