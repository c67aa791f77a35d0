"""Blocks that come in parts."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.bundle.manifest import BLOCK_BYTES
from edgekit.errors import DataError
from edgekit.transfer.parts import MAX_PARTIAL, PartialBlocks

BLOCK = random.Random(1).randbytes(10_000)


@given(st.lists(st.integers(1, 9_999), max_size=8), st.randoms(use_true_random=False))
def test_a_block_is_whole_once_all_of_its_parts_are_there(cuts, luck):
    """In any order, and some of them twice."""
    ends = sorted({0, *cuts, len(BLOCK)})
    parts = [(start, BLOCK[start:end]) for start, end in itertools.pairwise(ends)]
    luck.shuffle(parts)
    partial = PartialBlocks()
    for offset, data in parts[:-1]:
        assert partial.add(7, offset, len(BLOCK), data) == (True, None)
        assert partial.add(7, offset, len(BLOCK), data) == (False, None)
    assert partial.add(7, *parts[-1][:1], len(BLOCK), parts[-1][1]) == (True, BLOCK)


def test_parts_of_other_sizes_fit_together():
    """As from two controllers whose connections have other limits."""
    partial = PartialBlocks()
    for start, end in ((0, 4000), (3000, 6000), (9000, 10_000)):
        assert partial.add(0, start, len(BLOCK), BLOCK[start:end]).block is None
    assert partial.add(0, 5000, len(BLOCK), BLOCK[5000:9500]).block == BLOCK


@pytest.mark.parametrize(
    ("offset", "size", "data"),
    [(0, 0, b"x"), (0, BLOCK_BYTES + 1, b"x"), (-1, 10, b"x"), (9, 10, b"xx"), (0, 10, b""), (2**70, 10, b"x")],
)
def test_what_is_no_part_is_refused(offset, size, data):
    """Nothing outside of a block is kept."""
    with pytest.raises(DataError, match="no part of a block"):
        PartialBlocks().add(0, offset, size, data)


def test_few_blocks_are_kept():
    """Whoever sends the first part of many blocks fills no memory."""
    partial = PartialBlocks()
    for index in range(10 * MAX_PARTIAL):
        partial.add(index, 0, BLOCK_BYTES, b"x")
    assert len(partial._blocks) == MAX_PARTIAL
