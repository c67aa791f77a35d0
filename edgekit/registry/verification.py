"""Verify a whole registry: all metadata from the trusted root on, and the hash of every blob."""

from __future__ import annotations

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from edgekit.bundle.manifest import FileEntry
from edgekit.deltas.description import Delta, Offer
from edgekit.errors import ManifestError, NotFoundError, StoreError, UnavailableError, VerificationError
from edgekit.protocols import Store
from edgekit.registry.catalogue import CatalogueEntry, Progress, blob_name, hash_blob
from edgekit.registry.reader import RegistryReader


def verify(store: Store, root: bytes, *, progress: Progress = lambda done, total: None) -> list[str]:
    """Verify all metadata, starting from `root`, and re-hash every blob that it names.

    Args:
        store: The registry's store.
        root: Bytes of the trusted first root.
        progress: Called with bytes hashed and bytes in total.

    Returns:
        One sentence for each fault; empty if there is none.

    Raises:
        UnavailableError: the store cannot be read.
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
        blobs: list[tuple[CatalogueEntry, FileEntry]] = []
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


def _delta_blobs(store: Store, row: CatalogueEntry, offer: Offer, faults: dict[str, None]) -> list[FileEntry]:
    """The payload of a delta, to be hashed like other blobs; if its description is wrong, none and a fault is added."""
    label = f"delta from {offer.base[:12]}"
    try:
        data = store.get_range(blob_name(offer.description), 0, offer.length + 1)
    except NotFoundError:
        faults[f"{row.path}: {label}: blob {offer.description} is missing"] = None
        return []
    digest = hashlib.sha256(data).hexdigest()
    if digest != offer.description:
        faults[f"{row.path}: {label}: digest does not match: expected sha256 {offer.description}, found {digest}"] = (
            None
        )
        return []
    return [msgspec.msgpack.decode(data, type=Delta).payload_entry(label)]


def _blob_faults(store: Store, row: CatalogueEntry, entry: FileEntry) -> list[str]:
    label = f"{row.path}: {entry.path}"
    try:
        digest = hash_blob(store, entry.sha256, entry.size)
    except NotFoundError:
        return [f"{label}: blob {entry.sha256} is missing"]
    if digest != entry.sha256:
        return [f"{label}: digest does not match: expected sha256 {entry.sha256}, found {digest}"]
    return []
