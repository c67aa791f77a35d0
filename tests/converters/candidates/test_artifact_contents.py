"""Contents of an artifact, as in the report."""

import pytest

from converters.backends.contract import Artifact
from converters.candidates.artifact_contents import contents_of
from tests.simulators.small_models import litert_model
from tests.simulators.weights import int8_weights, onnx_file


def artifact(file, data, runtime):
    return Artifact(file, data, runtime, (), ())


def test_every_byte_of_an_onnx_file_is_accounted_for(tmp_path):
    """The largest constants with the operator that reads them, the sum of the others, and the rest of the file."""
    data = onnx_file(int8_weights(1, *range(10, 410, 20)))
    found = contents_of(artifact("model.onnx", data, "onnxruntime"), tmp_path)
    assert found.operators == {"Identity": 1}
    sizes = [one.bytes for one in found.constants]
    assert sizes == sorted(sizes, reverse=True)
    assert (len(sizes), found.constants[0].dtype, found.constants[0].shape) == (12, "int8", (390,))
    assert sum(sizes) + found.smaller + found.rest == len(data)
    assert found.pieces is None


@pytest.mark.parametrize("quantized", [False, True])
def test_a_litert_file_tells_its_operators_and_pieces(quantized, tmp_path):
    """The number of pieces is the runtime's own."""
    data = litert_model(quantized=quantized)
    found = contents_of(artifact("model.tflite", data, "litert"), tmp_path)
    assert sum(found.operators.values()) > 0
    assert sum(one.bytes for one in found.constants) + found.smaller + found.rest == len(data)
    assert found.pieces in (0, 1)
