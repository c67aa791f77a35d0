import numpy as np
import pytest
from onnx import helper

from converters.graph.graph import Graph
from converters.passes import PlainResize, run_pass
from tests.simulators import models


@pytest.mark.parametrize("given", ["sizes", "scales"])
def test_resize_of_named_axes_gets_scales_for_all_axes(given):
    """The answers stay, with a free batch too; the axes, given in any order, are gone."""
    constants = {"z": np.array([7, 10], np.int64), "s": np.array([7 / 3, 10 / 3], np.float32)}
    inputs = ["x", "", "", "z"] if given == "sizes" else ["x", "", "s"]
    node = helper.make_node("Resize", inputs, ["y"], axes=[3, 2], mode="linear", name="up")
    model = models.model_of([node], {"x": ["batch", 2, 3, 3]}, {"y": ["batch", 2, 10, 7]}, constants)
    model.opset_import[0].version = 18
    result = run_pass(PlainResize(), Graph(model))
    assert result.modified
    assert [entry.name for entry in result.graph.nodes[0].attribute] == ["mode"]
    x = {"x": np.random.default_rng(1).normal(0, 1, (3, 2, 3, 3)).astype(np.float32)}
    np.testing.assert_allclose(result.graph.run(x)["y"], Graph(model).run(x)["y"], atol=1e-5)


def test_resize_without_axes_is_left():
    """An ordinary Resize is not touched."""
    node = helper.make_node("Resize", ["x", "", "s"], ["y"], name="up")
    constants = {"s": np.array([1, 1, 2, 2], np.float32)}
    graph = Graph(models.model_of([node], {"x": ["batch", 2, 3, 3]}, {"y": ["batch", 2, 6, 6]}, constants))
    assert not PlainResize().applies(graph)
