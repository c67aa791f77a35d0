"""Description of a delta: how a file is made from a base file segment by segment, and the check of a description.

A delta has a description and a payload. The description has byte ranges and knows nothing about tensors. The payload is
a blob like any other, and is transferred in blocks. Segment i makes the i-th SEGMENT_BYTES of the result, so that a
device makes only the segments that it misses. It verifies every block that it makes against the manifest, as it does
with blocks from the network.

Pure: no I/O.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from edgekit.bundle.manifest import BLOCK_BYTES, MAX_FILE_BYTES, SHA256, FileEntry
from edgekit.errors import DataError
from edgekit.transfer.blocks import block_count

DELTA_FORMAT = 1
SEGMENT_BLOCKS = 16
SEGMENT_BYTES = SEGMENT_BLOCKS * BLOCK_BYTES
MAX_DICTIONARY_BYTES = 2 * SEGMENT_BYTES
MAX_DESCRIPTION_BYTES = 2 * 1024**2
MAX_SPANS = 65_536
MAX_OFFERS = 64
DIGEST_BYTES = 32

# Forms: how a segment is made from its base bytes (the bytes of its spans, joined) and the parts of its payload.
COPY = 0  # the segment is its base bytes; no part
SUM = 1  # the part is added to the base bytes, byte by byte, modulo 256
SPARSE = 2  # the first part has one bit for each byte, set if it changes (lowest bit first); the second has the addends
WIDE = 3  # differences of little-endian 32-bit words in zigzag code; four parts, one for each byte, the lowest first
DICTIONARY = 4  # the part is the segment, compressed with the base bytes as dictionary
GAPS = (
    5  # as SPARSE, but the first part has the number of unchanged bytes before each change (MAX_GAP: and more follow)
)
PART_COUNTS = {COPY: 0, SUM: 1, SPARSE: 2, WIDE: 4, DICTIONARY: 1, GAPS: 2}  # number of parts by form
MAX_GAP = 255

STORED, ZSTD, BZ2, LZMA = range(4)

TARGET_FIELD = "deltas"


class Span(msgspec.Struct, frozen=True, array_like=True):
    """`length` bytes of the base from `offset`; if `offset` is -1, `length` zeros."""

    offset: int
    length: int


class Part(msgspec.Struct, frozen=True, array_like=True):
    """One compressed stream of the payload: its codec (STORED, ZSTD, BZ2, LZMA) and its length in bytes."""

    codec: int
    length: int


class Segment(msgspec.Struct, frozen=True, array_like=True):
    """How one segment of the result is made: its form, its spans of the base, and its parts of the payload.

    The parts of all segments follow each other in the payload, in order.
    """

    form: int
    spans: tuple[Span, ...]
    parts: tuple[Part, ...]

    @property
    def payload_bytes(self) -> int:
        """Length of its parts in the payload, in bytes."""
        return sum(part.length for part in self.parts)


class Delta(msgspec.Struct, frozen=True):
    """The description of one delta, stored as MessagePack; the catalogue signs its digest.

    Attributes:
        base, result: sha256 (hex) of the base file and of the file that the delta makes.
        base_size, result_size: Sizes of both files in bytes.
        payload: sha256 (hex) of the payload.
        payload_size: Size of the payload in bytes.
        blocks: sha256 of each BLOCK_BYTES of the payload, DIGEST_BYTES each, joined.
        segments: Segments in the order of the result.
        format: Format version of this description.
    """

    base: str
    base_size: int
    result: str
    result_size: int
    payload: str
    payload_size: int
    blocks: bytes
    segments: tuple[Segment, ...]
    format: int = DELTA_FORMAT

    def to_bytes(self) -> bytes:
        """Encode as MessagePack, for `parse_delta`."""
        return msgspec.msgpack.encode(self)

    def payload_entry(self, path: str) -> FileEntry:
        """The payload as a FileEntry called `path`, so that it can be fetched in blocks like a file of a bundle."""
        at = range(0, len(self.blocks), DIGEST_BYTES)
        blocks = tuple(self.blocks[start : start + DIGEST_BYTES].hex() for start in at)
        return FileEntry(path=path, role="delta", size=self.payload_size, sha256=self.payload, blocks=blocks)

    def offsets(self) -> list[int]:
        """Offset of each segment's parts in the payload, followed by the size of the payload."""
        return [0, *itertools.accumulate(segment.payload_bytes for segment in self.segments)]

    def segment_bytes(self, index: int) -> int:
        """Number of bytes of the result that segment `index` makes."""
        return min(SEGMENT_BYTES, self.result_size - index * SEGMENT_BYTES)


_DELTA = msgspec.msgpack.Decoder(Delta)  # built at import, as in edgekit.mqtt.messages


class Offer(msgspec.Struct, frozen=True):
    """The entry of one delta in the signed catalogue.

    Attributes:
        base, result: sha256 (hex) of the base file and of the file that the delta makes.
        description: sha256 (hex) of the delta's description, which is a blob of the store.
        length: Size of the description in bytes.
        size: Size of the payload in bytes.
    """

    base: str
    result: str
    description: str
    length: int
    size: int


_OFFER = msgspec.msgpack.Decoder(Offer)  # `convert` has no decoder, but needs the same type to be prepared


def parse_offers(custom: Mapping[str, Any]) -> tuple[Offer, ...]:
    """The offers in a target's signed custom fields.

    Offers that cannot be used are skipped, because a bundle can always be fetched without a delta.
    """
    found = custom.get(TARGET_FIELD)
    offers = []
    for item in found[:MAX_OFFERS] if isinstance(found, list) else ():
        try:
            offer = msgspec.convert(item, Offer)
        except msgspec.ValidationError:
            continue  # written by a newer edgekit
        digests = (offer.base, offer.result, offer.description)
        sound = all(map(SHA256.fullmatch, digests)) and 0 < offer.length <= MAX_DESCRIPTION_BYTES
        if sound and 0 <= offer.size <= MAX_FILE_BYTES:
            offers.append(offer)
    return tuple(offers)


def parse_delta(data: bytes, offer: Offer, *, base_size: int, result_size: int) -> Delta:
    """Parse and check a description.

    A checked description can be applied with a few segments in memory, whatever it declares, because all sizes follow
    from the signed sizes of the two files.

    Args:
        data: The description.
        offer: Its entry in the signed catalogue.
        base_size: Size of the base file in bytes, from its manifest.
        result_size: Size of the file that the delta makes, from its manifest.

    Raises:
        DataError: The description is not valid. The message names all faults.
    """
    if len(data) > MAX_DESCRIPTION_BYTES:
        raise DataError(f"delta description has {len(data)} bytes, the limit is {MAX_DESCRIPTION_BYTES}")
    try:
        delta = _DELTA.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise DataError(f"delta description cannot be parsed: {error}") from error
    faults = _head_faults(delta, offer, base_size, result_size)
    if not faults:
        faults = _segment_faults(delta)
    if faults:
        raise DataError("delta is not valid: " + "; ".join(faults))
    return delta


def _head_faults(delta: Delta, offer: Offer, base_size: int, result_size: int) -> list[str]:
    expected = {
        "format": DELTA_FORMAT,
        "base": offer.base,
        "base_size": base_size,
        "result": offer.result,
        "result_size": result_size,
        "payload_size": offer.size,
    }
    faults = [
        f"{name} is {str(getattr(delta, name))[:80]}, expected {value}"
        for name, value in expected.items()
        if getattr(delta, name) != value
    ]
    if not SHA256.fullmatch(delta.payload):
        faults.append("the digest of the payload is not 64 hex digits")
    if len(delta.blocks) != block_count(offer.size) * DIGEST_BYTES:
        expected_bytes = block_count(offer.size) * DIGEST_BYTES
        faults.append(
            f"{len(delta.blocks)} bytes of block digests for a payload of {offer.size} bytes, expected {expected_bytes}"
        )
    segments = -(-result_size // SEGMENT_BYTES)
    if len(delta.segments) != segments:
        faults.append(f"{len(delta.segments)} segments for {result_size} bytes, expected {segments}")
    if sum(len(segment.spans) for segment in delta.segments) > MAX_SPANS:
        faults.append(f"more than {MAX_SPANS} spans")
    return faults


def _segment_faults(delta: Delta) -> list[str]:
    for index, segment in enumerate(delta.segments):
        fault = _segment_fault(segment, delta.segment_bytes(index), delta.base_size)
        if fault:
            return [f"segment {index}: {fault}"]
    total = sum(segment.payload_bytes for segment in delta.segments)
    if total != delta.payload_size:
        return [f"its segments need {total} bytes of payload, the payload has {delta.payload_size}"]
    return []


def _segment_fault(segment: Segment, size: int, base_size: int) -> str:
    if len(segment.parts) != PART_COUNTS.get(segment.form, -1):
        expected = PART_COUNTS.get(segment.form, "a known form")
        return f"form {segment.form} has {len(segment.parts)} parts, expected {expected}"
    for span in segment.spans:
        inside = 0 <= span.offset <= base_size - span.length or span.offset == -1
        if span.length <= 0 or not inside:
            return f"a span is {span.length} bytes from {span.offset}, outside the base of {base_size} bytes"
    taken = sum(span.length for span in segment.spans)
    if segment.form == DICTIONARY:
        if taken > MAX_DICTIONARY_BYTES or segment.parts[0].codec != ZSTD:
            return (
                f"a dictionary has {taken} bytes and codec {segment.parts[0].codec}, expected at most "
                f"{MAX_DICTIONARY_BYTES} bytes and codec {ZSTD}"
            )
    elif taken != size:
        return f"its spans have {taken} bytes of the base, expected {size}"
    for part in segment.parts:
        # Data that compression does not shrink is stored, so no part is larger than the segment.
        if not 0 <= part.length <= size or part.codec not in (STORED, ZSTD, BZ2, LZMA):
            return (
                f"a part has {part.length} bytes and codec {part.codec}, expected at most {size} bytes and codec 0 to 3"
            )
    return ""


def segments_of(missing: Iterable[int]) -> list[int]:
    """Indexes of the segments that make the blocks `missing` of the result."""
    return sorted({index // SEGMENT_BLOCKS for index in missing})


def payload_blocks(delta: Delta, segments: Sequence[int]) -> list[int]:
    """Indexes of the payload's blocks that `segments` need."""
    offsets, blocks = delta.offsets(), set[int]()
    for index in segments:
        start, end = offsets[index], offsets[index + 1]
        if end > start:
            blocks.update(range(start // BLOCK_BYTES, (end - 1) // BLOCK_BYTES + 1))
    return sorted(blocks)
