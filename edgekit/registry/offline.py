"""Update files: the metadata, assignments and blobs of some devices in one file, for devices without a network.

The file is a ZIP archive without compression:

    index.json              {"format": 1, "fleet": ..., "created": ..., "devices": [...]}; a hint, nothing relies on it
    metadata/<name>         files of the TUF repository
    desired/<device>.json   the signed assignment of a device
    blobs/<digest>          manifests and files of bundles

A device verifies all of it as if it came over the network.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from tuf.api.metadata import Metadata

from edgekit.bundle.manifest import Manifest
from edgekit.errors import DiskError
from edgekit.protocols import Store
from edgekit.registry.catalogue import CatalogueEntry, Progress, blob_parts, metadata_name
from edgekit.registry.reader import RegistryReader
from edgekit.trust.assignment import Entry, check_agrees
from edgekit.trust.client import TrustClient
from edgekit.update_file import BLOBS, DESIRED, FORMAT, INDEX, METADATA, Index


class Order(msgspec.Struct, frozen=True):
    """The signed assignment for one device.

    Attributes:
        device: Name of the device.
        payload: Its signed assignment.
        entries: The entries of that assignment.
        expires: Expiry of the assignment, wall clock seconds.
    """

    device: str
    payload: bytes
    entries: tuple[Entry, ...]
    expires: float


class Exported(msgspec.Struct, frozen=True):
    """A written update file.

    Attributes:
        path: The file.
        bytes: Its size.
        devices: Names of the devices.
        bundles: ``model version target`` of each bundle in it.
        expires: From then on devices refuse it, wall clock seconds: the earliest expiry of its metadata.
    """

    path: Path
    bytes: int
    devices: list[str]
    bundles: list[str]
    expires: float


def export_update(
    path: Path,
    store: Store,
    root: bytes,
    fleet: str,
    orders: Iterable[Order],
    *,
    now: float,
    progress: Progress = lambda done, total: None,
) -> Exported:
    """Write an update file; it appears under its name only when it is complete.

    Args:
        path: The file; it is replaced.
        store: The registry's store.
        root: Bytes of the trusted first root.
        fleet: Name of the fleet.
        orders: The devices' assignments.
        now: Wall clock seconds.
        progress: Called with bytes written and bytes in total.

    Raises:
        VerificationError: the registry's metadata is not trusted, has expired, or disagrees with an assignment.
        NotFoundError, DigestMismatchError: the registry misses a bundle.
        DiskError: the file cannot be written, or is a device or a folder.
    """
    if path.exists() and not path.is_file():
        raise DiskError(f"{path} is no regular file", advice="Name another one with -o; it would be replaced.")
    orders = list(orders)
    fetched: dict[str, bytes] = {}

    def fetch(name: str) -> bytes:
        fetched[name] = store.get(metadata_name(name))
        return fetched[name]

    with TemporaryDirectory(prefix="edgekit-export-") as folder:
        client = TrustClient(Path(folder) / "tuf", root, fetch)
        client.refresh(now)
        entries = {entry.sha256: entry for order in orders for entry in order.entries}
        for entry in entries.values():
            check_agrees(entry, client.find_target(entry.path))
        reader = RegistryReader(store, root, Path(folder) / "reader")
        manifests = [reader.load(_row(entry)).manifest for entry in entries.values()]
    expires = min([metadata_expiry(fetched), *(order.expires for order in orders)])
    index = Index(FORMAT, fleet, now, [order.device for order in orders])
    try:
        _write(path, store, index, fetched, orders, manifests, progress)
        size = path.stat().st_size
    except OSError as error:
        raise DiskError(f"the update file {path} cannot be written: {error.strerror or error}") from error
    bundles = sorted({f"{one.name} {one.version} {one.target}" for one in manifests})
    return Exported(path, size, index.devices, bundles, expires)


def metadata_expiry(files: Mapping[str, bytes]) -> float:
    """The earliest expiry of the metadata in force, wall clock seconds. An older root only leads to a newer one."""
    roots = sorted((name for name in files if name.endswith(".root.json")), key=lambda name: int(name.split(".")[0]))
    found = [data for name, data in files.items() if name not in roots[:-1]]
    return min(Metadata.from_bytes(data).signed.expires.timestamp() for data in found)


def _row(entry: Entry) -> CatalogueEntry:
    return CatalogueEntry(
        name=entry.name,
        target=entry.target,
        version=entry.version,
        release=entry.release,
        path=entry.path,
        length=entry.length,
        sha256=entry.sha256,
    )


def _write(
    path: Path,
    store: Store,
    index: Index,
    metadata: Mapping[str, bytes],
    orders: list[Order],
    manifests: list[Manifest],
    progress: Progress,
) -> None:
    files = {entry.sha256: entry.size for manifest in manifests for entry in manifest.files}
    part, done, total = path.with_name(path.name + ".part"), 0, sum(files.values())
    try:
        with part.open("wb") as raw:
            with zipfile.ZipFile(raw, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
                archive.writestr(INDEX, msgspec.json.encode(index))
                for name, data in sorted(metadata.items()):
                    archive.writestr(METADATA + name, data)
                for order in orders:
                    archive.writestr(f"{DESIRED}{order.device}.json", order.payload)
                for manifest in manifests:
                    archive.writestr(BLOBS + manifest.digest, manifest.canonical_bytes())
                for digest, size in files.items():
                    with archive.open(BLOBS + digest, "w", force_zip64=size >= 2**31) as member:
                        for data in blob_parts(store, digest, size):
                            member.write(data)
                            done += len(data)
                            progress(done, total)
            raw.flush()
            os.fsync(raw.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
