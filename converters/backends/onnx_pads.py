"""Keeps ONNX Runtime from merging padding into a MaxPool, which changes answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from converters.graph.graph import Graph, attributes
from converters.lowering.signs import never_negative

SMALLEST = float(np.finfo(np.float32).tiny)  # any value but 0 that rounds to 0 in each precision would do


def unmerged_pads(graph: Graph) -> Graph:
    """`graph`, where zeros that are put around the input of a MaxPool are the smallest normal float32 instead.

    ONNX Runtime (1.31 and before, its optimizer Pad_Fusion) takes a Pad with zeros for the padding of the MaxPool that
    reads it, which is minus infinity; that is wrong where a value may be negative. It does so for the value 0 only.
    """
    positive, constants = never_negative(graph), graph.constants
    places = [
        index
        for index, node in enumerate(graph.nodes)
        if node.op_type == "Pad" and node.input[0] not in positive and _merged(graph, node, constants)
    ]
    if not places:
        return graph
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    for index in places:
        node = model.graph.node[index]
        name = f"{node.output[0]}.fill"
        node.input[:] = [*node.input[:2], name]
        model.graph.initializer.append(numpy_helper.from_array(np.float32(SMALLEST), name))
    return Graph(model)


def _merged(graph: Graph, node: Any, constants: Mapping[str, Any]) -> bool:
    """True for a Pad with zeros that only a MaxPool reads."""
    readers = [reader.op_type for reader in graph.consumers(node.output[0])]
    if readers != ["MaxPool"] or attributes(node).get("mode", "constant") != "constant" or len(node.input) > 3:
        return False
    value = constants.get(node.input[2]) if len(node.input) == 3 and node.input[2] else np.float32(0)
    return value is not None and value.dtype == np.float32 and value.size == 1 and float(np.reshape(value, ())) == 0.0
