"""Rules for requesting the blocks of a blob: block map, request window and time-out.

Sizes come from the signed manifest, so a block map has exactly as many bits as the file has blocks.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec.structs import replace

from edgekit.bundle.manifest import BLOCK_BYTES
from edgekit.errors import DataError
from edgekit.mqtt.messages import Range

MIN_WINDOW, INITIAL_WINDOW, MAX_WINDOW = 1, 4, 16


def block_count(size: int) -> int:
    """Number of blocks in a blob of `size` bytes."""
    return -(-size // BLOCK_BYTES)


class BlockMap:
    """A set of the present and verified blocks of a blob of `size` bytes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.count = block_count(size)
        self._bits = bytearray(-(-self.count // 8))
        self._present = 0

    @classmethod
    def from_bytes(cls, size: int, data: bytes) -> BlockMap:
        """Read the result of `to_bytes` for a blob of `size` bytes.

        Raises:
            DataError: The length does not fit the size, or bits beyond the last block are set.
        """
        blocks = cls(size)
        if len(data) != len(blocks._bits):
            raise DataError(f"block map has {len(data)} bytes, expected {len(blocks._bits)} for {blocks.count} blocks")
        spare = len(data) * 8 - blocks.count
        if spare and data[-1] >> (8 - spare):
            raise DataError(f"block map has bits set beyond its {blocks.count} blocks")
        blocks._bits[:] = data
        blocks._present = sum(byte.bit_count() for byte in data)
        return blocks

    def to_bytes(self) -> bytes:
        """The bitmap: bit i % 8 of byte i // 8 is block i."""
        return bytes(self._bits)

    def __contains__(self, index: int) -> bool:
        return 0 <= index < self.count and bool(self._bits[index // 8] >> (index % 8) & 1)

    def mark(self, index: int) -> None:
        """Record that a block is present.

        Raises:
            IndexError: The blob has no such block.
        """
        self._check(index)
        if index not in self:
            self._bits[index // 8] |= 1 << (index % 8)
            self._present += 1

    def clear(self, index: int) -> None:
        """Record that a block is missing. Raises as `mark`."""
        self._check(index)
        if index in self:
            self._bits[index // 8] &= ~(1 << (index % 8))
            self._present -= 1

    @property
    def present(self) -> int:
        """Number of present blocks."""
        return self._present

    @property
    def done(self) -> bool:
        """True if no block is missing."""
        return self._present == self.count

    def missing(self) -> list[int]:
        """Indexes of the missing blocks, in order."""
        return [index for index in range(self.count) if index not in self]

    def span(self, index: int) -> tuple[int, int]:
        """Offset and length of a block, in bytes. Raises as `mark`."""
        self._check(index)
        offset = index * BLOCK_BYTES
        return offset, min(BLOCK_BYTES, self.size - offset)

    def _check(self, index: int) -> None:
        if not 0 <= index < self.count:
            raise IndexError(f"there is no block {index} in a blob with {self.count} blocks")


def to_ranges(indexes: Iterable[int]) -> tuple[Range, ...]:
    """The shortest sorted list of ranges that contains exactly `indexes`."""
    ranges: list[Range] = []
    for index in sorted(set(indexes)):
        if ranges and ranges[-1].last == index - 1:
            ranges[-1] = Range(ranges[-1].first, index)
        else:
            ranges.append(Range(index, index))
    return tuple(ranges)


class Window(msgspec.Struct, frozen=True):
    """The limit of blocks that are requested and not yet received.

    It grows by one block after each full window of arrivals, and is halved after a loss.

    Attributes:
        size: The limit in blocks, MIN_WINDOW to MAX_WINDOW.
        arrived: Number of blocks that arrived since the window last grew.
    """

    size: int = INITIAL_WINDOW
    arrived: int = 0

    def after_arrival(self) -> Window:
        """The window after a block arrived in time."""
        if self.arrived + 1 < self.size:
            return Window(self.size, self.arrived + 1)
        return Window(min(MAX_WINDOW, self.size + 1))

    def after_loss(self) -> Window:
        """The window after a request timed out."""
        return Window(max(MIN_WINDOW, self.size // 2))

    def credit(self, pending: int) -> int:
        """Number of blocks to request now, if `pending` blocks are requested and not yet received.

        It is 0 until half of the window is free, so that there are few requests with many blocks each.
        """
        free = self.size - pending
        return free if pending == 0 or free * 2 >= self.size else 0


class RoundTrip(msgspec.Struct, frozen=True):
    """Round-trip time of requests, smoothed as in RFC 6298, and the time-out that follows from it.

    Attributes:
        smoothed: Smoothed round-trip time in seconds; None before the first observation.
        variation: Smoothed deviation from it, in seconds.
        doubled: How many times the time-out was doubled since the last observation.
        initial_seconds: Time-out before the first observation.
        min_seconds: Smallest time-out.
        max_seconds: Largest time-out.
    """

    smoothed: float | None = None
    variation: float = 0.0
    doubled: int = 0
    initial_seconds: float = 3.0
    min_seconds: float = 1.0
    max_seconds: float = 30.0

    def observed(self, seconds: float) -> RoundTrip:
        """The estimate after an answer that took `seconds`."""
        if self.smoothed is None:
            return replace(self, smoothed=seconds, variation=seconds / 2, doubled=0)
        variation = 0.75 * self.variation + 0.25 * abs(self.smoothed - seconds)
        return replace(self, smoothed=0.875 * self.smoothed + 0.125 * seconds, variation=variation, doubled=0)

    def lost(self) -> RoundTrip:
        """The estimate after a time-out."""
        return replace(self, doubled=min(self.doubled + 1, 5))

    @property
    def overtaken_seconds(self) -> float:
        """Age in seconds at which a requested block counts as lost, if a block that was requested later has arrived."""
        return self.min_seconds if self.smoothed is None else 1.5 * self.smoothed + 4 * self.variation + 0.01

    @property
    def timeout_seconds(self) -> float:
        """Time-out of the next request, in seconds."""
        base = self.initial_seconds if self.smoothed is None else self.smoothed + 4 * self.variation
        return min(self.max_seconds, max(self.min_seconds, base) * 2.0**self.doubled)
