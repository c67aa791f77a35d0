"""Rules for requesting blocks: block maps, ranges, windows and time-outs."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.bundle.manifest import BLOCK_BYTES
from edgekit.errors import DataError
from edgekit.mqtt.messages import Range
from edgekit.transfer.blocks import MAX_WINDOW, MIN_WINDOW, BlockMap, RoundTrip, Window, block_count, to_ranges


@given(st.integers(0, 3000), st.data())
def test_a_map_survives_its_bytes(count, data):
    """A map that is written and read again has the same blocks, also with more than 1024 of them."""
    size = max(0, count * BLOCK_BYTES - data.draw(st.integers(0, BLOCK_BYTES - 1)))
    blocks = BlockMap(size)
    assert blocks.count == block_count(size)
    marked = data.draw(st.sets(st.integers(0, max(0, blocks.count - 1)), max_size=50)) if blocks.count else set()
    for index in marked:
        blocks.mark(index)
    again = BlockMap.from_bytes(size, blocks.to_bytes())
    assert again.missing() == [index for index in range(blocks.count) if index not in marked]
    assert again.present == len(marked)
    assert again.done == (len(marked) == blocks.count)


def test_marking_twice_counts_once_and_clearing_takes_it_back():
    """A block that arrives twice counts once."""
    blocks = BlockMap(3 * BLOCK_BYTES)
    blocks.mark(1)
    blocks.mark(1)
    assert blocks.present == 1
    blocks.clear(1)
    blocks.clear(1)
    assert (blocks.present, 1 in blocks, -1 in blocks, 99 in blocks) == (0, False, False, False)


@pytest.mark.parametrize("index", [-1, 3])
def test_a_block_that_is_not_there_cannot_be_marked(index):
    """A hostile index never reaches the disk."""
    blocks = BlockMap(3 * BLOCK_BYTES)
    for call in (blocks.mark, blocks.clear, blocks.span):
        with pytest.raises(IndexError, match="with 3 blocks"):
            call(index)


def test_the_last_block_may_be_shorter():
    """Spans cover the blob exactly."""
    blocks = BlockMap(2 * BLOCK_BYTES + 5)
    assert [blocks.span(index) for index in range(3)] == [
        (0, BLOCK_BYTES),
        (BLOCK_BYTES, BLOCK_BYTES),
        (2 * BLOCK_BYTES, 5),
    ]


@pytest.mark.parametrize("data", [b"", b"\0\0", b"\x08"], ids=["empty", "too-long", "bit-beyond-the-end"])
def test_a_map_of_another_blob_is_refused(data):
    """Three blocks need one byte with three bits."""
    with pytest.raises(DataError):
        BlockMap.from_bytes(3 * BLOCK_BYTES, data)


@given(st.lists(st.integers(0, 200)))
def test_ranges_name_exactly_the_indexes(indexes):
    """Ranges are sorted, contain no index twice, and do not touch each other."""
    ranges = to_ranges(indexes)
    assert [i for r in ranges for i in range(r.first, r.last + 1)] == sorted(set(indexes))
    assert all(a.last + 1 < b.first for a, b in itertools.pairwise(ranges))


def test_ranges_read_like_this():
    """One range for each run."""
    assert to_ranges([7, 1, 3, 2]) == (Range(1, 3), Range(7, 7))


@given(st.lists(st.booleans(), max_size=300))
def test_a_window_stays_within_its_bounds(arrivals):
    """The size stays within its limits for any sequence of arrivals and losses."""
    window = Window()
    for arrived in arrivals:
        window = window.after_arrival() if arrived else window.after_loss()
        assert MIN_WINDOW <= window.size <= MAX_WINDOW
        assert 0 <= window.credit(window.size // 3) <= window.size
        assert window.credit(window.size) == 0
        assert window.credit(0) == window.size


def test_a_window_grows_by_one_a_round_and_halves_at_a_loss():
    """One block more after a full window, half after a loss."""
    window = Window(8)
    for _ in range(8):
        window = window.after_arrival()
    assert window.size == 9
    assert window.after_loss().size == 4


def test_the_timeout_follows_what_was_seen():
    """The time-out is long at first, then near the observed time, doubled for each loss, and within its limits."""
    first = RoundTrip()
    assert first.timeout_seconds == 3.0
    quick = first
    for _ in range(50):
        quick = quick.observed(0.01)
    assert quick.timeout_seconds == 1.0
    slow = first
    for _ in range(50):
        slow = slow.observed(4.0)
    assert 4.0 <= slow.timeout_seconds < 5.0
    assert slow.lost().timeout_seconds == pytest.approx(2 * slow.timeout_seconds)
    for _ in range(20):
        slow = slow.lost()
    assert slow.timeout_seconds == 30.0
    assert slow.observed(4.0).timeout_seconds < 30.0


def test_the_limits_of_a_time_out_stay_after_observations_and_losses():
    """Other limits than the defaults apply before and after the first observation."""
    hasty = RoundTrip(initial_seconds=0.07, min_seconds=0.03, max_seconds=0.1)
    assert hasty.timeout_seconds == 0.07
    assert hasty.overtaken_seconds == 0.03
    assert hasty.lost().timeout_seconds == 0.1
    assert hasty.lost().observed(0.001).timeout_seconds == 0.03
