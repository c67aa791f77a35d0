"""The way of a sealed sample over MQTT: its parts, and how a controller joins them. Pure.

The first part carries the head, which the device has signed: the controller knows size and digest of the whole before
it accepts more, and answers how many parts it has, so that a device goes on where it was interrupted.
"""

from __future__ import annotations

import hashlib
import math
import re

from edgekit.errors import DataError
from edgekit.mqtt.sample_messages import SampleHead, SamplePart

PART_BYTES = 60 * 1024  # with the head, the message stays below 64 KiB
MAX_SAMPLE_BYTES = 4 * 1024**2
MAX_HEAD_BYTES = 2048
SAMPLE_ID = re.compile(r"[0-9a-z]{16,40}")


def parts_of(size: int) -> int:
    """Number of parts of a sealed sample of `size` bytes."""
    return max(1, math.ceil(size / PART_BYTES))


def part(sample: str, sealed: bytes, index: int, head: bytes) -> SamplePart:
    """One part of a sealed sample; `head` is sent with the first only."""
    data = sealed[index * PART_BYTES : (index + 1) * PART_BYTES]
    return SamplePart(sample, index, parts_of(len(sealed)), data, head if index == 0 else b"")


def check_part(part: SamplePart) -> None:
    """Check a part by itself.

    Raises:
        DataError: id, numbers or sizes are not possible.
    """
    if not SAMPLE_ID.fullmatch(part.id):
        raise DataError(f"sample id {part.id[:64]!r} is not of the form {SAMPLE_ID.pattern}")
    if not 1 <= part.total <= parts_of(MAX_SAMPLE_BYTES) or not 0 <= part.index < part.total:
        raise DataError(
            f"part {part.index} of {part.total} of sample {part.id}: expected 1 to {parts_of(MAX_SAMPLE_BYTES)} parts"
        )
    whole = part.index < part.total - 1
    if not 0 < len(part.data) <= PART_BYTES or (whole and len(part.data) != PART_BYTES):
        raise DataError(
            f"part {part.index} of {part.total} of sample {part.id} has {len(part.data)} bytes, "
            f"expected {'' if whole else 'at most '}{PART_BYTES}"
        )
    if bool(part.head) != (part.index == 0) or len(part.head) > MAX_HEAD_BYTES:
        raise DataError(
            f"part {part.index} of sample {part.id} has a head of {len(part.head)} bytes; the first part has one of at "
            f"most {MAX_HEAD_BYTES}, the others none"
        )


def check_head(head: SampleHead, first: SamplePart) -> None:
    """Compare the signed head with the part that brought it.

    Raises:
        DataError: they contradict each other.
    """
    if head.id != first.id or not 0 < head.size <= MAX_SAMPLE_BYTES or parts_of(head.size) != first.total:
        raise DataError(
            f"the head of sample {first.id} is for sample {head.id[:64]!r} of {head.size} bytes, which does not fit "
            f"{first.total} parts and at most {MAX_SAMPLE_BYTES} bytes"
        )


class Assembly:
    """The parts of one sample that have come so far, in their order.

    Args:
        head: The verified head.
        signed: The head as it was signed.
        first: The part that brought it.
        now: Monotonic seconds.

    Attributes:
        at: Monotonic seconds of the last part.
    """

    def __init__(self, head: SampleHead, signed: bytes, first: SamplePart, now: float) -> None:
        self.head, self.signed, self.at = head, signed, now
        self._total, self._parts = first.total, [first.data]

    @property
    def received(self) -> int:
        """Number of parts, from the first on without a gap."""
        return len(self._parts)

    @property
    def size(self) -> int:
        """Bytes held."""
        return sum(map(len, self._parts))

    @property
    def complete(self) -> bool:
        """True where all parts have come."""
        return self.received == self._total

    def take(self, part: SamplePart, now: float) -> bool:
        """Add a part. False for one that came before, or that follows a lost one: the device repeats what is missing.

        Raises:
            DataError: it contradicts the parts before.
        """
        if part.total != self._total:
            raise DataError(f"sample {part.id} has {part.total} parts now, and {self._total} before")
        if part.index < self.received:
            if part.data != self._parts[part.index]:
                raise DataError(f"part {part.index} of sample {part.id} came again with other bytes")
            return False
        if part.index > self.received:
            return False
        self._parts.append(part.data)
        self.at = now
        return True

    def whole(self) -> bytes:
        """The sealed sample.

        Raises:
            DataError: it is not what the head describes.
        """
        data = b"".join(self._parts)
        if len(data) != self.head.size or hashlib.sha256(data).hexdigest() != self.head.sha256:
            raise DataError(
                f"sample {self.head.id} has {len(data)} bytes that are not those that the device signed "
                f"({self.head.size} bytes)"
            )
        return data
