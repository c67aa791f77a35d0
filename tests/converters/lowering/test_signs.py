import numpy as np

from converters.graph.graph import Graph
from converters.lowering.signs import never_negative
from tests.simulators import models

node = models.helper.make_node
IMAGE = ["batch", 2, 4, 4]


def test_only_values_that_cannot_be_negative_are_found():
    """A Relu and what keeps its sign are never negative; a convolution, a difference and a cubic resize can be."""
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("Relu", ["c"], ["r"]),
        node("Concat", ["r", "r"], ["both"], axis=1),
        node("Concat", ["r", "c"], ["mixed"], axis=1),
        node("Sub", ["r", "half"], ["less"]),
        node("Clip", ["c", "half"], ["clipped"]),
        node("Resize", ["r", "", "scales"], ["smooth"], mode="cubic"),
        node("Resize", ["r", "", "scales"], ["straight"], mode="linear"),
        node("Pad", ["r", "pads", "minus"], ["padded"]),
        node("TopK", ["c", "one"], ["values", "places"]),
    ]
    constants = {
        "w": np.ones((2, 2, 1, 1), np.float32),
        "half": np.float32(0.5),
        "minus": np.float32(-0.5),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "pads": np.zeros(8, np.int64),
        "one": np.ones(1, np.int64),
    }
    found = never_negative(Graph(models.model_of(nodes, {"x": IMAGE}, {"padded": IMAGE}, constants)))
    made = {name for one in nodes for name in one.output}
    assert found & made == {"r", "both", "clipped", "straight", "places"}
