"""Deltas: how a file is made from another one that the device holds, segment by segment, and what makes one unsound.

A delta is a description, which knows byte ranges and nothing of tensors, and a payload, which is a blob like any other
and is moved block by block. Segment i makes the i-th SEGMENT_BYTES of the result, so a device makes only those that it
misses, and every block that comes out is held to the manifest like one from the network.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from edgekit.bundle.manifest import BLOCK_BYTES, MAX_FILE_BYTES, SHA256, FileEntry
from edgekit.errors import DataError
from edgekit.transfer.blocks import block_count

FORMAT = 1
SEGMENT_BLOCKS = 16
SEGMENT_BYTES = SEGMENT_BLOCKS * BLOCK_BYTES
MAX_DICTIONARY_BYTES = 2 * SEGMENT_BYTES
MAX_DESCRIPTION_BYTES = 2 * 1024**2
MAX_SPANS = 65_536
MAX_OFFERS = 64
DIGEST_BYTES = 32

# What is done with the bytes that a segment takes from the base; the parts of its payload by form.
COPY = 0  # they are the segment; no part
SUM = 1  # each byte of the part is added, modulo 256
SPARSE = 2  # one bit a byte says which ones change (little end first), the second part holds what is added to those
WIDE = 3  # as little-endian 32-bit words: zigzag differences, their bytes in four parts, the lowest first
DICTIONARY = 4  # the part is the segment, compressed with them as a dictionary
GAPS = 5  # as SPARSE, but the first part says how many bytes stay before each that changes; GAP_MOST: so many, and more
PARTS = {COPY: 0, SUM: 1, SPARSE: 2, WIDE: 4, DICTIONARY: 1, GAPS: 2}
GAP_MOST = 255

STORED, ZSTD, BZ2, LZMA = range(4)

TARGET_FIELD = "deltas"


class Span(msgspec.Struct, frozen=True, array_like=True):
    """`length` bytes of the base from `offset`; that many zeros where `offset` is -1."""

    offset: int
    length: int


class Part(msgspec.Struct, frozen=True, array_like=True):
    """One compressed stream of the payload: how (STORED, ZSTD, BZ2, LZMA), and how many bytes it takes."""

    codec: int
    length: int


class Segment(msgspec.Struct, frozen=True, array_like=True):
    """How one segment is made: the form, what it takes from the base, and its parts, which follow the former's."""

    form: int
    spans: tuple[Span, ...]
    parts: tuple[Part, ...]

    @property
    def payload_bytes(self) -> int:
        """Bytes of its parts."""
        return sum(part.length for part in self.parts)


class Delta(msgspec.Struct, frozen=True):
    """The description of one delta; MessagePack, its digest is signed with the catalogue.

    Attributes:
        base, result: sha256 (hex) of the file that it starts from, and of the one that it makes.
        base_size, result_size: Their bytes.
        payload: sha256 (hex) of the payload.
        payload_size: Its bytes.
        blocks: sha256 of each BLOCK_BYTES of the payload, DIGEST_BYTES each.
        segments: In the order of the result.
        format: Of this description.
    """

    base: str
    base_size: int
    result: str
    result_size: int
    payload: str
    payload_size: int
    blocks: bytes
    segments: tuple[Segment, ...]
    format: int = FORMAT

    def to_bytes(self) -> bytes:
        """What `parse_delta` reads."""
        return msgspec.msgpack.encode(self)

    def payload_entry(self, path: str) -> FileEntry:
        """The payload as the block engine sees files."""
        at = range(0, len(self.blocks), DIGEST_BYTES)
        blocks = tuple(self.blocks[start : start + DIGEST_BYTES].hex() for start in at)
        return FileEntry(path=path, role="delta", size=self.payload_size, sha256=self.payload, blocks=blocks)

    def offsets(self) -> list[int]:
        """Where the payload of each segment begins; one more for the end."""
        return [0, *itertools.accumulate(segment.payload_bytes for segment in self.segments)]

    def segment_bytes(self, index: int) -> int:
        """Bytes of the result that segment `index` makes."""
        return min(SEGMENT_BYTES, self.result_size - index * SEGMENT_BYTES)


class Offer(msgspec.Struct, frozen=True):
    """What the signed catalogue says about one delta of a bundle.

    Attributes:
        base, result: sha256 (hex) of the two files.
        description: sha256 (hex) of the delta's description, which is a blob of the store.
        length: Bytes of the description.
        size: Bytes of the payload.
    """

    base: str
    result: str
    description: str
    length: int
    size: int


def parse_offers(custom: Mapping[str, Any]) -> tuple[Offer, ...]:
    """The deltas in a target's signed fields; those that could not be used are passed over, since none is needed."""
    found = custom.get(TARGET_FIELD)
    offers = []
    for item in found[:MAX_OFFERS] if isinstance(found, list) else ():
        try:
            offer = msgspec.convert(item, Offer)
        except msgspec.ValidationError:
            continue  # of a newer edgekit
        digests = (offer.base, offer.result, offer.description)
        sound = all(map(SHA256.fullmatch, digests)) and 0 < offer.length <= MAX_DESCRIPTION_BYTES
        if sound and 0 <= offer.size <= MAX_FILE_BYTES:
            offers.append(offer)
    return tuple(offers)


def parse_delta(data: bytes, offer: Offer, *, base_size: int, result_size: int) -> Delta:
    """Parse and check a description.

    Nothing that it declares can make who applies it hold more than a few segments in memory: every size follows from
    those of the two files, which are signed.

    Args:
        data: The description.
        offer: What was signed about it.
        base_size, result_size: Bytes of the two files, from their manifests.

    Raises:
        DataError: it is not what it should be; all faults are named together.
    """
    if len(data) > MAX_DESCRIPTION_BYTES:
        raise DataError(f"delta description has {len(data)} bytes, the limit is {MAX_DESCRIPTION_BYTES}")
    try:
        delta = msgspec.msgpack.decode(data, type=Delta)
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
        "format": FORMAT,
        "base": offer.base,
        "base_size": base_size,
        "result": offer.result,
        "result_size": result_size,
        "payload_size": offer.size,
    }
    faults = [
        f"{name} is {str(getattr(delta, name))[:80]}, expected {wanted}"
        for name, wanted in expected.items()
        if getattr(delta, name) != wanted
    ]
    if not SHA256.fullmatch(delta.payload):
        faults.append("the digest of the payload is not 64 hex digits")
    if len(delta.blocks) != block_count(offer.size) * DIGEST_BYTES:
        faults.append(f"{len(delta.blocks)} bytes of block digests for a payload of {offer.size} bytes")
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
        return [f"its segments take {total} bytes of payload, there are {delta.payload_size}"]
    return []


def _segment_fault(segment: Segment, size: int, base_size: int) -> str:
    if len(segment.parts) != PARTS.get(segment.form, -1):
        return f"form {segment.form} with {len(segment.parts)} parts"
    for span in segment.spans:
        inside = 0 <= span.offset <= base_size - span.length or span.offset == -1
        if span.length <= 0 or not inside:
            return f"bytes {span.offset} to {span.offset + span.length} of a base of {base_size}"
    taken = sum(span.length for span in segment.spans)
    if segment.form == DICTIONARY:
        if taken > MAX_DICTIONARY_BYTES or segment.parts[0].codec != ZSTD:
            return f"a dictionary of {taken} bytes, codec {segment.parts[0].codec}"
    elif taken != size:
        return f"it takes {taken} bytes of the base and makes {size}"
    for part in segment.parts:
        # What does not shrink is stored, so that no part is larger than what comes out of it.
        if not 0 <= part.length <= size or part.codec not in (STORED, ZSTD, BZ2, LZMA):
            return f"a part of {part.length} bytes, codec {part.codec}"
    return ""


def segments_of(missing: Iterable[int]) -> list[int]:
    """The segments that make these blocks of the result."""
    return sorted({index // SEGMENT_BLOCKS for index in missing})


def payload_blocks(delta: Delta, segments: Sequence[int]) -> list[int]:
    """The blocks of the payload that these segments need."""
    offsets, blocks = delta.offsets(), set[int]()
    for index in segments:
        start, end = offsets[index], offsets[index + 1]
        if end > start:
            blocks.update(range(start // BLOCK_BYTES, (end - 1) // BLOCK_BYTES + 1))
    return sorted(blocks)
