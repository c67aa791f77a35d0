"""Reads the reference of an active bundle, for the test of drift and for the gate of inputs out of distribution."""

from __future__ import annotations

import hashlib
from pathlib import Path

from edgekit.bundle.manifest import Manifest
from edgekit.drift.reference import Reference, parse_reference, reference_entry
from edgekit.errors import ManifestError
from edgekit.sealing.opening import read_file


def read_reference(manifest: Manifest, folder: Path) -> Reference | None:
    """The reference of a bundle; None where it has none.

    Raises:
        EdgekitError, OSError: it cannot be read, or was changed.
    """
    entry = reference_entry(manifest)
    if entry is None:
        return None
    data = read_file(manifest, folder, entry)
    if manifest.sealed is None and hashlib.sha256(data).hexdigest() != entry.sha256:
        raise ManifestError(f"{entry.path} was changed")
    return parse_reference(data)
