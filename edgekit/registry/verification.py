"""Everything that a registry holds, verified: metadata from the root on, and every blob hashed anew."""

from __future__ import annotations

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from edgekit.bundle.manifest import FileEntry
from edgekit.deltas.description import Delta, Offer
from edgekit.errors import ManifestError, NotFoundError, StoreError, UnavailableError, VerificationError
from edgekit.protocols import Store
from edgekit.registry.catalogue import Progress, Row, blob_name, hash_blob
from edgekit.registry.reader import RegistryReader


def verify(store: Store, root: bytes, *, progress: Progress = lambda done, total: None) -> list[str]:
    """Verify all metadata from `root` on and re-hash every blob that it names.

    Args:
        progress: Called with bytes hashed and bytes in all.

    Returns:
        One sentence a fault; empty when the registry is sound.

    Raises:
        UnavailableError: the store cannot be read, so nothing can be said.
    """
    with TemporaryDirectory() as cache:
        reader = RegistryReader(store, root, Path(cache))
        try:
            reader.refresh()
            rows = reader.list()
        except StoreError:
            raise
        except (VerificationError, UnavailableError) as error:
            return [f"metadata: {error}"]
        faults: dict[str, None] = {}
        blobs: list[tuple[Row, FileEntry]] = []
        for row in rows:
            try:
                blobs += [(row, entry) for entry in reader.load(row).manifest.files]
                blobs += [(row, entry) for offer in row.deltas for entry in _delta_blobs(store, row, offer, faults)]
            except (VerificationError, NotFoundError, ManifestError) as error:
                faults[f"{row.path}: {error}"] = None
    done, total = 0, sum(entry.size for _, entry in blobs)
    for row, entry in blobs:
        faults.update(dict.fromkeys(_blob_faults(store, row, entry)))
        done += entry.size
        progress(done, total)
    return list(faults)


def _delta_blobs(store: Store, row: Row, offer: Offer, faults: dict[str, None]) -> list[FileEntry]:
    """The payload of a delta, to be hashed like any other blob; none where its description is not what was signed."""
    label = f"delta from {offer.base[:12]}"
    try:
        data = store.get_range(blob_name(offer.description), 0, offer.length + 1)
    except NotFoundError:
        faults[f"{row.path}: {label}: blob {offer.description} is missing"] = None
        return []
    found = hashlib.sha256(data).hexdigest()
    if found != offer.description:
        faults[f"{row.path}: {label}: digest does not match: expected sha256 {offer.description}, found {found}"] = None
        return []
    return [msgspec.msgpack.decode(data, type=Delta).payload_entry(label)]


def _blob_faults(store: Store, row: Row, entry: FileEntry) -> list[str]:
    label = f"{row.path}: {entry.path}"
    try:
        found = hash_blob(store, entry.sha256, entry.size)
    except NotFoundError:
        return [f"{label}: blob {entry.sha256} is missing"]
    if found != entry.sha256:
        return [f"{label}: digest does not match: expected sha256 {entry.sha256}, found {found}"]
    return []
