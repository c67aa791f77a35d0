import pytest

from converters.backends.tflite.operations import _copies, _dense, operations
from tests.simulators.small_models import litert_model


def test_operators_have_the_sizes_that_their_work_depends_on():
    """Every operator of the main graph is there, with elements written and read."""
    found = operations(litert_model())
    assert found
    assert all(one.columns >= 1 for one in found)
    assert {one.kind.split()[0] for one in found} >= {"SOFTMAX"}


@pytest.mark.parametrize(
    ("before", "after", "copies"), [([4, 8, 3], [4, 16, 3], 8), ([4, 8, 3], [4, 8, 9], 96), ([5], [5], 1)]
)
def test_a_tile_copies_pieces_from_its_last_repeated_axis_on(before, after, copies):
    """Small pieces take more than large ones for the same elements."""
    assert _copies(before, after) == copies


@pytest.mark.parametrize(("columns", "word"), [(64, "dense"), (60, "dense partial"), (63, "dense")])
def test_float_products_without_whole_blocks_have_kernels_of_their_own(columns, word):
    """A dense layer of 60 outputs takes about twice the instructions of one of 64."""
    assert _dense("float32*float32", 1, columns, 20).kind == f"{word} float32*float32"
    assert _dense("int8*int8", 1, columns, 20).kind == "dense int8*int8"
