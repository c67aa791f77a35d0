"""Chooses how much of a block one message may have, where the broker drops larger ones without a word. Pure rules."""

from __future__ import annotations

from edgekit.bundle.manifest import BLOCK_BYTES
from edgekit.mqtt.limits import MIN_PART_BYTES

STEP = 4  # from one size to the next
GROW_AFTER = 16  # messages of a size, before the next larger one is tried once


class PartSize:
    """The part size of one transfer: smaller where nothing arrives, larger again where that works.

    Attributes:
        bytes: Most bytes of a block in one message.
    """

    def __init__(self) -> None:
        self.bytes = BLOCK_BYTES
        self._ceiling = BLOCK_BYTES  # never tried beyond: a larger size has failed after this one worked
        self._arrived = 0  # messages that only this size allows
        self._grown = False  # True until the size that was tried has failed

    def arrived(self, size: int) -> None:
        """A message with `size` bytes of a block arrived."""
        if size <= self.bytes // STEP and self.bytes > MIN_PART_BYTES:
            return  # of an earlier, smaller size, or the end of a blob
        self._arrived += 1
        if self._arrived >= GROW_AFTER and self.bytes * STEP <= self._ceiling:
            self.bytes, self._arrived = self.bytes * STEP, 0
            self._grown = True

    def silent(self) -> None:
        """Nothing arrived in time."""
        if not self._arrived and self.bytes > MIN_PART_BYTES:
            if self._grown:
                self._ceiling = self.bytes // STEP
            self.bytes = max(MIN_PART_BYTES, self.bytes // STEP)
        self._arrived = 0
        self._grown = False
