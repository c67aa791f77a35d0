"""The result of a comparison beside the active bundle, stored with the download until the deployment ends."""

from __future__ import annotations

import logging
import secrets

import msgspec

from device_agents.shadow import MAX_COUNT, ShadowCounts
from device_agents.threads import in_thread
from edgekit.errors import DiskError
from edgekit.protocols import Disk

log = logging.getLogger(__name__)

FILE_NAME = "shadow.json"
_COUNTS = msgspec.json.Decoder(ShadowCounts)


class StoredCounts:
    """A small file. If it cannot be read or written, the comparison begins anew after a restart.

    Args:
        disk: The device's folder.
        folder: Where the deployment's download is.
    """

    def __init__(self, disk: Disk, folder: str) -> None:
        self._disk, self._file = disk, f"{folder}/{FILE_NAME}"

    def read(self) -> ShadowCounts:
        """The stored result; that of a new comparison where there is none."""
        try:
            return _COUNTS.decode(self._disk.read(self._file))
        except FileNotFoundError:
            return _new()
        except (DiskError, OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            log.warning("%s cannot be read, the comparison begins anew: %s", self._file, error)
            return _new()

    async def note(self, counts: ShadowCounts) -> None:
        """Store a result."""
        try:
            await in_thread(self._disk.write, self._file, msgspec.json.encode(counts))
        except DiskError as error:
            log.warning("%s cannot be written: %s", self._file, error)


def _new() -> ShadowCounts:
    return ShadowCounts(run=1 + secrets.randbelow(MAX_COUNT))
