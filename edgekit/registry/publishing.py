"""Publish bundles: check a bundle, upload its blobs, then sign the catalogue."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgekit.bundle.manifest import BLOCK_BYTES, MANIFEST_NAME, MAX_MANIFEST_BYTES, FileEntry, Manifest, parse_manifest
from edgekit.deltas.description import TARGET_FIELD, parse_offers
from edgekit.errors import ManifestError
from edgekit.protocols import Store
from edgekit.registry.catalogue import MadeDelta, Progress, Release, blob_name, hash_blob, make_release, parse_entry
from edgekit.trust.repository import Repository


def publish(
    store: Store,
    repository: Repository,
    bundle: Path,
    *,
    deltas: Sequence[MadeDelta] = (),
    progress: Progress = lambda done, total: None,
) -> Release:
    """Publish a bundle: upload its blobs, then add it to the catalogue in one step.

    Publishing the same content again uploads blobs that are missing or damaged in the store, adds `deltas`, and changes
    nothing else. The first publish of a model makes its publisher key and needs the offline targets key.

    Args:
        store: The registry's store.
        repository: Signs the catalogue.
        bundle: Folder of the bundle.
        deltas: Deltas to publish with it.
        progress: Called with bytes done and bytes in total.

    Raises:
        ManifestError: the bundle is not complete, or its version is published with other content.
        NotFoundError: there is no registry, or a key is not here.
        StoreError: the store failed; the catalogue is unchanged.
    """
    manifest = check_bundle(bundle)
    data = manifest.canonical_bytes()
    known = repository.check(data)  # before the first byte is uploaded
    offers = {offer.description: offer for offer in parse_offers(known.custom if known else {})}
    done = 0
    for entry in manifest.files:
        _upload(store, entry.sha256, entry.size, bundle / entry.path)
        done += entry.size
        progress(done, manifest.total_bytes)
    _upload(store, manifest.digest, len(data), data)
    for delta in deltas:
        _upload(store, delta.offer.description, len(delta.description), delta.description)
        _upload(store, hashlib.sha256(delta.payload).hexdigest(), len(delta.payload), delta.payload)
        offers[delta.offer.description] = delta.offer
    custom = {TARGET_FIELD: msgspec.to_builtins(list(offers.values()))} if deltas else None
    target = repository.publish(data, custom)
    return make_release(manifest, parse_entry(target.path, target))


def check_bundle(folder: Path) -> Manifest:
    """Read a bundle's manifest and check every file against it.

    Raises:
        ManifestError: there is no valid manifest, or files are missing, unlisted or changed; lists all of them.
    """
    path = folder / MANIFEST_NAME
    try:
        with path.open("rb") as file:
            manifest = parse_manifest(file.read(MAX_MANIFEST_BYTES + 1))
    except OSError as error:
        raise ManifestError(
            f"{folder} is not a bundle: {MANIFEST_NAME} cannot be read: {error.strerror}",
            advice="Name a folder that edgekit convert wrote.",
        ) from error
    faults = [fault for entry in manifest.files for fault in _file_faults(folder, entry)]
    known = {MANIFEST_NAME, *(entry.path for entry in manifest.files)}
    faults += [f"{path.name} is not in the manifest" for path in sorted(folder.iterdir()) if path.name not in known]
    if faults:
        raise ManifestError(f"bundle {folder} is not complete: " + "; ".join(faults), advice="Convert the model again.")
    return manifest


def _file_faults(folder: Path, entry: FileEntry) -> list[str]:
    path = folder / entry.path
    if path.is_symlink() or not path.is_file():
        return [f"{entry.path} is missing"]
    if path.stat().st_size != entry.size:
        return [f"{entry.path} has {path.stat().st_size} bytes, expected {entry.size}"]
    whole, blocks = hashlib.sha256(), []
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            whole.update(block)
            blocks.append(hashlib.sha256(block).hexdigest())
    if whole.hexdigest() != entry.sha256:
        return [f"{entry.path} has sha256 {whole.hexdigest()}, expected {entry.sha256}"]
    return [] if tuple(blocks) == entry.blocks else [f"{entry.path}: block digests do not match the file"]


def _upload(store: Store, digest: str, size: int, data: bytes | Path) -> None:
    name = blob_name(digest)
    if store.exists(name) and hash_blob(store, digest, size) == digest:
        return
    store.put(name, data)
