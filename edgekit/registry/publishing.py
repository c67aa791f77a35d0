"""Publish bundles: check a bundle, upload its blobs, then sign the catalogue."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgekit.bundle_folder import check_bundle
from edgekit.deltas.description import TARGET_FIELD, parse_offers
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


def _upload(store: Store, digest: str, size: int, data: bytes | Path) -> None:
    name = blob_name(digest)
    if store.exists(name) and hash_blob(store, digest, size) == digest:
        return
    store.put(name, data)
