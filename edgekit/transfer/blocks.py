"""Block maps: which blocks of a blob are here, which to ask for next, how many at once, and how long to wait.

Sizes come from the signed manifest, so a map has exactly as many bits as the file has blocks.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from edgekit.bundle.manifest import BLOCK_BYTES
from edgekit.errors import DataError
from edgekit.mqtt.messages import Range

MIN_WINDOW, FIRST_WINDOW, MAX_WINDOW = 1, 4, 16


def block_count(size: int) -> int:
    """Blocks of a blob of `size` bytes."""
    return -(-size // BLOCK_BYTES)


class BlockMap:
    """Which blocks of a blob of `size` bytes are present and verified."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.count = block_count(size)
        self._bits = bytearray(-(-self.count // 8))
        self._present = 0

    @classmethod
    def from_bytes(cls, size: int, data: bytes) -> BlockMap:
        """Read what `to_bytes` gave for a blob of the same size.

        Raises:
            DataError: the length is another, or bits beyond the last block are set.
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
        """Note that a block is present.

        Raises:
            IndexError: the blob has no such block.
        """
        self._check(index)
        if index not in self:
            self._bits[index // 8] |= 1 << (index % 8)
            self._present += 1

    def clear(self, index: int) -> None:
        """Note that a block is missing. Raises as `mark`."""
        self._check(index)
        if index in self:
            self._bits[index // 8] &= ~(1 << (index % 8))
            self._present -= 1

    @property
    def present(self) -> int:
        """Number of blocks present."""
        return self._present

    @property
    def done(self) -> bool:
        """True when no block is missing."""
        return self._present == self.count

    def missing(self) -> list[int]:
        """Indexes of the missing blocks, in order."""
        return [index for index in range(self.count) if index not in self]

    def span(self, index: int) -> tuple[int, int]:
        """Offset and length in bytes of a block. Raises as `mark`."""
        self._check(index)
        offset = index * BLOCK_BYTES
        return offset, min(BLOCK_BYTES, self.size - offset)

    def _check(self, index: int) -> None:
        if not 0 <= index < self.count:
            raise IndexError(f"block {index} of a blob with {self.count} blocks")


def to_ranges(indexes: Iterable[int]) -> tuple[Range, ...]:
    """The shortest list of ranges that names exactly `indexes`, sorted."""
    ranges: list[Range] = []
    for index in sorted(set(indexes)):
        if ranges and ranges[-1].last == index - 1:
            ranges[-1] = Range(ranges[-1].first, index)
        else:
            ranges.append(Range(index, index))
    return tuple(ranges)


class Window(msgspec.Struct, frozen=True):
    """How many blocks may be under way at once: one more after each full window, half after a loss.

    Attributes:
        size: Blocks, MIN_WINDOW to MAX_WINDOW.
        arrived: Blocks since it last grew.
    """

    size: int = FIRST_WINDOW
    arrived: int = 0

    def after_arrival(self) -> Window:
        """The window after one block arrived in time."""
        if self.arrived + 1 < self.size:
            return Window(self.size, self.arrived + 1)
        return Window(min(MAX_WINDOW, self.size + 1))

    def after_loss(self) -> Window:
        """The window after an attempt timed out."""
        return Window(max(MIN_WINDOW, self.size // 2))

    def credit(self, under_way: int) -> int:
        """Blocks to ask for now: none until half of the window is free, so that requests stay few."""
        free = self.size - under_way
        return free if under_way == 0 or free * 2 >= self.size else 0


class RoundTrip(msgspec.Struct, frozen=True):
    """How long an answer takes, smoothed as in RFC 6298, and so how long to wait for one.

    Attributes:
        smoothed, variation: Seconds; None before the first observation.
        doubled: How often the timeout was doubled since the last observation.
    """

    smoothed: float | None = None
    variation: float = 0.0
    doubled: int = 0

    FIRST_SECONDS = 3.0
    LEAST_SECONDS = 1.0
    MOST_SECONDS = 30.0

    def observed(self, seconds: float) -> RoundTrip:
        """After an answer that took `seconds`."""
        if self.smoothed is None:
            return RoundTrip(seconds, seconds / 2)
        variation = 0.75 * self.variation + 0.25 * abs(self.smoothed - seconds)
        return RoundTrip(0.875 * self.smoothed + 0.125 * seconds, variation)

    def lost(self) -> RoundTrip:
        """After no answer came in time."""
        return RoundTrip(self.smoothed, self.variation, min(self.doubled + 1, 5))

    @property
    def overtaken_seconds(self) -> float:
        """How long after it was asked for a block is lost, once one that was asked for later has come."""
        return self.LEAST_SECONDS if self.smoothed is None else 1.5 * self.smoothed + 4 * self.variation + 0.01

    @property
    def timeout_seconds(self) -> float:
        """How long to wait for the next answer."""
        base = self.FIRST_SECONDS if self.smoothed is None else self.smoothed + 4 * self.variation
        return min(self.MOST_SECONDS, max(self.LEAST_SECONDS, base) * 2.0**self.doubled)
