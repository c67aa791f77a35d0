"""The registry as its users see it: publish bundles, find them, fetch them verified, re-hash everything."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
from tuf.api.metadata import TargetFile

from edgekit.deltas import TARGET_FIELD, Offer, parse_offers
from edgekit.errors import (
    DigestMismatchError,
    DiskError,
    ManifestError,
    NotFoundError,
    VerificationError,
)
from edgekit.manifest import (
    BLOCK_BYTES,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    SHA256,
    VERSION,
    FileEntry,
    Manifest,
    parse_manifest,
    target_path,
)
from edgekit.protocols import Store
from edgekit.trust.assignment import Entry
from edgekit.trust.client import TrustClient
from edgekit.trust.repository import Repository
from edgekit.trust.state import METADATA

Progress = Callable[[int, int], None]

PART_BYTES = 4 * 1024 * 1024  # a multiple of BLOCK_BYTES
_METADATA_NAME = re.compile(r"(?:[1-9]\d{0,9}\.)?[a-z0-9][a-z0-9._-]{0,127}\.json")


class Row(msgspec.Struct, frozen=True):
    """One published bundle, as the catalogue names it.

    Attributes:
        name, target, version: Its identity.
        release: Rises by one with every publish of this model.
        path: TUF targets path of its manifest.
        length, sha256: Bytes of the manifest; the bundle digest.
        retired: It is not chosen any more unless its version is named.
        channel: What `promote` called it last; may be empty.
        deltas: From which files a device that holds one of them can make it with fewer bytes.
    """

    name: str
    target: str
    version: str
    release: int
    path: str
    length: int
    sha256: str
    retired: bool = False
    channel: str = ""
    deltas: tuple[Offer, ...] = ()


class MadeDelta(msgspec.Struct, frozen=True):
    """A delta that is to be published: what the catalogue will say, and its two blobs."""

    offer: Offer
    description: bytes
    payload: bytes


class Release(msgspec.Struct, frozen=True):
    """A published bundle with its verified manifest; the rest as in `Row`."""

    manifest: Manifest
    path: str
    release: int
    length: int
    sha256: str

    @property
    def entry(self) -> Entry:
        """What an assignment says about it."""
        return Entry(
            path=self.path,
            length=self.length,
            sha256=self.sha256,
            name=self.manifest.name,
            target=self.manifest.target,
            version=self.manifest.version,
            release=self.release,
        )


def blob_name(digest: str) -> str:
    """Where the blob with this sha256 (hex) lies in the store.

    Raises:
        NotFoundError: `digest` is no sha256; digests come from the network too.
    """
    if not SHA256.fullmatch(digest):
        raise NotFoundError(f"{digest[:80]!r} is not a sha256 in hex")
    return f"blobs/sha256/{digest[:2]}/{digest}"


def metadata_name(name: str) -> str:
    """Where the metadata file `name`, for example ``2.targets.json``, lies in the store.

    Raises:
        NotFoundError: `name` is not the name of a metadata file; names come from the network too.
    """
    if not _METADATA_NAME.fullmatch(name):
        raise NotFoundError(f"{name[:80]!r} is not the name of a metadata file")
    return METADATA + name


def check_bundle(folder: Path) -> Manifest:
    """Read a bundle's manifest and hold every file to it.

    Raises:
        ManifestError: no manifest, an invalid one, or a missing, added or changed file; names all of them.
    """
    path = folder / MANIFEST_NAME
    try:
        with path.open("rb") as file:
            manifest = parse_manifest(file.read(MAX_MANIFEST_BYTES + 1))
    except OSError as error:
        raise ManifestError(
            f"{folder} is no bundle: {MANIFEST_NAME} cannot be read: {error.strerror}",
            advice="Name the folder that edgekit convert wrote.",
        ) from error
    faults = [fault for entry in manifest.files for fault in _file_faults(folder, entry)]
    known = {MANIFEST_NAME, *(entry.path for entry in manifest.files)}
    faults += [f"{path.name} is not in the manifest" for path in sorted(folder.iterdir()) if path.name not in known]
    if faults:
        raise ManifestError(f"bundle {folder} is not whole: " + "; ".join(faults), advice="Convert the model again.")
    return manifest


def publish(
    store: Store,
    repository: Repository,
    bundle: Path,
    *,
    deltas: Sequence[MadeDelta] = (),
    progress: Progress = lambda done, total: None,
) -> Release:
    """Publish a bundle: blobs first, then the catalogue, in which it appears at once or not at all.

    Publishing the same content again changes nothing, but mends blobs that are missing or damaged in the store, and
    adds `deltas` to those that are published. The first publish of a model makes its publisher, for which the offline
    targets key is needed. `progress` is called with bytes done and bytes in all.

    Raises:
        ManifestError: the bundle is not whole, or its version is published with other content.
        NotFoundError: there is no registry, or a key is not here.
        StoreError: the store failed; the catalogue is as it was.
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
    return _release(manifest, _row(target.path, target))


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
        rows = [_row(path, target) for path, target in self._client.catalogue(name).items()]
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
        return _release(manifest, row)

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
        data = b"".join(_parts(self._store, entry.sha256, entry.size))
        found = hashlib.sha256(data).hexdigest()
        if found != entry.sha256:
            raise DigestMismatchError(entry.path, expected=entry.sha256, found=found)
        return data

    def _fetch(self, entry: FileEntry, path: Path) -> None:
        digest = hashlib.sha256()
        with path.open("wb") as file:
            for part in _parts(self._store, entry.sha256, entry.size):
                digest.update(part)
                file.write(part)
        if digest.hexdigest() != entry.sha256:
            raise DigestMismatchError(entry.path, expected=entry.sha256, found=digest.hexdigest())


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
    return [] if tuple(blocks) == entry.blocks else [f"{entry.path}: block digests are not those of the file"]


def _upload(store: Store, digest: str, size: int, data: bytes | Path) -> None:
    name = blob_name(digest)
    if store.exists(name) and hash_blob(store, digest, size) == digest:
        return
    store.put(name, data)


def hash_blob(store: Store, digest: str, size: int) -> str:
    """The sha256 of what the store holds under `digest`, of which `size` bytes were signed. Raises as `Store.get`."""
    found = hashlib.sha256()
    for part in _parts(store, digest, size):
        found.update(part)
    return found.hexdigest()


def _parts(store: Store, digest: str, size: int) -> Iterator[bytes]:
    """The blob in parts; a longer blob than signed yields one byte too many, so that its hash differs."""
    name = blob_name(digest)
    for start in range(0, size + 1, PART_BYTES):
        yield store.get_range(name, start, min(PART_BYTES, size + 1 - start))


def _row(path: str, target: TargetFile) -> Row:
    custom = target.custom if isinstance(target.custom, Mapping) else {}
    try:
        row = msgspec.convert(
            {
                **custom,
                "path": path,
                "length": target.length,
                "sha256": target.hashes.get("sha256"),
                "deltas": parse_offers(custom),
            },
            Row,
        )
    except msgspec.ValidationError as error:
        raise VerificationError(f"the catalogue's entry {path} lacks what edgekit needs: {error}") from error
    if path != target_path(row.name, row.target, row.version) or not VERSION.fullmatch(row.version):
        raise VerificationError(f"the catalogue's entry {path} calls itself {row.name} {row.version} for {row.target}")
    return row


def _release(manifest: Manifest, row: Row) -> Release:
    return Release(manifest=manifest, path=row.path, release=row.release, length=row.length, sha256=row.sha256)


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
