"""Fold constants and drop nodes without effect, with onnxslim; drop identities only where onnxslim fails."""

from __future__ import annotations

import gc
import logging
import math

import numpy as np
import onnx
import onnxslim
from onnx import numpy_helper
from onnxslim.core.pattern.registry import get_fusion_patterns

from converters.graph.graph import Graph, attributes

_log = logging.getLogger(__name__)


class Simplify:
    """Folds constants, drops dead nodes and identities, and merges multiply-adds into convolutions."""

    name = "simplify"

    def applies(self, graph: Graph) -> bool:
        """Always True."""
        return True

    def run(self, graph: Graph) -> Graph:
        """The smaller graph; without identities only, where onnxslim fails or loses an input or output."""
        copy = onnx.ModelProto()
        copy.CopyFrom(graph.model)
        try:
            slim = onnxslim.slim(copy)
        except Exception as error:  # onnxslim raises bare Exceptions, for rare graphs; they need no simpler form
            _log.info("onnxslim cannot simplify this graph: %s: %s", type(error).__name__, error)
            return without_identities(graph)
        finally:
            _forget_matches()
            gc.collect()  # onnxslim's graph refers to itself, and holds a copy of all weights
        del slim.graph.value_info[:]  # shapes are inferred on demand; in a file they only take space
        if _reads_nothing_made(slim):
            _log.info("onnxslim removes a node whose other result is read, so its form is not used")
            return without_identities(graph)
        _widen_biases(slim.graph)
        found = Graph(slim)
        if (found.inputs, found.outputs) != (graph.inputs, graph.outputs):
            _log.info("onnxslim changes the interface of this graph, so its form is not used")
            return without_identities(graph)
        return found

    def holds(self, graph: Graph) -> bool:
        """No Identity remains, except those that make an output."""
        results = {value.name for value in graph.model.graph.output}
        return not any(node.op_type == "Identity" and node.output[0] not in results for node in graph.nodes)


def _reads_nothing_made(model: onnx.ModelProto) -> bool:
    """True if a node reads a tensor that nothing makes: onnxslim drops a Dropout also where its mask is read."""
    graph = model.graph
    made = {value.name for value in (*graph.input, *graph.initializer)}
    made |= {tensor.values.name for tensor in graph.sparse_initializer}
    made |= {name for node in graph.node for name in node.output}
    return any(name and name not in made for node in graph.node for name in node.input)


def _widen_biases(graph: onnx.GraphProto) -> None:
    """Give each Gemm one bias for each channel: onnxslim also merges the Add of a single number into it."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "Gemm" or len(node.input) < 3 or not {node.input[1], node.input[2]} <= constants.keys():
            continue
        weights, bias = constants[node.input[1]], constants[node.input[2]]
        width = weights.dims[0 if attributes(node).get("transB") else 1]
        if math.prod(bias.dims) == 1 < width:
            name = f"{bias.name}.{node.output[0]}"
            values = np.full(width, numpy_helper.to_array(bias).reshape(-1)[0])
            graph.initializer.append(numpy_helper.from_array(values, name))
            node.input[2] = name


def _forget_matches() -> None:
    """Free the nodes that onnxslim's patterns matched last: with them, the process would keep a copy of all weights."""
    for matchers in get_fusion_patterns().values():
        for matcher in matchers:
            for node in matcher.pattern.nodes:
                vars(matcher).pop(node.name, None)
            vars(matcher).pop("output", None)


def without_identities(graph: Graph) -> Graph:
    """A copy without Identity nodes, except those that make an output, and without stored shapes."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.value_info[:]
    results = {value.name for value in model.graph.output}
    origin: dict[str, str] = {}
    kept = []
    for node in model.graph.node:  # in order of execution, so the source of a copy is known before the copy
        if node.op_type == "Identity" and node.output[0] not in results:
            origin[node.output[0]] = origin.get(node.input[0], node.input[0])
        else:
            kept.append(node)
    for node in kept:
        _read_from(node, origin)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return Graph(model)


def _read_from(node: onnx.NodeProto, origin: dict[str, str]) -> None:
    """Replace the names that `node`, and its branches or loops, read."""
    for index, name in enumerate(node.input):
        node.input[index] = origin.get(name, name)
    for attribute in node.attribute:
        for inner in attribute.g.node if attribute.type == onnx.AttributeProto.GRAPH else ():
            _read_from(inner, origin)
