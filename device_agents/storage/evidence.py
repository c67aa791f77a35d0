"""The evidence of bundles on this device, in a small file: it is needed after a start, before there is a network."""

from __future__ import annotations

import logging

import msgspec

from edgekit.bundle.evidence import Evidence
from edgekit.errors import DiskError
from edgekit.protocols import Disk

log = logging.getLogger(__name__)

FILE_NAME = "evidence.json"
KEPT_BUNDLES = 3  # of a model: the active one, the one before it, and the one that comes

_EVIDENCE = msgspec.json.Decoder(dict[str, dict[str, tuple[Evidence, ...]]])  # built at import, as in mqtt.messages


class EvidenceFile:
    """The signed evidence of each bundle, as the catalogue last had it.

    Args:
        disk: The device's folder.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def get(self, model: str, digest: str) -> tuple[Evidence, ...]:
        """The evidence of a bundle; empty where there is none, or the file cannot be read."""
        return self._read().get(model, {}).get(digest, ())

    def put(self, model: str, digest: str, evidence: tuple[Evidence, ...]) -> bool:
        """Keep the evidence of a bundle. True if it is other than before. Raises DiskError."""
        known = self._read()
        before = known.get(model, {})
        if before.get(digest, ()) == evidence:
            return False
        others = [(name, value) for name, value in before.items() if name != digest][-KEPT_BUNDLES + 1 :]
        known[model] = {**dict(others), digest: evidence}
        self._disk.write(FILE_NAME, msgspec.json.encode(known))
        return True

    def forget(self, model: str) -> None:
        """Remove the evidence of a model's bundles. Raises DiskError."""
        known = self._read()
        if known.pop(model, None) is not None:
            self._disk.write(FILE_NAME, msgspec.json.encode(known))

    def _read(self) -> dict[str, dict[str, tuple[Evidence, ...]]]:
        try:
            return _EVIDENCE.decode(self._disk.read(FILE_NAME)) if self._disk.exists(FILE_NAME) else {}
        except (DiskError, OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            log.warning("%s cannot be read, so bundles have no evidence until the next metadata: %s", FILE_NAME, error)
            return {}
