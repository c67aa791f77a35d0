"""Makes a delta of two files: quantized weights are subtracted tensor by tensor, what moved is found by its bytes."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import zstandard

from edgekit.bundle.manifest import BLOCK_BYTES, file_entry
from edgekit.deltas.codec import decode_segment, encode_segment, encode_with
from edgekit.deltas.description import (
    MAX_DICTIONARY_BYTES,
    MAX_SPANS,
    SEGMENT_BYTES,
    Delta,
    Segment,
    Span,
)
from edgekit.deltas.tensor_ranges import TensorRange, find_tensors

WIN_SHARE = 0.8  # of the blocks that would be fetched without it
_DICTIONARY_FROM = 0.02  # a segment that addition makes this small is not tried with a dictionary

Progress = Callable[[int, int], None]


class Aligned(NamedTuple):
    """Bytes of the new file from `start`, and where their like stands in the base; -1 for nowhere."""

    start: int
    offset: int
    length: int


def make_delta(base: bytes, new: bytes, *, progress: Progress = lambda done, total: None) -> tuple[Delta, bytes] | None:
    """A delta from `base` to `new` with its payload; None where it would not save enough.

    Args:
        progress: Called with bytes done and bytes in all.
    """
    whole = _whole_bytes(base, new)
    aligned = align(base, new)
    segments: list[Segment] = []
    payload = bytearray()
    for start in range(0, len(new), SEGMENT_BYTES):
        part = new[start : start + SEGMENT_BYTES]
        segment, stream = _encode(base, part, list(_cut(aligned, start, start + len(part))))
        segments.append(segment)
        payload += stream
        progress(start + len(part), len(new))
        if len(payload) > WIN_SHARE * whole:
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
    return (delta, bytes(payload)) if entry.size + len(delta.to_bytes()) <= WIN_SHARE * whole else None


def apply_delta(delta: Delta, payload: bytes, base: bytes) -> bytes:
    """The whole result in memory, as a device makes it segment by segment. Raises DataError as `decode_segment`."""
    offsets, made = delta.offsets(), []
    for index, segment in enumerate(delta.segments):
        stream = payload[offsets[index] : offsets[index + 1]]
        made.append(decode_segment(segment, take(base, segment.spans), stream, delta.segment_bytes(index)))
    return b"".join(made)


def take(base: bytes, spans: Iterable[Span]) -> bytes:
    """What `spans` name."""
    return b"".join(
        base[span.offset : span.offset + span.length] if span.offset >= 0 else bytes(span.length) for span in spans
    )


def align(base: bytes, new: bytes) -> list[Aligned]:
    """Every byte of `new` in order, with its like in `base`: tensors by name and length, the rest by what follows."""
    theirs, ours = find_tensors(base), find_tensors(new)
    matched = [(tensor, like) for tensor, like in zip(ours, _likes(theirs, ours), strict=True) if like is not None]
    if not matched:
        length = min(len(base), len(new))
        return _merged([Aligned(0, 0, length), Aligned(length, -1, len(new) - length)])
    found, at, before = [], 0, 0
    for tensor, like in matched:
        found += _gap(at, tensor.offset, max(0, like.offset - (tensor.offset - at)), like.offset)
        found.append(Aligned(tensor.offset, like.offset, tensor.length))
        at, before = tensor.offset + tensor.length, like.offset + like.length
    rest = min(len(new) - at, len(base) - before)
    return _merged([*found, Aligned(at, before, rest), Aligned(at + rest, -1, len(new) - at - rest)])


def _likes(theirs: list[TensorRange], ours: list[TensorRange]) -> list[TensorRange | None]:
    """For each of our tensors the one of theirs with its name and length, else the next free one of its length."""
    named = {(tensor.name, tensor.length): tensor for tensor in theirs}
    taken = {named[key] for tensor in ours if (key := (tensor.name, tensor.length)) in named}
    free: defaultdict[int, list[TensorRange]] = defaultdict(list)
    for tensor in reversed(theirs):
        if tensor not in taken:
            free[tensor.length].append(tensor)
    likes: list[TensorRange | None] = []
    for tensor in ours:
        like = named.get((tensor.name, tensor.length))
        if like is None and free[tensor.length]:
            like = free[tensor.length].pop()
        likes.append(like)
    return likes


def _gap(start: int, end: int, offset: int, offset_end: int) -> list[Aligned]:
    """What stands between two tensors is like what stands before the second one's like."""
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


def _cut(aligned: list[Aligned], start: int, end: int) -> Iterator[Span]:
    for piece in aligned:
        first, last = max(piece.start, start), min(piece.start + piece.length, end)
        if last > first:
            yield Span(-1 if piece.offset < 0 else piece.offset + first - piece.start, last - first)


def _encode(base: bytes, part: bytes, spans: list[Span]) -> tuple[Segment, bytes]:
    best = encode_segment(part, take(base, spans), tuple(spans))
    if len(best[1]) <= _DICTIONARY_FROM * len(part):
        return best
    window = _window(base, part, spans)
    dictionary = base[window.offset : window.offset + window.length] if window.length else b""
    quick = zstandard.ZstdCompressor(
        level=3, dict_data=zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    )
    if len(quick.compress(part)) > 1.2 * len(best[1]):
        return best
    other = encode_with(part, dictionary, (window,) if window.length else ())
    return min(best, other, key=lambda way: len(way[1]))


def _window(base: bytes, part: bytes, spans: list[Span]) -> Span:
    """The range of the base around where the segment's like begins: what moved by less is found in it."""
    offset = next((span.offset for span in spans if span.offset >= 0), len(base))
    margin = (MAX_DICTIONARY_BYTES - len(part)) // 2
    start = max(0, min(offset - margin, len(base) - MAX_DICTIONARY_BYTES))
    return Span(start, min(MAX_DICTIONARY_BYTES, len(base) - start))


def _whole_bytes(base: bytes, new: bytes) -> int:
    """Bytes of the blocks of `new` that a device with `base` would fetch."""
    known = set(file_entry("base", "delta", base).blocks)
    entry = file_entry("new", "delta", new)
    last = len(entry.blocks) - 1
    sizes = {
        digest: entry.size - last * BLOCK_BYTES if at == last else BLOCK_BYTES for at, digest in enumerate(entry.blocks)
    }
    return sum(size for digest, size in sizes.items() if digest not in known)
