"""The folder of a bundle: compares its files with the manifest."""

from __future__ import annotations

import hashlib
from pathlib import Path

from edgekit.bundle.manifest import BLOCK_BYTES, MANIFEST_NAME, MAX_MANIFEST_BYTES, FileEntry, Manifest, parse_manifest
from edgekit.errors import ManifestError


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
