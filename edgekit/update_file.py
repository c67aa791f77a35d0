"""Update files: names inside the archive, and reading one that nobody has verified yet."""

from __future__ import annotations

import logging
import os
import re
import struct
import zipfile
from pathlib import Path

import msgspec

from edgekit.bundle.manifest import BLOCK_BYTES
from edgekit.errors import DataError, DiskError, NotFoundError

log = logging.getLogger(__name__)

FORMAT = 1
SUFFIX = ".edgekit"
INDEX, METADATA, DESIRED, BLOBS = "index.json", "metadata/", "desired/", "blobs/"
MAX_ENTRIES = 200_000
MAX_SMALL_BYTES = 8 * 1024**2  # of one metadata file or assignment
_NAME = re.compile(r"index\.json|(?:metadata|desired)/[a-z0-9][a-z0-9._-]{0,160}|blobs/[0-9a-f]{64}")
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")


class Index(msgspec.Struct, frozen=True):
    """The file ``index.json``.

    Attributes:
        format: Format number of the update file.
        fleet: Name of the fleet.
        created: Wall clock seconds of the machine that wrote it.
        devices: Names of the devices that it has assignments for.
    """

    format: int
    fleet: str
    created: float
    devices: list[str]


class UpdateFile:
    """An update file; use it as a context manager. What it holds is verified by its readers.

    Args:
        path: The file.

    Attributes:
        index: Its index.

    Raises:
        NotFoundError: there is no such file.
        DataError: it is no update file, or one of a newer edgekit.
        DiskError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb")
        except FileNotFoundError as error:
            raise NotFoundError(f"there is no update file {path}") from error
        except OSError as error:
            raise DiskError(f"the update file {path} cannot be read: {error.strerror or error}") from error
        try:
            with zipfile.ZipFile(self._file) as archive:
                members = archive.infolist()
            self._members = {one.filename: one for one in members}
            self._check(members)
            self.index = msgspec.json.decode(self._small(INDEX), type=Index)
        except (zipfile.BadZipFile, msgspec.MsgspecError, UnicodeDecodeError, NotImplementedError, OSError) as error:
            self._file.close()
            raise DataError(f"{path} is no update file: {error}", advice="Copy it again.") from error
        except DataError:
            self._file.close()
            raise
        if self.index.format != FORMAT:
            self._file.close()
            raise DataError(
                f"{path} has format {self.index.format}, this edgekit reads {FORMAT}", advice="Update edgekit."
            )

    def __enter__(self) -> UpdateFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def metadata(self, name: str) -> bytes:
        """A file of the TUF repository. Raises NotFoundError if it is not there."""
        return self._small(METADATA + name)

    def desired(self, device: str) -> bytes:
        """The signed assignment of a device.

        Raises:
            NotFoundError: the file has none for it.
        """
        try:
            return self._small(f"{DESIRED}{device}.json")
        except NotFoundError as error:
            names = ", ".join(self.index.devices[:10]) + (" and others" if len(self.index.devices) > 10 else "")
            raise NotFoundError(
                f"{self.path} has no assignment for {device!r}; it has some for {names or 'no device'}",
                advice=f"Write one: edgekit registry export --for {device} -o FILE",
            ) from error

    def blob_bytes(self, digest: str) -> int:
        """Size of a blob. Raises NotFoundError if it is not there."""
        return self._member(BLOBS + digest).file_size

    def block(self, digest: str, index: int) -> bytes:
        """One block of 64 KiB of a blob, shorter at its end. Raises NotFoundError and DiskError."""
        member = self._member(BLOBS + digest)
        start = index * BLOCK_BYTES
        return self._read(member, start, min(BLOCK_BYTES, max(0, member.file_size - start)))

    def _check(self, members: list[zipfile.ZipInfo]) -> None:
        if len(members) > MAX_ENTRIES:
            raise DataError(f"{self.path} has {len(members)} entries, expected at most {MAX_ENTRIES}")
        size = os.fstat(self._file.fileno()).st_size
        for one in members:
            plain = one.compress_type == zipfile.ZIP_STORED and not one.flag_bits & 1
            if not _NAME.fullmatch(one.filename) or not plain or one.compress_size != one.file_size:
                raise DataError(f"{self.path} is no update file: it has the entry {one.filename[:80]!r}")
            if one.header_offset + one.file_size > size:  # reading it would go on for ever
                raise DataError(
                    f"{self.path} is not whole: {one.filename} ends behind its {size} bytes", advice="Copy it again."
                )

    def _member(self, name: str) -> zipfile.ZipInfo:
        if name not in self._members:
            raise NotFoundError(f"{self.path} has no {name}")
        return self._members[name]

    def _small(self, name: str) -> bytes:
        member = self._member(name)
        if member.file_size > MAX_SMALL_BYTES:
            raise DataError(f"{name} in {self.path} has {member.file_size} bytes, expected at most {MAX_SMALL_BYTES}")
        return self._read(member, 0, member.file_size)

    def _read(self, member: zipfile.ZipInfo, start: int, length: int) -> bytes:
        """Bytes of an entry, from its place in the file: ZipFile would read everything before them."""
        try:
            self._file.seek(member.header_offset)
            header = self._file.read(_LOCAL_HEADER.size)
            if len(header) != _LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
                raise DataError(f"{member.filename} in {self.path} is damaged", advice="Copy the file again.")
            fields = _LOCAL_HEADER.unpack(header)
            self._file.seek(member.header_offset + _LOCAL_HEADER.size + fields[9] + fields[10] + start)
            return self._file.read(length)
        except OSError as error:
            raise DiskError(f"the update file {self.path} cannot be read: {error.strerror or error}") from error


def find_update_file(path: Path, device: str) -> Path:
    """The file itself; of a folder, the update file with the highest assignment for a device.

    Files that cannot be read are logged.

    Raises:
        NotFoundError: there is none.
        DataError: there is none, and files that cannot be read are there.
    """
    if not path.is_dir():
        return path
    best: tuple[int, str] | None = None
    faults: list[str] = []
    for one in sorted(path.glob(f"*{SUFFIX}")):
        try:
            with UpdateFile(one) as file:
                version = _claimed_version(file.desired(device))
        except NotFoundError:
            continue
        except (DataError, DiskError) as error:
            log.warning("%s is left out: %s", one.name, error)
            faults.append(str(error))
            continue
        best = max(best or (0, ""), (version, str(one)))
    if best is None and faults:
        raise DataError(
            f"no *{SUFFIX} file in {path} can be used for {device!r}: {'; '.join(faults[:3])}", advice="Copy it again."
        )
    if best is None:
        raise NotFoundError(
            f"no *{SUFFIX} file in {path} has an assignment for {device!r}",
            advice=f"Write one: edgekit registry export --for {device} -o FILE{SUFFIX}",
        )
    return Path(best[1])


class _Signed(msgspec.Struct):
    version: int = 0


class _Document(msgspec.Struct):
    signed: _Signed


def _claimed_version(payload: bytes) -> int:
    """The version that an assignment claims; it is verified when it is imported."""
    try:
        return msgspec.json.decode(payload, type=_Document).signed.version
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return 0
