"""Entries of the registry's catalogue, and the names of blobs and metadata in its store."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping

import msgspec
from tuf.api.metadata import TargetFile

from edgekit.bundle.evidence import Evidence, parse_evidence
from edgekit.bundle.manifest import SHA256, VERSION, Manifest, target_path
from edgekit.deltas.description import Offer, parse_offers
from edgekit.errors import NotFoundError, VerificationError
from edgekit.protocols import Store
from edgekit.trust.assignment import Entry
from edgekit.trust.state import METADATA

Progress = Callable[[int, int], None]

PART_BYTES = 4 * 1024 * 1024  # a multiple of BLOCK_BYTES
_METADATA_NAME = re.compile(r"(?:[1-9]\d{0,9}\.)?[a-z0-9][a-z0-9._-]{0,127}\.json")


class CatalogueEntry(msgspec.Struct, frozen=True):
    """One published bundle, from its entry in the catalogue.

    Attributes:
        name, target, version: Identity of the bundle.
        release: Rises by one with every publish of this model.
        path: TUF targets path of its manifest.
        length: Size of the manifest in bytes.
        sha256: The bundle digest, which is the sha256 of the manifest in hex.
        retired: True if it is chosen only when its version is named.
        channel: Channel that it was last promoted to; empty for none.
        downgrade: True if its publisher lets devices go back to it from a newer release.
        deltas: Deltas that make it from another file.
        evidence: Comparisons of it on other runtime versions.
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
    downgrade: bool = False
    deltas: tuple[Offer, ...] = ()
    evidence: tuple[Evidence, ...] = ()


_ENTRY = msgspec.msgpack.Decoder(CatalogueEntry)  # built at import, as in edgekit.mqtt.messages


class MadeDelta(msgspec.Struct, frozen=True):
    """A delta to publish.

    Attributes:
        offer: Its entry in the catalogue.
        description, payload: Bytes of its two blobs.
    """

    offer: Offer
    description: bytes
    payload: bytes


class Release(msgspec.Struct, frozen=True):
    """A published bundle with its verified manifest; the other attributes are those of `CatalogueEntry`."""

    manifest: Manifest
    path: str
    release: int
    length: int
    sha256: str
    downgrade: bool = False
    evidence: tuple[Evidence, ...] = ()

    @property
    def entry(self) -> Entry:
        """The bundle's entry in an assignment."""
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
    """Name in the store of the blob with this digest.

    Raises:
        NotFoundError: `digest` is not a sha256 in hex; it may come from the network.
    """
    if not SHA256.fullmatch(digest):
        raise NotFoundError(f"{digest[:80]!r} is not a sha256 in hex")
    return f"blobs/sha256/{digest[:2]}/{digest}"


def metadata_name(name: str) -> str:
    """Name in the store of the metadata file `name`, for example ``2.targets.json``.

    Raises:
        NotFoundError: `name` is not the name of a metadata file; it may come from the network.
    """
    if not _METADATA_NAME.fullmatch(name):
        raise NotFoundError(f"{name[:80]!r} is not the name of a metadata file")
    return METADATA + name


def parse_entry(path: str, target: TargetFile) -> CatalogueEntry:
    """Parse the catalogue's entry at `path`.

    Raises:
        VerificationError: a field is missing or wrong, or the entry's identity differs from its path.
    """
    custom = target.custom if isinstance(target.custom, Mapping) else {}
    try:
        row = msgspec.convert(
            {
                **custom,
                "path": path,
                "length": target.length,
                "sha256": target.hashes.get("sha256"),
                "deltas": parse_offers(custom),
                "evidence": parse_evidence(custom),
            },
            CatalogueEntry,
        )
    except msgspec.ValidationError as error:
        raise VerificationError(f"the catalogue's entry {path} is not valid: {error}") from error
    if path != target_path(row.name, row.target, row.version) or not VERSION.fullmatch(row.version):
        raise VerificationError(f"the catalogue's entry {path} is for {row.name} {row.version} on {row.target}")
    return row


def make_release(manifest: Manifest, row: CatalogueEntry) -> Release:
    """Join a catalogue entry and its manifest."""
    return Release(
        manifest=manifest,
        path=row.path,
        release=row.release,
        length=row.length,
        sha256=row.sha256,
        downgrade=row.downgrade,
        evidence=row.evidence,
    )


def hash_blob(store: Store, digest: str, size: int) -> str:
    """The sha256 of the blob that the store holds under the name `digest`. Raises as `Store.get`.

    Args:
        store: The store.
        digest: The blob's name, its sha256 in hex.
        size: The signed size in bytes; a longer blob gives another hash.
    """
    actual = hashlib.sha256()
    for part in blob_parts(store, digest, size):
        actual.update(part)
    return actual.hexdigest()


def blob_parts(store: Store, digest: str, size: int) -> Iterator[bytes]:
    """The blob in parts of at most PART_BYTES bytes; reads one byte above `size`, so that a longer blob is noticed."""
    name = blob_name(digest)
    for start in range(0, size + 1, PART_BYTES):
        yield store.get_range(name, start, min(PART_BYTES, size + 1 - start))
