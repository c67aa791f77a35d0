"""What models were measured to hold in memory, kept beside the journal."""

from __future__ import annotations

import logging

import msgspec

from edgekit.errors import DiskError
from edgekit.protocols import Disk

log = logging.getLogger(__name__)

NAME = "footprints.json"
MOST = 64  # bundles; the oldest are forgotten


class DiskFootprints:
    """Footprints in one small file. What cannot be read or written is measured again.

    Args:
        disk: The device's folder.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._bytes: dict[str, int] | None = None

    def get(self, digest: str) -> int | None:
        """Bytes that a bundle holds; None where it was never measured here."""
        return self._read().get(digest)

    def put(self, digest: str, size: int) -> None:
        """Keep a measurement."""
        kept = self._read()
        if kept.get(digest) == size:
            return
        kept.pop(digest, None)
        kept[digest] = size
        for oldest in list(kept)[:-MOST]:
            del kept[oldest]
        try:
            self._disk.write(NAME, msgspec.json.encode(kept))
        except DiskError as error:
            log.warning("what %s holds in memory is not kept: %s", digest[:12], error)

    def _read(self) -> dict[str, int]:
        if self._bytes is None:
            self._bytes = {}
            try:
                if self._disk.exists(NAME):
                    self._bytes = msgspec.json.decode(self._disk.read(NAME), type=dict[str, int])
            except (DiskError, OSError, msgspec.MsgspecError) as error:
                log.warning("%s cannot be read and begins anew: %s", NAME, error)
        return self._bytes
