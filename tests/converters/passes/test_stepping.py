"""Values of tensors at one place of a graph."""

import numpy as np
import pytest
from onnx import helper

from converters.data.samples import Samples
from converters.graph.graph import Graph
from converters.passes import stepping
from converters.passes.stepping import Stepper, chunks_of
from converters.passes.weights import dense_layers, tensors_of_rows, with_layer
from tests.simulators.models import model_of


def branches():
    """A residual block beside a scaled branch that a Constant node shapes, and two outputs."""
    rng = np.random.default_rng(3)
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="one", pads=[1, 1, 1, 1]),
        helper.make_node("Constant", [], ["shape"], value=helper.make_tensor("s", 7, [3], [1, 4, 36])),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "w2"], ["b"], name="two", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["x", "w3"], ["c"], name="side"),
        helper.make_node("Add", ["b", "c"], ["d"], name="sum"),
        helper.make_node("Conv", ["d", "w4"], ["e"], name="three"),
        helper.make_node("Add", ["e", "a"], ["y"], name="skip"),
        helper.make_node("Reshape", ["d", "shape"], ["z"], name="flat"),
    ]
    shapes = {"w1": (4, 3, 3, 3), "w2": (4, 4, 3, 3), "w3": (4, 3, 1, 1), "w4": (4, 4, 1, 1)}
    weights = {name: rng.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}
    return Graph(model_of(nodes, {"x": [1, 3, 6, 6]}, {"y": [1, 4, 6, 6], "z": [1, 4, 36]}, weights))


@pytest.fixture(scope="module")
def samples():
    return Samples({"x": np.random.default_rng(0).normal(0, 1, (20, 3, 6, 6)).astype(np.float32)}, None)


def all_at(graph, name, samples):
    return [values[name] for values in tensors_of_rows(graph, [name], samples)]


def test_values_behind_changed_layers_equal_a_run_from_the_inputs(samples):
    """Layer by layer: the values after each change are those of the whole changed graph, through branches too."""
    graph = branches()
    stepper, changed = Stepper(graph, chunks_of(graph, samples)), graph
    for layer in dense_layers(graph):
        stepper.value(layer.node.input[0])
        for name in (layer.node.input[0], layer.output):
            np.testing.assert_allclose(stepper.peek(name), all_at(changed, name, samples), atol=1e-5)
        changed = with_layer(changed, layer, layer.matrix * 0.7, None)
        stepper.change({layer.weight_name: changed.constants[layer.weight_name]}, {})
    for name in ("y", "z"):
        np.testing.assert_allclose(stepper.peek(name), all_at(changed, name, samples), atol=1e-5)


def test_a_step_back_changes_nothing(samples):
    """After a step to a later tensor, an earlier one that is still read has its values, and later ones stay."""
    graph = branches()
    stepper = Stepper(graph, chunks_of(graph, samples))
    stepper.value("d")
    np.testing.assert_allclose(stepper.value("a"), all_at(graph, "a", samples), atol=1e-5)
    np.testing.assert_allclose(stepper.peek("y"), all_at(graph, "y", samples), atol=1e-5)
    assert stepper.value("r") is None


def test_rows_are_fewer_where_values_are_large(samples, monkeypatch):
    """The values that are kept bound the rows, down to a least number; all rows fit for a small graph."""
    graph = branches()
    assert graph.live_bytes == 4 * 36 * 16  # a, d, e and y: the shape is a constant
    assert len(chunks_of(graph, samples)) == 20
    assert len(chunks_of(graph, samples, most=7)) == 7
    monkeypatch.setattr(stepping, "MEMORY_BYTES", 18 * graph.live_bytes)
    assert len(chunks_of(graph, samples, least=16)) == 18
    monkeypatch.setattr(stepping, "MEMORY_BYTES", 1)
    assert len(chunks_of(graph, samples, least=16)) == 16
