from converters.backends.tflite.operations import operations
from tests.simulators.small_models import litert_model


def test_operators_have_the_sizes_that_their_work_depends_on():
    """Every operator of the main graph is there, with elements written and read."""
    found = operations(litert_model())
    assert found
    assert all(one.columns >= 1 for one in found)
    assert {one.kind.split()[0] for one in found} >= {"SOFTMAX"}
