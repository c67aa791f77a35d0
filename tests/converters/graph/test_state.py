"""State by name: hints for outputs that look like the next value of an input."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from converters.graph.graph import Graph
from converters.graph.state import likely_state, state_hint, with_state


def graph_of(*pairs: tuple[str, str]) -> Graph:
    """A graph with an input ``x``, an output ``y``, and a pair of tensors (N, 4) for each of `pairs`."""
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    nodes += [helper.make_node("Tanh", [one], [other]) for one, other in pairs]

    def info(name: str, size: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])

    inputs = [info("x", 3), *(info(one, 4) for one, _ in pairs)]
    outputs = [info("y", 3), *(info(other, 4) for _, other in pairs)]
    return Graph(helper.make_model(helper.make_graph(nodes, "g", inputs, outputs)))


@pytest.mark.parametrize(
    ("fed", "output"),
    [("h", "hn"), ("state", "stateN"), ("state", "new_state"), ("c_in", "c_out"), ("h0", "hn"), ("prev.h", "next.h")],
)
def test_state_is_recognized_by_shape_and_name(fed: str, output: str) -> None:
    """The hint is ready to paste, and is gone once the state is named."""
    graph = graph_of((fed, output))
    assert likely_state(graph) == {output: fed}
    assert state_hint(graph).endswith(f"give --state {output}={fed}")
    assert state_hint(with_state(graph, {output: fed})) == ""


@pytest.mark.parametrize("pairs", [(), (("image", "mask"),), (("input_a", "output_b"),)])
def test_other_outputs_give_no_hint(pairs: tuple[tuple[str, str], ...]) -> None:
    """Equal shapes alone are no state."""
    assert state_hint(graph_of(*pairs)) == ""


def test_a_model_with_nothing_else_gives_no_hint() -> None:
    """An autoencoder's only output is not its state."""
    node = helper.make_node("Relu", ["x"], ["x_out"])
    infos = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4])] for name in ("x", "x_out")]
    assert state_hint(Graph(helper.make_model(helper.make_graph([node], "g", *infos)))) == ""
