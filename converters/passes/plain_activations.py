"""Write activations that an accelerator lacks as operators that it has; the answers are the same up to rounding."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from converters.graph.graph import Graph, attributes
from edgekit.tensors import Array

# The operator of TensorFlow Lite that each operator of ONNX becomes.
BECOMES = {"Neg": "NEG", "LeakyRelu": "LEAKY_RELU", "HardSwish": "HARD_SWISH", "PRelu": "PRELU"}
UNQUANTIZED = ("NEG", "LEAKY_RELU", "PRELU")  # stay float in int8 files: litert-quantizer does not know them
LEAKY_SLOPE = 0.01  # ONNX's default


class PlainActivations:
    """Replaces the negation, the rectifiers with a slope and the hard swish.

    Args:
        operators: Operators of TensorFlow Lite that the target runs, in integers only; activations among them stay
            where the quantizer knows them.
    """

    name = "plain-activations"

    def __init__(self, operators: Collection[str]) -> None:
        self._missing = {name for name, kind in BECOMES.items() if kind not in operators or kind in UNQUANTIZED}

    def applies(self, graph: Graph) -> bool:
        """True if the graph has an activation that the target lacks."""
        return any(self._replaced(node, graph) for node in graph.nodes)

    def run(self, graph: Graph) -> Graph:
        """The graph with other operators of the same names in their place."""
        model = onnx.ModelProto()
        model.CopyFrom(graph.model)
        del model.graph.node[:]
        for node in graph.nodes:
            if not self._replaced(node, graph):
                model.graph.node.append(node)
                continue
            nodes, constants = _prelu(node, graph) if node.op_type == "PRelu" else _WRITTEN[node.op_type](node)
            model.graph.node.extend(nodes)
            model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
        return Graph(model)

    def holds(self, graph: Graph) -> bool:
        """No such activation is left."""
        return not self.applies(graph)

    def _replaced(self, node: Any, graph: Graph) -> bool:
        if node.op_type == "PRelu" and node.input[1] not in graph.constants:
            return False
        return node.op_type in self._missing and node.domain in ("", "ai.onnx")


Written = tuple[list[Any], dict[str, Array]]  # nodes and constants


def _negated(node: Any) -> Written:
    """Twice x from x: TensorFlow's converter makes the negation of a product with -1 and of a difference from 0."""
    result, twice = node.output[0], f"{node.output[0]}.twice"
    nodes = [
        helper.make_node("Mul", [node.input[0], f"{result}.two"], [twice], f"{node.name}/twice"),
        helper.make_node("Sub", [node.input[0], twice], [result], node.name),
    ]
    return nodes, {f"{result}.two": np.array([2.0], np.float32)}


def _leaky(node: Any) -> Written:
    return _sloped(node, np.array(attributes(node).get("alpha", LEAKY_SLOPE), np.float32))


def _prelu(node: Any, graph: Graph) -> Written:
    return _sloped(node, graph.constants[node.input[1]])


def _sloped(node: Any, slope: Array) -> Written:
    """The slope times x, and the rest of the slope times the rectified x; `slope` is one number or one a channel."""
    result, x = node.output[0], node.input[0]
    names = {part: f"{result}.{part}" for part in ("positive", "slope", "rest")}
    nodes = [
        helper.make_node("Relu", [x], [names["positive"]], node.name),
        helper.make_node("Mul", [x, names["slope"]], [f"{result}.sloped"], f"{node.name}/sloped"),
        helper.make_node("Mul", [names["positive"], names["rest"]], [f"{result}.above"], f"{node.name}/above"),
        helper.make_node("Add", [f"{result}.sloped", f"{result}.above"], [result], f"{node.name}/sum"),
    ]
    return nodes, {names["slope"]: slope, names["rest"]: np.asarray(1.0 - slope, np.float32)}


def _hard_swish(node: Any) -> Written:
    """A third of x times half of the gate: TensorFlow's converter makes one operator of x times a sixth of it."""
    result, x = node.output[0], node.input[0]
    names = {part: f"{result}.{part}" for part in ("moved", "gate", "half", "third", "zero", "three", "six")}
    values = {"half": 0.5, "third": 1 / 3, "zero": 0.0, "three": 3.0, "six": 6.0}
    nodes = [
        helper.make_node("Add", [x, names["three"]], [names["moved"]], f"{node.name}/moved"),
        helper.make_node("Clip", [names["moved"], names["zero"], names["six"]], [names["gate"]], node.name),
        helper.make_node("Mul", [names["gate"], names["half"]], [f"{result}.halved"], f"{node.name}/halved"),
        helper.make_node("Mul", [x, names["third"]], [f"{result}.part"], f"{node.name}/part"),
        helper.make_node("Mul", [f"{result}.part", f"{result}.halved"], [result], f"{node.name}/scaled"),
    ]
    return nodes, {names[part]: np.array(value, np.float32) for part, value in values.items()}


_WRITTEN = {"Neg": _negated, "LeakyRelu": _leaky, "HardSwish": _hard_swish}
