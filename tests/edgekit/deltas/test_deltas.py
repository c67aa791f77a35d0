"""Deltas are small for retrained weights, always exact, and harmless when malformed."""

import bz2
import contextlib
import lzma
import random
import tracemalloc

import msgspec
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.bundle.manifest import BLOCK_BYTES
from edgekit.deltas import description as deltas
from edgekit.deltas.codec import _LZMA, _gaps, _positions, decode_segment, decompress
from edgekit.deltas.description import Delta, Offer, Part, Segment, Span, parse_delta, parse_offers
from edgekit.deltas.making import align, apply_delta, make_delta
from edgekit.deltas.tensor_ranges import find_tensors
from edgekit.errors import DataError
from tests.simulators.weights import int8_weights, litert_file, onnx_file, retrained

SIZES = (40_000, 120_000, 50_000)
WEIGHTS = int8_weights(1, *SIZES)
CHANGED = retrained(WEIGHTS, 2)


def offer_of(delta, payload):
    return Offer(delta.base, delta.result, "0" * 64, len(delta.to_bytes()), len(payload))


def checked(base, new):
    """A delta that was encoded, parsed and applied, and its payload."""
    delta, payload = make_delta(base, new)
    parsed = parse_delta(delta.to_bytes(), offer_of(delta, payload), base_size=len(base), result_size=len(new))
    assert parsed == delta
    assert apply_delta(parsed, payload, base) == new
    return parsed, payload


@pytest.mark.parametrize("write", [onnx_file, litert_file])
def test_retrained_weights_cost_what_their_changes_hold(write):
    """Five weights of a hundred moved by up to three: at most 6 % of the file."""
    new = write(CHANGED)
    _, payload = checked(write(WEIGHTS), new)
    assert len(payload) < 0.06 * len(new)


@pytest.mark.parametrize("write", [onnx_file, litert_file])
def test_tensors_are_found_by_name_wherever_the_new_file_puts_them(write):
    """Another order and a header of another length cost the same; subtraction at equal offsets could not do that."""
    moved = dict(reversed(CHANGED.items())) | {"extra": int8_weights(9, 300)["w0"]}
    _, payload = checked(write(WEIGHTS), write(moved))
    assert len(payload) < 0.065 * sum(SIZES)


def test_tensors_that_lost_their_names_are_found_by_their_length():
    """Converters can give tensors new names by numbering them again."""
    renamed = {f"other_{name}": values for name, values in CHANGED.items()}
    _, payload = checked(onnx_file(WEIGHTS), onnx_file(renamed))
    assert len(payload) < 0.065 * sum(SIZES)


@pytest.mark.parametrize("write", [onnx_file, litert_file, lambda weights: onnx_file(weights, constants=True)])
def test_every_large_constant_is_found(write):
    """The bytes at each range are the values of the tensor with that name."""
    data = write(WEIGHTS)
    found = {tensor.name.removesuffix("_out"): data[tensor.offset :][: tensor.length] for tensor in find_tensors(data)}
    assert found == {name: values.tobytes() for name, values in WEIGHTS.items()}


def test_bytes_that_moved_in_a_file_of_no_known_format_cost_next_to_nothing():
    """Bytes without known tensors are compressed with a dictionary of the base around the same offset."""
    base = random.Random(1).randbytes(deltas.SEGMENT_BYTES // 4)
    _, payload = checked(base, base[:1000] + b"thirty-seven bytes of another header" + base[1000:])
    assert len(payload) < 1000


def test_floats_that_all_moved_a_little_are_taken_word_by_word():
    """Differences of float bytes hardly compress; differences of their 32-bit words do."""
    rng = np.random.default_rng(1)
    base = rng.normal(0, 1, 40_000).astype(np.float32)
    new = base + rng.normal(0, 0.001, base.size).astype(np.float32)
    delta, payload = checked(base.tobytes(), new.tobytes())
    assert delta.segments[0].form == deltas.WIDE
    assert len(payload) < 0.62 * new.nbytes


@pytest.mark.parametrize("new", [b"", random.Random(2).randbytes(150_000), None])
def test_no_delta_is_made_where_it_does_not_win(new):
    """For an empty, an unrelated or an equal file, blocks cost less than a delta."""
    base = random.Random(1).randbytes(150_000)
    assert make_delta(base, base if new is None else new) is None


edits = st.lists(st.tuples(st.integers(0, 250_000), st.integers(0, 300), st.binary(max_size=300)), max_size=8)


@given(edits, st.integers(0, 3))
@settings(max_examples=4, deadline=None)
def test_whatever_is_edited_comes_out_exactly(changes, kind):
    """Insertions, deletions and replacements anywhere in any kind of file are restored exactly."""
    data = [onnx_file(WEIGHTS), litert_file(WEIGHTS), b"".join(w.tobytes() for w in WEIGHTS.values()), bytes(250_000)][
        kind
    ]
    new = data
    for at, length, put in changes:
        new = new[:at] + put + new[at + length :]
    pieces = align(data, new)
    assert sum(piece.length for piece in pieces) == len(new)
    if (found := make_delta(data, new)) is not None:
        assert apply_delta(*found, data) == new


@given(st.binary(max_size=400), st.booleans(), st.integers(0, 2**31))
@settings(max_examples=150, deadline=None)
def test_tensors_are_looked_for_in_any_bytes(noise, flatbuffer, seed):
    """Damaged model files give ranges inside the file, or none, and never an error."""
    good = bytearray((litert_file if flatbuffer else onnx_file)(int8_weights(3, 500, 200)))
    for byte in noise[:20]:
        good[random.Random(seed + byte).randrange(len(good))] = byte
    for data in (bytes(good), b"abcdTFL3"[: len(noise)] + noise, noise):
        end = 0
        for tensor in find_tensors(data):
            assert end <= tensor.offset <= tensor.offset + tensor.length <= len(data)
            end = tensor.offset + tensor.length


# --- hostile descriptions and payloads

BASE = onnx_file(WEIGHTS)
NEW = onnx_file(CHANGED)
DELTA, PAYLOAD = make_delta(BASE, NEW)
OFFER = offer_of(DELTA, PAYLOAD)


def read(data):
    return parse_delta(data, OFFER, base_size=len(BASE), result_size=len(NEW))


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_a_description_of_any_bytes_is_refused(data):
    """Any bytes give DataError."""
    with pytest.raises(DataError):
        read(data)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6))
@settings(max_examples=200, deadline=None)
def test_a_damaged_description_is_refused_or_makes_right_sizes(damage):
    """A description that passes the check makes a file of the right size, or gives DataError."""
    data = bytearray(DELTA.to_bytes())
    for at, byte in damage:
        data[at % len(data)] = byte
    try:
        delta = read(bytes(data))
        made = apply_delta(delta, PAYLOAD, BASE)
    except DataError:
        return
    assert len(made) == len(NEW)


def changed(**fields):
    return msgspec.structs.replace(DELTA, **fields).to_bytes()


def with_segment(**fields):
    first, *rest = DELTA.segments
    return changed(segments=(msgspec.structs.replace(first, **fields), *rest))


LIES = {
    "another base": changed(base="1" * 64),
    "another result": changed(result="1" * 64),
    "a huge result": changed(result_size=1 << 60),
    "a huge payload": changed(payload_size=1 << 60),
    "no block digests": changed(blocks=b""),
    "no segments": changed(segments=()),
    "a million segments": changed(segments=(Segment(deltas.COPY, (), ()),) * 1_000_000),
    "a million spans": with_segment(spans=(Span(0, 1),) * 100_000),
    "outside the base": with_segment(spans=(Span(len(BASE), len(NEW)),)),
    "before the base": with_segment(spans=(Span(-5, len(NEW)),)),
    "a negative length": with_segment(spans=(Span(0, -1), Span(0, len(NEW) + 1))),
    "too little": with_segment(spans=(Span(0, 1),)),
    "a huge dictionary": with_segment(form=deltas.DICTIONARY, spans=(Span(-1, 1 << 40),), parts=(Part(1, 9),)),
    "an unknown form": with_segment(form=77),
    "parts of another form": with_segment(form=deltas.WIDE),
    "an unknown codec": with_segment(parts=(Part(9, 1), Part(1, 1))),
    "a part larger than what it makes": with_segment(parts=(Part(0, 1 << 40), Part(0, 1))),
    "parts of another total": with_segment(parts=(Part(0, 1), Part(0, 1))),
    "another format": changed(format=2),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_description_that_lies_is_refused_before_anything_is_fetched(lie):
    """Sizes follow from the signed manifests, and a description that differs is refused."""
    with pytest.raises(DataError):
        read(LIES[lie])


@pytest.mark.parametrize("codec", [deltas.ZSTD, deltas.BZ2, deltas.LZMA])
def test_a_bomb_stops_one_byte_past_its_size(codec):
    """24 MiB in a few KB need only memory for the expected bytes and the decoder's buffers."""
    bomb = {
        deltas.ZSTD: lambda zeros: zstandard.ZstdCompressor(level=1).compress(zeros),
        deltas.BZ2: lambda zeros: bz2.compress(zeros),
        deltas.LZMA: lambda zeros: lzma.compress(zeros, lzma.FORMAT_RAW, filters=_LZMA),
    }[codec](bytes(24 * 1024**2))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="expected 1000 bytes"):
            decompress(codec, bomb, 1000)
        assert tracemalloc.get_traced_memory()[1] < 4 * 1024**2
    finally:
        tracemalloc.stop()


def test_a_frame_that_wants_a_huge_window_is_refused():
    """Its header alone would make the decoder allocate 128 MiB."""
    wide = zstandard.ZstdCompressionParameters.from_level(3, window_log=27, write_content_size=False)
    stream = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    frame = stream.compress(bytes(1000)) + stream.flush()
    with pytest.raises(DataError, match="cannot be decompressed"):
        decompress(deltas.ZSTD, frame, 1000)


@given(st.sampled_from([1, 2, 3]), st.binary(max_size=200), st.integers(0, 500))
@settings(max_examples=200, deadline=None)
def test_any_bytes_decompress_to_the_size_or_are_refused(codec, data, size):
    """Truncated, random and empty streams give the expected size or DataError."""
    with contextlib.suppress(DataError):
        assert len(decompress(codec, data, size)) == size


def test_a_mask_with_more_changes_than_values_is_refused():
    """The two parts of a sparse segment must have the same number of changes."""
    segment = Segment(deltas.SPARSE, (Span(0, 16),), (Part(deltas.STORED, 2), Part(deltas.STORED, 1)))
    with pytest.raises(DataError, match="expected 16"):
        decode_segment(segment, bytes(16), b"\xff\xff\x01", 16)


@given(st.sets(st.integers(0, 3000), min_size=1, max_size=60), st.integers(0, 5))
@settings(deadline=None)
def test_changes_far_apart_are_found_by_their_gaps(positions, margin):
    """Gaps of any length are encoded and decoded, also at the start and at the end."""
    size = max(positions) + 1 + margin
    new = bytearray(size)
    for at in positions:
        new[at] = 1 + at % 255
    found = _positions(np.frombuffer(_gaps(np.array(sorted(positions))), np.uint8), size)
    assert found.tolist() == sorted(positions)
    segment = Segment(deltas.GAPS, (Span(0, size),), ())
    parts = [_gaps(np.array(sorted(positions))), bytes(new[at] for at in sorted(positions))]
    segment = msgspec.structs.replace(segment, parts=tuple(Part(deltas.STORED, len(part)) for part in parts))
    assert decode_segment(segment, bytes(size), b"".join(parts), size) == bytes(new)


@pytest.mark.parametrize("gaps", [b"\x10", b"\xff" * 16, b"\x00" * 16 + b"\x00"])
def test_a_change_past_the_end_is_refused(gaps):
    """A segment of 16 bytes cannot change byte 16 or a later one."""
    segment = Segment(deltas.GAPS, (Span(0, 16),), (Part(deltas.STORED, len(gaps)), Part(deltas.STORED, 1)))
    with pytest.raises(DataError):
        decode_segment(segment, bytes(16), gaps + b"\x01", 16)


def test_offers_that_cannot_be_used_are_passed_over():
    """Offers of a newer edgekit, or with wrong values, are skipped; the others are used."""
    good = msgspec.to_builtins(OFFER)
    bad = [7, {}, {**good, "base": "x"}, {**good, "length": -1}, {**good, "length": 1 << 40}, {**good, "size": -5}]
    assert parse_offers({"deltas": [*bad, {**good, "new": 1}]}) == (OFFER,)
    assert parse_offers({"deltas": "nonsense"}) == parse_offers({}) == ()
    assert len(parse_offers({"deltas": [good] * 1000})) == deltas.MAX_OFFERS


def test_only_the_payload_of_missing_blocks_is_asked_for():
    """A device that has all but the last block of four segments fetches what the last one needs."""
    size = 4 * deltas.SEGMENT_BYTES
    parts = (Part(deltas.STORED, deltas.SEGMENT_BYTES),)
    segments = tuple(Segment(deltas.SUM, (Span(-1, deltas.SEGMENT_BYTES),), parts) for _ in range(4))
    delta = Delta("", 0, "", size, "", size, b"", segments)
    last = size // BLOCK_BYTES - 1
    assert deltas.segments_of([last]) == [3]
    assert deltas.payload_blocks(delta, [3]) == list(range(48, 64))
