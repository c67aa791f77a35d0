"""What the registry's catalogue says about bundles, and where blobs and metadata lie in its store."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping

import msgspec
from tuf.api.metadata import TargetFile

from edgekit.bundle.manifest import SHA256, VERSION, Manifest, target_path
from edgekit.deltas.description import Offer, parse_offers
from edgekit.errors import NotFoundError, VerificationError
from edgekit.protocols import Store
from edgekit.trust.assignment import Entry
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


def row_of(path: str, target: TargetFile) -> Row:
    """What the catalogue's entry at `path` says.

    Raises:
        VerificationError: it lacks what edgekit needs, or calls itself otherwise than its path.
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
            },
            Row,
        )
    except msgspec.ValidationError as error:
        raise VerificationError(f"the catalogue's entry {path} lacks what edgekit needs: {error}") from error
    if path != target_path(row.name, row.target, row.version) or not VERSION.fullmatch(row.version):
        raise VerificationError(f"the catalogue's entry {path} calls itself {row.name} {row.version} for {row.target}")
    return row


def release_of(manifest: Manifest, row: Row) -> Release:
    """A row with its manifest."""
    return Release(manifest=manifest, path=row.path, release=row.release, length=row.length, sha256=row.sha256)


def hash_blob(store: Store, digest: str, size: int) -> str:
    """The sha256 of what the store holds under `digest`, of which `size` bytes were signed. Raises as `Store.get`."""
    found = hashlib.sha256()
    for part in blob_parts(store, digest, size):
        found.update(part)
    return found.hexdigest()


def blob_parts(store: Store, digest: str, size: int) -> Iterator[bytes]:
    """The blob in parts of PART_BYTES at most; a longer one than signed yields a byte too many, and so another hash."""
    name = blob_name(digest)
    for start in range(0, size + 1, PART_BYTES):
        yield store.get_range(name, start, min(PART_BYTES, size + 1 - start))
