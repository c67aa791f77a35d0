"""Encode and decode one segment of a delta. No claim of a payload decides how much memory the decoder takes."""

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

# Raw LZMA with fixed parameters, so that a stream cannot demand a larger dictionary.
_LZMA = [{"id": lzma.FILTER_LZMA2, "dict_size": deltas.SEGMENT_BYTES, "lc": 0, "lp": 0, "pb": 0}]
_WINDOW_BYTES = 4 * deltas.SEGMENT_BYTES
_LEVEL = 19


def decode_segment(segment: Segment, base: bytes, payload: bytes, size: int) -> bytes:
    """Make one segment of the result.

    Args:
        segment: Description of the segment, checked by `parse_delta`.
        base: Bytes of its spans in the base, joined.
        payload: Bytes of its parts, joined.
        size: Size of the segment of the result, in bytes.

    Raises:
        DataError: The payload does not decode to exactly the bytes that the segment needs.
    """
    if segment.form == deltas.COPY:
        return base
    parts = _split(segment.parts, payload)
    if segment.form == deltas.DICTIONARY:
        return decompress(deltas.ZSTD, parts[0], size, dictionary=base)
    base_bytes: Array = np.frombuffer(base, np.uint8)
    codecs = [part.codec for part in segment.parts]
    if segment.form == deltas.SUM:
        return bytes((base_bytes + np.frombuffer(decompress(codecs[0], parts[0], size), np.uint8)).data)
    if segment.form == deltas.SPARSE:
        mask = np.frombuffer(decompress(codecs[0], parts[0], -(-size // 8)), np.uint8)
        changed = np.unpackbits(mask, count=size, bitorder="little").view(bool)
        values = decompress(codecs[1], parts[1], int(np.count_nonzero(changed)))
        added = base_bytes.copy()
        added[changed] += np.frombuffer(values, np.uint8)
        return bytes(added.data)
    if segment.form == deltas.GAPS:
        at = _positions(np.frombuffer(decompress_up_to(codecs[0], parts[0], size), np.uint8), size)
        added = base_bytes.copy()
        added[at] += np.frombuffer(decompress(codecs[1], parts[1], len(at)), np.uint8)
        return bytes(added.data)
    return _add_planes(base_bytes, [decompress(*pair, -(-size // 4)) for pair in zip(codecs, parts, strict=True)])[
        :size
    ]


def encode_segment(new: bytes, base: bytes, spans: tuple[deltas.Span, ...]) -> tuple[Segment, bytes]:
    """Encode `new` as differences from `base`, in the form with the smallest payload.

    Args:
        new: Bytes of the segment.
        base: Bytes of `spans` in the base, joined; as many as in `new`.
        spans: The spans.

    Returns:
        The description of the segment, and its payload.
    """
    if new == base:
        return Segment(deltas.COPY, spans, ()), b""
    new_bytes, base_bytes = np.frombuffer(new, np.uint8), np.frombuffer(base, np.uint8)
    difference: Array = new_bytes - base_bytes
    changed = difference != 0
    mask = np.packbits(changed, bitorder="little").tobytes()
    candidates = [
        (deltas.SUM, [compress(difference.tobytes())]),
        (deltas.SPARSE, [compress(mask), values := compress(difference[changed].tobytes())]),
    ]
    if np.count_nonzero(changed) < len(new) // 8:
        candidates.append((deltas.GAPS, [compress(_gaps(np.flatnonzero(changed))), values]))
    if min(map(_stream_bytes, candidates)) > len(new) // 4:  # many changed bytes are perhaps floats
        candidates.append((deltas.WIDE, [compress(plane) for plane in _difference_planes(new_bytes, base_bytes)]))
    form, streams = min(candidates, key=_stream_bytes)
    parts = tuple(Part(codec, len(stream)) for codec, stream in streams)
    return Segment(form, spans, parts), b"".join(stream for _, stream in streams)


def encode_with_dictionary(new: bytes, dictionary: bytes, spans: tuple[deltas.Span, ...]) -> tuple[Segment, bytes]:
    """Compress `new` with a dictionary of bytes that moved within the file.

    Args:
        new: Bytes of the segment.
        dictionary: Bytes of `spans` in the base, joined.
        spans: The spans.

    Returns:
        The description of the segment, and its payload.
    """
    compressor = zstandard.ZstdCompressor(level=_LEVEL, dict_data=_raw_dictionary(dictionary), write_content_size=False)
    stream = compressor.compress(new)
    return Segment(deltas.DICTIONARY, spans, (Part(deltas.ZSTD, len(stream)),)), stream


def compress(data: bytes) -> tuple[int, bytes]:
    """Compress `data` with every codec; the codec with the smallest stream, and the stream."""
    compressed = [
        (deltas.STORED, data),
        (deltas.ZSTD, zstandard.ZstdCompressor(level=_LEVEL, write_content_size=False).compress(data)),
        (deltas.BZ2, bz2.compress(data, 9)),
        (deltas.LZMA, lzma.compress(data, format=lzma.FORMAT_RAW, filters=_LZMA)),
    ]
    return min(compressed, key=lambda pair: len(pair[1]))


def decompress(codec: int, data: bytes, size: int, *, dictionary: bytes = b"") -> bytes:
    """Decompress `data` to exactly `size` bytes; decoding stops one byte after them.

    Raises:
        DataError: The stream is damaged, or has fewer or more bytes.
    """
    found = decompress_up_to(codec, data, size, dictionary=dictionary)
    if len(found) != size:
        raise DataError(f"a part of a delta decompresses to {len(found)} bytes, expected {size}")
    return found


def decompress_up_to(codec: int, data: bytes, max_bytes: int, *, dictionary: bytes = b"") -> bytes:
    """Decompress `data` to at most `max_bytes`. Raises DataError if the stream is damaged or has more bytes."""
    try:
        if codec == deltas.STORED:
            found = data
        elif codec == deltas.ZSTD:
            reader = zstandard.ZstdDecompressor(
                dict_data=_raw_dictionary(dictionary) if dictionary else None, max_window_size=_WINDOW_BYTES
            ).stream_reader(io.BytesIO(data), read_across_frames=False)
            found = reader.read(max_bytes + 1)
        elif codec == deltas.BZ2:
            found = bz2.BZ2Decompressor().decompress(data, max_bytes + 1)
        else:
            found = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_LZMA).decompress(data, max_bytes + 1)
    except (zstandard.ZstdError, lzma.LZMAError, OSError, EOFError, ValueError) as error:
        raise DataError(f"a part of a delta cannot be decompressed: {error}") from error
    if len(found) > max_bytes:
        raise DataError(f"a part of a delta decompresses to more than the expected {max_bytes} bytes")
    return bytes(found)


def _raw_dictionary(dictionary: bytes) -> zstandard.ZstdCompressionDict:
    return zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def _stream_bytes(candidate: tuple[int, list[tuple[int, bytes]]]) -> int:
    _, streams = candidate
    return sum(len(stream) for _, stream in streams)


def _split(parts: Sequence[Part], payload: bytes) -> list[bytes]:
    streams, at = [], 0
    for part in parts:
        streams.append(payload[at : at + part.length])
        at += part.length
    return streams


def _gaps(changed: Array) -> bytes:
    """Encode rising positions as bytes: the number of unchanged bytes before each.

    A gap of MAX_GAP or more is written as bytes of MAX_GAP, followed by the remainder.
    """
    between = np.diff(changed, prepend=-1) - 1
    steps = between // deltas.MAX_GAP
    ends = np.cumsum(steps + 1) - 1
    gaps = np.full(int(ends[-1]) + 1, deltas.MAX_GAP, np.uint8)
    gaps[ends] = between % deltas.MAX_GAP
    return gaps.tobytes()


def _positions(gaps: Array, size: int) -> Array:
    """Decode the result of `_gaps` to positions. Raises DataError if one is not below `size`."""
    change = gaps < deltas.MAX_GAP
    at = np.cumsum(gaps + change.astype(np.int32), dtype=np.int32) - 1
    if len(at) and at[-1] >= size:
        raise DataError(f"a part of a delta changes byte {at[-1]}, expected 0 to {size - 1}")
    return at[change]


def _words(data: Array) -> Array:
    """Bytes as little-endian 32-bit words; the last word is filled with zeros."""
    return np.frombuffer(data.tobytes() + bytes(-len(data) % 4), "<u4")


def _difference_planes(new: Array, base: Array) -> list[bytes]:
    """Differences of 32-bit words in zigzag code (small for small differences of either sign), as four byte planes."""
    difference = (_words(new) - _words(base)).view("<i4")
    zigzag = ((difference << 1) ^ (difference >> 31)).view("<u4")
    return [plane.tobytes() for plane in zigzag.view(np.uint8).reshape(-1, 4).T]


def _add_planes(base: Array, planes: list[bytes]) -> bytes:
    """Add the result of `_difference_planes` to the words of `base`."""
    zigzag = np.stack([np.frombuffer(plane, np.uint8) for plane in planes], axis=1).reshape(-1).view("<u4")
    difference = (zigzag >> 1) ^ (0 - (zigzag & 1))
    return bytes((_words(base) + difference).astype("<u4").data)
