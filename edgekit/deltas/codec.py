"""One segment of a delta, encoded and decoded; what a payload claims never decides how much memory is taken."""

from __future__ import annotations

import bz2
import io
import lzma
from collections.abc import Sequence

import numpy as np
import zstandard

from edgekit.deltas import description as deltas
from edgekit.deltas.description import Part, Segment
from edgekit.errors import DataError
from edgekit.tensors import Array

# The reader's own parameters, so that a stream cannot ask for a larger dictionary.
_LZMA = [{"id": lzma.FILTER_LZMA2, "dict_size": deltas.SEGMENT_BYTES, "lc": 0, "lp": 0, "pb": 0}]
_WINDOW_BYTES = 4 * deltas.SEGMENT_BYTES
_LEVEL = 19


def decode_segment(segment: Segment, base: bytes, payload: bytes, size: int) -> bytes:
    """Make one segment of the result.

    Args:
        segment: Checked by `parse_delta`.
        base: What its spans take from the base, one after the other.
        payload: Its parts, one after the other.
        size: Bytes that it makes.

    Raises:
        DataError: the payload does not decode to exactly what the segment needs.
    """
    if segment.form == deltas.COPY:
        return base
    parts = _split(segment.parts, payload)
    if segment.form == deltas.DICTIONARY:
        return decompress(deltas.ZSTD, parts[0], size, dictionary=base)
    given: Array = np.frombuffer(base, np.uint8)
    codecs = [part.codec for part in segment.parts]
    if segment.form == deltas.SUM:
        return bytes((given + np.frombuffer(decompress(codecs[0], parts[0], size), np.uint8)).data)
    if segment.form == deltas.SPARSE:
        mask = np.frombuffer(decompress(codecs[0], parts[0], -(-size // 8)), np.uint8)
        changed = np.unpackbits(mask, count=size, bitorder="little").view(bool)
        values = decompress(codecs[1], parts[1], int(np.count_nonzero(changed)))
        added = given.copy()
        added[changed] += np.frombuffer(values, np.uint8)
        return bytes(added.data)
    if segment.form == deltas.GAPS:
        at = _positions(np.frombuffer(decompress_up_to(codecs[0], parts[0], size), np.uint8), size)
        added = given.copy()
        added[at] += np.frombuffer(decompress(codecs[1], parts[1], len(at)), np.uint8)
        return bytes(added.data)
    return _widen(given, [decompress(*pair, -(-size // 4)) for pair in zip(codecs, parts, strict=True)])[:size]


def encode_segment(new: bytes, base: bytes, spans: tuple[deltas.Span, ...]) -> tuple[Segment, bytes]:
    """The smallest way to make `new` from `base` (as long, taken from `spans`) by addition; see `encode_with`."""
    if new == base:
        return Segment(deltas.COPY, spans, ()), b""
    ours, given = np.frombuffer(new, np.uint8), np.frombuffer(base, np.uint8)
    difference: Array = ours - given
    changed = difference != 0
    mask = np.packbits(changed, bitorder="little").tobytes()
    ways = [
        (deltas.SUM, [compress(difference.tobytes())]),
        (deltas.SPARSE, [compress(mask), values := compress(difference[changed].tobytes())]),
    ]
    if np.count_nonzero(changed) < len(new) // 8:
        ways.append((deltas.GAPS, [compress(_gaps(np.flatnonzero(changed))), values]))
    if min(map(_total, ways)) > len(new) // 4:  # dense changes: floats, perhaps
        ways.append((deltas.WIDE, [compress(plane) for plane in _narrow(ours, given)]))
    form, streams = min(ways, key=_total)
    parts = tuple(Part(codec, len(stream)) for codec, stream in streams)
    return Segment(form, spans, parts), b"".join(stream for _, stream in streams)


def encode_with(new: bytes, dictionary: bytes, spans: tuple[deltas.Span, ...]) -> tuple[Segment, bytes]:
    """`new` compressed with a dictionary, which `spans` take from the base: for what has moved within the file."""
    compressor = zstandard.ZstdCompressor(level=_LEVEL, dict_data=_raw(dictionary), write_content_size=False)
    stream = compressor.compress(new)
    return Segment(deltas.DICTIONARY, spans, (Part(deltas.ZSTD, len(stream)),)), stream


def compress(data: bytes) -> tuple[int, bytes]:
    """The smallest of what each codec makes of `data`, and which one that was."""
    compressed = [
        (deltas.STORED, data),
        (deltas.ZSTD, zstandard.ZstdCompressor(level=_LEVEL, write_content_size=False).compress(data)),
        (deltas.BZ2, bz2.compress(data, 9)),
        (deltas.LZMA, lzma.compress(data, format=lzma.FORMAT_RAW, filters=_LZMA)),
    ]
    return min(compressed, key=lambda pair: len(pair[1]))


def decompress(codec: int, data: bytes, size: int, *, dictionary: bytes = b"") -> bytes:
    """Exactly `size` bytes; reading stops one byte past them, whatever the stream holds.

    Raises:
        DataError: it holds fewer or more, or cannot be read.
    """
    found = decompress_up_to(codec, data, size, dictionary=dictionary)
    if len(found) != size:
        raise DataError(f"a part of a delta decompresses to {len(found)} bytes, expected {size}")
    return found


def decompress_up_to(codec: int, data: bytes, most: int, *, dictionary: bytes = b"") -> bytes:
    """At most so many bytes. Raises DataError where there are more, or they cannot be read."""
    try:
        if codec == deltas.STORED:
            found = data
        elif codec == deltas.ZSTD:
            reader = zstandard.ZstdDecompressor(
                dict_data=_raw(dictionary) if dictionary else None, max_window_size=_WINDOW_BYTES
            ).stream_reader(io.BytesIO(data), read_across_frames=False)
            found = reader.read(most + 1)
        elif codec == deltas.BZ2:
            found = bz2.BZ2Decompressor().decompress(data, most + 1)
        else:
            found = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_LZMA).decompress(data, most + 1)
    except (zstandard.ZstdError, lzma.LZMAError, OSError, EOFError, ValueError) as error:
        raise DataError(f"a part of a delta cannot be decompressed: {error}") from error
    if len(found) > most:
        raise DataError(f"a part of a delta decompresses to more than the expected {most} bytes")
    return bytes(found)


def _raw(dictionary: bytes) -> zstandard.ZstdCompressionDict:
    return zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def _total(way: tuple[int, list[tuple[int, bytes]]]) -> int:
    return sum(len(stream) for _, stream in way[1])


def _split(parts: Sequence[Part], payload: bytes) -> list[bytes]:
    found, at = [], 0
    for part in parts:
        found.append(payload[at : at + part.length])
        at += part.length
    return found


def _gaps(changed: Array) -> bytes:
    """Positions, rising, as bytes: the distance from one to the next, in steps of GAP_MOST where it is longer."""
    between = np.diff(changed, prepend=-1) - 1
    steps = between // deltas.GAP_MOST
    ends = np.cumsum(steps + 1) - 1
    gaps = np.full(int(ends[-1]) + 1, deltas.GAP_MOST, np.uint8)
    gaps[ends] = between % deltas.GAP_MOST
    return gaps.tobytes()


def _positions(gaps: Array, size: int) -> Array:
    """What `_gaps` was given. Raises DataError where one lies past `size`."""
    change = gaps < deltas.GAP_MOST
    at = np.cumsum(gaps + change.astype(np.int32), dtype=np.int32) - 1
    if len(at) and at[-1] >= size:
        raise DataError(f"a part of a delta changes byte {at[-1]} of {size}")
    return at[change]


def _words(data: Array) -> Array:
    """Little-endian 32-bit words, the last one filled with zeros."""
    return np.frombuffer(data.tobytes() + bytes(-len(data) % 4), "<u4")


def _narrow(ours: Array, given: Array) -> list[bytes]:
    """Differences of words, small ones of either sign as small numbers (zigzag), byte by byte."""
    difference = (_words(ours) - _words(given)).view("<i4")
    zigzag = ((difference << 1) ^ (difference >> 31)).view("<u4")
    return [plane.tobytes() for plane in zigzag.view(np.uint8).reshape(-1, 4).T]


def _widen(given: Array, planes: list[bytes]) -> bytes:
    zigzag = np.stack([np.frombuffer(plane, np.uint8) for plane in planes], axis=1).reshape(-1).view("<u4")
    difference = (zigzag >> 1) ^ (0 - (zigzag & 1))
    return bytes((_words(given) + difference).astype("<u4").data)
