"""Rules of the preparation of a conversion."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from converters.graph.graph import Graph
from converters.prepare import parity_rows


@pytest.mark.parametrize(("size", "rows"), [(8, 32), (4096, 32), (20_000, 20), (60_000, 8)])
def test_parity_of_large_networks_is_checked_on_fewer_rows(size, rows):
    """A check of 32 rows takes minutes where one row takes several thousand million multiply-adds."""
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 1, 1, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 80_000, 1, size])],
        [numpy_helper.from_array(np.ones((80_000, 1, 1, 1), np.float32), "w")],
    )
    assert parity_rows(Graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))) == rows
