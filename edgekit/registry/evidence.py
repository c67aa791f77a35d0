"""Signs the outcome of a recheck into the catalogue, and keeps its report."""

from __future__ import annotations

import hashlib

from edgekit.bundle.evidence import Evidence, with_evidence
from edgekit.bundle.manifest import Manifest
from edgekit.protocols import Store
from edgekit.registry.catalogue import CatalogueEntry, blob_name, parse_entry
from edgekit.trust.repository import Repository


def sign_evidence(
    store: Store,
    repository: Repository,
    manifest: Manifest,
    report: bytes,
    *,
    package: str,
    version: str,
    arch: str,
    outcome: str,
    against: str,
    samples: int = 0,
) -> CatalogueEntry:
    """Add one outcome to a published bundle; an earlier one of the same version and architecture is replaced.

    Args:
        store: The registry's store; the report becomes one of its blobs.
        repository: Signs the catalogue.
        manifest: The bundle.
        report: Bytes of the report.
        package, version, arch, outcome, against, samples: As `Evidence`.

    Raises:
        NotFoundError: the bundle is not published, or a key is not here.
        ManifestError: its version is published with other content.
        StoreError: the store failed; the catalogue is unchanged.
    """
    digest = hashlib.sha256(report).hexdigest()
    entry = Evidence(package, version, arch, outcome, against, digest, samples)
    store.put(blob_name(digest), report)
    target = repository.add_fields(manifest.canonical_bytes(), lambda custom: with_evidence(custom, entry))
    return parse_entry(target.path, target)
