import gc
import weakref

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from converters.graph import constants as module
from converters.graph.constants import Constants


def graph_of(count, values):
    names = [f"w{index}" for index in range(count)]
    weights = [numpy_helper.from_array(np.full(values, index, np.float32), name) for index, name in enumerate(names)]
    nodes = [
        helper.make_node("Constant", [], ["held"], value=numpy_helper.from_array(np.arange(6).reshape(2, 3))),
        helper.make_node("Constant", [], ["listed"], value_ints=[3, 4]),
        helper.make_node("Sum", names, ["y"]),
    ]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [values])
    return helper.make_graph(nodes, "g", [], [result], initializer=weights)


def test_initializers_and_constant_nodes_are_found():
    """All values and shapes are known by name; other names are not."""
    found = Constants(graph_of(2, 5))
    assert list(found) == ["w0", "w1", "held", "listed"]
    assert len(found) == 4
    np.testing.assert_array_equal(found["held"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(found["listed"], [3, 4])
    assert found.shapes == {"w0": (5,), "w1": (5,), "held": (2, 3), "listed": (2,)}
    assert "y" not in found
    assert found.get("y") is None


def test_large_constants_are_not_kept(monkeypatch):
    """Of four arrays, only those that were used last stay in memory; one in use is not read a second time."""
    monkeypatch.setattr(module, "RECENT_BYTES", 9000)
    found = Constants(graph_of(4, 1000))
    first = found["w0"]
    alive = [weakref.ref(found[name]) for name in ("w1", "w2", "w3")]
    gc.collect()
    assert [one() is not None for one in alive] == [False, True, True]
    assert found["w0"] is first
