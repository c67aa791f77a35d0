"""Puts blocks together that come in parts, because a broker accepts no whole one. Pure rules.

The block is verified by its digest afterwards, as any other.
"""

from __future__ import annotations

from typing import NamedTuple

from edgekit.bundle.manifest import BLOCK_BYTES
from edgekit.errors import DataError
from edgekit.transfer.blocks import MAX_WINDOW

MAX_PARTIAL = 2 * MAX_WINDOW  # blocks that are not whole; the oldest is forgotten first


class Added(NamedTuple):
    """A part was added: whether it has bytes that were missing, and the block, if it is whole now."""

    is_new: bool
    block: bytes | None


class PartialBlocks:
    """Blocks that are not whole yet. Parts may come in any order, again, and in other sizes than before."""

    def __init__(self) -> None:
        # By index: the block, and a 1 for each of its bytes that has arrived.
        self._blocks: dict[int, tuple[bytearray, bytearray]] = {}

    def add(self, index: int, offset: int, size: int, data: bytes) -> Added:
        """Add a part of a block.

        Args:
            index: Index of the block.
            offset: Where the part begins in the block, in bytes.
            size: Length of the block, in bytes.
            data: The part.

        Raises:
            DataError: the part does not lie within a block.
        """
        if not 0 < size <= BLOCK_BYTES or not 0 <= offset < offset + len(data) <= size:
            raise DataError(f"bytes {offset} to {offset + len(data)} are no part of a block of {size} bytes")
        block, there = self._blocks.get(index, (bytearray(), bytearray()))
        if len(block) != size:
            block, there = self._blocks[index] = bytearray(size), bytearray(size)
        is_new = b"\0" in there[offset : offset + len(data)]
        block[offset : offset + len(data)] = data
        there[offset : offset + len(data)] = b"\1" * len(data)
        if not there.count(0):
            del self._blocks[index]
            return Added(is_new, bytes(block))
        if len(self._blocks) > MAX_PARTIAL:
            del self._blocks[next(iter(self._blocks))]
        return Added(is_new, None)
