"""The registry as those see it who read: list bundles, resolve a version, fetch verified files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from edgekit.bundle.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, FileEntry, Manifest, parse_manifest, target_path
from edgekit.errors import DigestMismatchError, DiskError, NotFoundError, VerificationError
from edgekit.protocols import Store
from edgekit.registry.catalogue import Release, Row, blob_name, blob_parts, metadata_name, release_of, row_of
from edgekit.trust.client import TrustClient


class RegistryReader:
    """A registry for those who hold no key: everything that it returns was verified from `root` on.

    Args:
        store: Where the registry lies.
        root: Bytes of the trusted first root.
        cache: Folder for verified metadata.
    """

    def __init__(self, store: Store, root: bytes, cache: Path) -> None:
        self._store = store
        self._client = TrustClient(cache, root, lambda name: store.get(metadata_name(name)))

    def refresh(self, now: float | None = None) -> None:
        """Take notice of what was published since; see `TrustClient.refresh`."""
        self._client.refresh(now)

    def list(self, name: str | None = None) -> list[Row]:
        """Every published bundle, of one model or of all, by name, version and target.

        Raises:
            VerificationError: and the other errors of `TrustClient.refresh`.
        """
        rows = [row_of(path, target) for path, target in self._client.catalogue(name).items()]
        return sorted(rows, key=lambda row: (row.name, _order(row.version), row.target))

    def resolve(self, name: str, target: str, version: str | None = None, *, channel: str = "") -> Release:
        """The bundle of a model for a target.

        Args:
            version: X.Y.Z; None takes the newest that is not retired.
            channel: With no version: only what was promoted to it; empty takes any.

        Raises:
            NotFoundError: there is none; says what there is.
            VerificationError: its manifest in the store is not the one that was signed.
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
            there = ", ".join(f"{row.version} for {row.target}{' (retired)' if row.retired else ''}" for row in rows)
            wanted = (
                f"version {version}" if version else f"current version{f' in channel {channel!r}' if channel else ''}"
            )
            raise NotFoundError(f"model {name!r} has no {wanted} for {target!r}", advice=f"There is: {there}.")
        return self.load(fitting[-1])

    def load(self, row: Row) -> Release:
        """The bundle of a row, with its manifest.

        Raises:
            NotFoundError, DigestMismatchError, ManifestError: the manifest in the store is not what was signed.
        """
        data = self._store.get_range(blob_name(row.sha256), 0, min(row.length, MAX_MANIFEST_BYTES) + 1)
        found = hashlib.sha256(data).hexdigest()
        if found != row.sha256:
            raise DigestMismatchError(f"manifest of {row.path}", expected=row.sha256, found=found)
        manifest = parse_manifest(data)
        if target_path(manifest.name, manifest.target, manifest.version) != row.path:
            raise VerificationError(f"{row.path} holds the manifest of {manifest.name} {manifest.version}")
        return release_of(manifest, row)

    def download(self, manifest: Manifest, folder: Path) -> None:
        """Write the bundle into `folder`; a file appears under its name only when it is whole and verified.

        Raises:
            DigestMismatchError, NotFoundError, StoreError: a blob is changed, missing, or cannot be read.
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
        """One file of a bundle, in memory. Raises as `download`."""
        data = b"".join(blob_parts(self._store, entry.sha256, entry.size))
        found = hashlib.sha256(data).hexdigest()
        if found != entry.sha256:
            raise DigestMismatchError(entry.path, expected=entry.sha256, found=found)
        return data

    def _fetch(self, entry: FileEntry, path: Path) -> None:
        digest = hashlib.sha256()
        with path.open("wb") as file:
            for part in blob_parts(self._store, entry.sha256, entry.size):
                digest.update(part)
                file.write(part)
        if digest.hexdigest() != entry.sha256:
            raise DigestMismatchError(entry.path, expected=entry.sha256, found=digest.hexdigest())


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
