"""The reading side of the registry: list bundles, resolve a version, download verified files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from securesystemslib.signer import Key

from edgekit.bundle.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, FileEntry, Manifest, parse_manifest, target_path
from edgekit.bundle.order import version_order
from edgekit.errors import DigestMismatchError, DiskError, NotFoundError, VerificationError
from edgekit.protocols import Store
from edgekit.registry.catalogue import (
    CatalogueEntry,
    Release,
    blob_name,
    blob_parts,
    make_release,
    metadata_name,
    parse_entry,
)
from edgekit.trust.client import TrustClient


class RegistryReader:
    """Reads a registry without any key; verifies everything that it returns, starting from `root`.

    Args:
        store: The registry's store.
        root: Bytes of the trusted first root.
        cache: Folder for verified metadata.
    """

    def __init__(self, store: Store, root: bytes, cache: Path) -> None:
        self._store = store
        self._client = TrustClient(cache, root, lambda name: store.get(metadata_name(name)))

    def refresh(self, now: float | None = None) -> None:
        """Load the current catalogue; arguments and errors as `TrustClient.refresh`."""
        self._client.refresh(now)

    def director_key(self) -> Key:
        """The director's public key in the last refresh; errors as `TrustClient.director_key`."""
        return self._client.director_key()

    def list(self, name: str | None = None) -> list[CatalogueEntry]:
        """All published bundles of one model or of all models, sorted by name, version and target.

        Raises:
            VerificationError, UnavailableError, DiskError: as `TrustClient.refresh`.
        """
        rows = [parse_entry(path, target) for path, target in self._client.catalogue(name).items()]
        return sorted(rows, key=lambda row: (row.name, version_order(row.version), row.target))

    def resolve(self, name: str, target: str, version: str | None = None, *, channel: str = "") -> Release:
        """The bundle of a model for a target.

        Args:
            name: Name of the model.
            target: Name of the target profile.
            version: Version X.Y.Z; None takes the newest that is not retired.
            channel: Without `version`, take only bundles promoted to this channel; empty takes any.

        Raises:
            NotFoundError: there is no such bundle; the advice lists the published ones.
            VerificationError: its manifest in the store is not the signed one.
        """
        rows = self.list(name)
        if not rows:
            raise NotFoundError(f"the registry has no model {name!r}", advice="See: edgekit registry list")
        fitting = [
            row
            for row in rows
            if row.target == target
            and (row.version == version if version else not row.retired and channel in ("", row.channel))
        ]
        if not fitting:
            published = ", ".join(
                f"{row.version} for {row.target}{' (retired)' if row.retired else ''}"
                f"{f' (channel {row.channel})' if channel and row.channel else ''}"
                for row in rows
            )
            wanted = (
                f"version {version}" if version else f"current version{f' in channel {channel!r}' if channel else ''}"
            )
            raise NotFoundError(f"model {name!r} has no {wanted} for {target!r}", advice=f"Published: {published}.")
        return self.load(fitting[-1])

    def load(self, row: CatalogueEntry) -> Release:
        """Load and verify the manifest of a catalogue entry.

        Raises:
            NotFoundError, DigestMismatchError, ManifestError: the manifest in the store is not the signed one.
        """
        data = self._store.get_range(blob_name(row.sha256), 0, min(row.length, MAX_MANIFEST_BYTES) + 1)
        digest = hashlib.sha256(data).hexdigest()
        if digest != row.sha256:
            raise DigestMismatchError(f"manifest of {row.path}", expected=row.sha256, found=digest)
        manifest = parse_manifest(data)
        if target_path(manifest.name, manifest.target, manifest.version) != row.path:
            raise VerificationError(f"{row.path} holds the manifest of {manifest.name} {manifest.version}")
        return make_release(manifest, row)

    def download(self, manifest: Manifest, folder: Path) -> None:
        """Write the bundle into `folder`; each file appears under its name only when it is complete and verified.

        Raises:
            DigestMismatchError, NotFoundError, StoreError: a blob was changed, is missing or cannot be read.
            DiskError: the folder cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for entry in manifest.files:
                part = folder / f"{entry.path}.part"
                try:
                    self._fetch(entry, part)
                    part.replace(folder / entry.path)
                finally:
                    part.unlink(missing_ok=True)
            (folder / MANIFEST_NAME).write_bytes(manifest.canonical_bytes())
        except OSError as error:
            raise DiskError(f"bundle cannot be written to {folder}: {error}") from error

    def read(self, entry: FileEntry) -> bytes:
        """Read and verify one file of a bundle. Raises as `download`."""
        data = b"".join(blob_parts(self._store, entry.sha256, entry.size))
        digest = hashlib.sha256(data).hexdigest()
        if digest != entry.sha256:
            raise DigestMismatchError(entry.path, expected=entry.sha256, found=digest)
        return data

    def _fetch(self, entry: FileEntry, path: Path) -> None:
        digest = hashlib.sha256()
        with path.open("wb") as file:
            for part in blob_parts(self._store, entry.sha256, entry.size):
                digest.update(part)
                file.write(part)
        if digest.hexdigest() != entry.sha256:
            raise DigestMismatchError(entry.path, expected=entry.sha256, found=digest.hexdigest())
