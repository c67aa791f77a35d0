"""Measured memory of bundles, stored beside the journal."""

from __future__ import annotations

import logging

import msgspec

from edgekit.errors import DiskError
from edgekit.protocols import Disk

log = logging.getLogger(__name__)

FILE_NAME = "footprints.json"
MAX_BUNDLES = 64  # the oldest measurements are dropped


class DiskFootprints:
    """Measured memory by bundle digest, in one small file. If it cannot be read or written, memory is measured again.

    Args:
        disk: The device's folder.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._bytes: dict[str, int] | None = None

    def get(self, digest: str) -> int | None:
        """Memory of a bundle in bytes; None when it was not measured on this device."""
        return self._read().get(digest)

    def put(self, digest: str, size: int) -> None:
        """Store a measurement in bytes."""
        sizes = self._read()
        if sizes.get(digest) == size:
            return
        sizes.pop(digest, None)
        sizes[digest] = size
        for oldest in list(sizes)[:-MAX_BUNDLES]:
            del sizes[oldest]
        try:
            self._disk.write(FILE_NAME, msgspec.json.encode(sizes))
        except DiskError as error:
            log.warning("the measured memory of %s cannot be stored: %s", digest[:12], error)

    def _read(self) -> dict[str, int]:
        if self._bytes is None:
            self._bytes = {}
            try:
                if self._disk.exists(FILE_NAME):
                    self._bytes = msgspec.json.decode(self._disk.read(FILE_NAME), type=dict[str, int])
            except (DiskError, OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
                log.warning("%s cannot be read, memory is measured again: %s", FILE_NAME, error)
        return self._bytes
