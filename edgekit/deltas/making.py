"""Make a delta between two files: tensors are aligned and subtracted, other moved bytes are found by a dictionary."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import zstandard

from edgekit.bundle.manifest import BLOCK_BYTES, file_entry
from edgekit.deltas.codec import decode_segment, encode_segment, encode_with_dictionary
from edgekit.deltas.description import (
    MAX_DICTIONARY_BYTES,
    MAX_SPANS,
    SEGMENT_BYTES,
    Delta,
    Segment,
    Span,
)
from edgekit.deltas.tensor_ranges import TensorRange, find_tensors

MAX_DELTA_SHARE = 0.8  # the largest useful size of a delta, as a share of the blocks that a device fetches without it
_DICTIONARY_FROM = 0.02  # a dictionary is tried only if the differences are a larger share of the segment

Progress = Callable[[int, int], None]


class Aligned(NamedTuple):
    """`length` bytes of the new file from `start`; `offset` is that of similar bytes in the base, or -1 for none."""

    start: int
    offset: int
    length: int


def make_delta(base: bytes, new: bytes, *, progress: Progress = lambda done, total: None) -> tuple[Delta, bytes] | None:
    """Make the delta from `base` to `new`.

    Args:
        base: Bytes of the base file.
        new: Bytes of the new file.
        progress: Called with the number of bytes done and of all bytes.

    Returns:
        The description and the payload; None if together they are larger than MAX_DELTA_SHARE of the blocks that a
        device with the base would fetch without a delta.
    """
    whole = _changed_block_bytes(base, new)
    aligned = align(base, new)
    segments: list[Segment] = []
    payload = bytearray()
    for start in range(0, len(new), SEGMENT_BYTES):
        part = new[start : start + SEGMENT_BYTES]
        segment, stream = _encode(base, part, list(_spans(aligned, start, start + len(part))))
        segments.append(segment)
        payload += stream
        progress(start + len(part), len(new))
        if len(payload) > MAX_DELTA_SHARE * whole:
            return None
    if sum(len(segment.spans) for segment in segments) > MAX_SPANS:
        return None
    entry = file_entry("payload", "delta", bytes(payload))
    delta = Delta(
        base=hashlib.sha256(base).hexdigest(),
        base_size=len(base),
        result=hashlib.sha256(new).hexdigest(),
        result_size=len(new),
        payload=entry.sha256,
        payload_size=entry.size,
        blocks=b"".join(map(bytes.fromhex, entry.blocks)),
        segments=tuple(segments),
    )
    return (delta, bytes(payload)) if entry.size + len(delta.to_bytes()) <= MAX_DELTA_SHARE * whole else None


def apply_delta(delta: Delta, payload: bytes, base: bytes) -> bytes:
    """Make the whole result in memory, with the same code as a device. Raises DataError as `decode_segment`."""
    offsets, result = delta.offsets(), []
    for index, segment in enumerate(delta.segments):
        stream = payload[offsets[index] : offsets[index + 1]]
        result.append(decode_segment(segment, read_spans(base, segment.spans), stream, delta.segment_bytes(index)))
    return b"".join(result)


def read_spans(base: bytes, spans: Iterable[Span]) -> bytes:
    """The bytes of `spans` in `base`, joined; a span without an offset gives zeros."""
    return b"".join(
        base[span.offset : span.offset + span.length] if span.offset >= 0 else bytes(span.length) for span in spans
    )


def align(base: bytes, new: bytes) -> list[Aligned]:
    """Align every byte of `new`, in order, with similar bytes of `base`.

    Tensors are matched by name and length, or else by length. Bytes before a tensor are aligned with the bytes before
    its match.
    """
    base_tensors, new_tensors = find_tensors(base), find_tensors(new)
    pairs = zip(new_tensors, _matches(base_tensors, new_tensors), strict=True)
    matched = [(tensor, match) for tensor, match in pairs if match is not None]
    if not matched:
        length = min(len(base), len(new))
        return _merged([Aligned(0, 0, length), Aligned(length, -1, len(new) - length)])
    aligned, at, base_at = [], 0, 0
    for tensor, match in matched:
        aligned += _align_gap(at, tensor.offset, max(0, match.offset - (tensor.offset - at)), match.offset)
        aligned.append(Aligned(tensor.offset, match.offset, tensor.length))
        at, base_at = tensor.offset + tensor.length, match.offset + match.length
    rest = min(len(new) - at, len(base) - base_at)
    return _merged([*aligned, Aligned(at, base_at, rest), Aligned(at + rest, -1, len(new) - at - rest)])


def _matches(base_tensors: list[TensorRange], new_tensors: list[TensorRange]) -> list[TensorRange | None]:
    """For each new tensor, the base tensor of the same name and length, or else the next free one of its length."""
    named = {(tensor.name, tensor.length): tensor for tensor in base_tensors}
    taken = {named[key] for tensor in new_tensors if (key := (tensor.name, tensor.length)) in named}
    free: defaultdict[int, list[TensorRange]] = defaultdict(list)
    for tensor in reversed(base_tensors):
        if tensor not in taken:
            free[tensor.length].append(tensor)
    matches: list[TensorRange | None] = []
    for tensor in new_tensors:
        match = named.get((tensor.name, tensor.length))
        if match is None and free[tensor.length]:
            match = free[tensor.length].pop()
        matches.append(match)
    return matches


def _align_gap(start: int, end: int, offset: int, offset_end: int) -> list[Aligned]:
    """Align the bytes between two tensors with the bytes before the match of the second one, from the end."""
    length = min(end - start, offset_end - offset)
    return [Aligned(start, -1, end - start - length), Aligned(end - length, offset_end - length, length)]


def _merged(pieces: list[Aligned]) -> list[Aligned]:
    merged: list[Aligned] = []
    for piece in pieces:
        if not piece.length:
            continue
        last = merged[-1] if merged else None
        if last is not None and (
            last.offset == piece.offset == -1 or (piece.offset >= 0 and last.offset + last.length == piece.offset)
        ):
            merged[-1] = Aligned(last.start, last.offset, last.length + piece.length)
        else:
            merged.append(piece)
    return merged


def _spans(aligned: list[Aligned], start: int, end: int) -> Iterator[Span]:
    """Spans of the base for the bytes `start` to `end` of the new file."""
    for piece in aligned:
        first, last = max(piece.start, start), min(piece.start + piece.length, end)
        if last > first:
            yield Span(-1 if piece.offset < 0 else piece.offset + first - piece.start, last - first)


def _encode(base: bytes, part: bytes, spans: list[Span]) -> tuple[Segment, bytes]:
    best = encode_segment(part, read_spans(base, spans), tuple(spans))
    if len(best[1]) <= _DICTIONARY_FROM * len(part):
        return best
    window = _window(base, part, spans)
    dictionary = base[window.offset : window.offset + window.length] if window.length else b""
    quick = zstandard.ZstdCompressor(
        level=3, dict_data=zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    )
    if len(quick.compress(part)) > 1.2 * len(best[1]):  # the slow level would hardly make it smaller than `best`
        return best
    other = encode_with_dictionary(part, dictionary, (window,) if window.length else ())
    return min(best, other, key=lambda encoded: len(encoded[1]))


def _window(base: bytes, part: bytes, spans: list[Span]) -> Span:
    """The range of the base around the segment's first span; it contains bytes that moved a short distance."""
    offset = next((span.offset for span in spans if span.offset >= 0), len(base))
    margin = (MAX_DICTIONARY_BYTES - len(part)) // 2
    start = max(0, min(offset - margin, len(base) - MAX_DICTIONARY_BYTES))
    return Span(start, min(MAX_DICTIONARY_BYTES, len(base) - start))


def _changed_block_bytes(base: bytes, new: bytes) -> int:
    """Total size of the blocks of `new` that a device with `base` would fetch without a delta."""
    known = set(file_entry("base", "delta", base).blocks)
    entry = file_entry("new", "delta", new)
    last = len(entry.blocks) - 1
    sizes = {
        digest: entry.size - last * BLOCK_BYTES if at == last else BLOCK_BYTES for at, digest in enumerate(entry.blocks)
    }
    return sum(size for digest, size in sizes.items() if digest not in known)
