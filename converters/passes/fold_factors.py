"""Fold a constant factor behind a dense layer into its weights and bias.

TensorFlow's converter does the same later, when it would undo a rounding of the weights to 4 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper

from converters.graph.graph import Graph, attributes
from edgekit.tensors import Array


class FoldFactors:
    """Folds each Mul and Div by a constant for each channel that is the only reader of a MatMul or Gemm.

    An Add of a constant between them is the layer's bias. Weights that other nodes read stay: a copy would make the
    file larger.
    """

    name = "fold-factors"

    def applies(self, graph: Graph) -> bool:
        """True if at least one can be folded."""
        return next(_found(graph), None) is not None

    def run(self, graph: Graph) -> Graph:
        """The graph with new weights under new names."""
        while (factor := next(_found(graph), None)) is not None:
            graph = _folded(graph, factor)
        return graph

    def holds(self, graph: Graph) -> bool:
        """No factor that can be folded is left."""
        return not self.applies(graph)


class _Factor(NamedTuple):
    """A factor (channels,) or (1,) made by `node`, behind the layers `parts`: the dense layer, and perhaps its Add."""

    node: Any
    parts: tuple[Any, ...]
    new: dict[str, Array]  # constants with the factor in them, by the name of the old one


def _found(graph: Graph) -> Iterator[_Factor]:
    if any(one.type == onnx.AttributeProto.GRAPH for node in graph.nodes for one in node.attribute):
        return  # branches may read tensors of the graph around them
    makers = {name: node for node in graph.nodes for name in node.output}
    results = {value.name for value in graph.model.graph.output}
    reads = [name for node in graph.nodes for name in node.input]
    for node in graph.nodes:
        if node.op_type not in ("Mul", "Div"):
            continue
        for value, constant in (node.input, node.input[::-1])[: 1 + (node.op_type == "Mul")]:
            parts = _parts(graph, makers, value)
            inner = [one.output[0] for one in parts]
            if not parts or constant not in graph.constants or any(reads.count(n) > 1 or n in results for n in inner):
                continue
            new = _scaled(graph, parts, graph.constants[constant], divide=node.op_type == "Div")
            if new is not None and all(reads.count(name) == 1 for name in new):
                yield _Factor(node, parts, new)


def _parts(graph: Graph, makers: dict[str, Any], name: str) -> tuple[Any, ...]:
    """The dense layer that makes the tensor `name`, with the Add of its bias; empty for any other."""
    node = makers.get(name)
    if node is None:
        return ()
    if node.op_type in ("MatMul", "Gemm"):
        return (node,) if node.input[1] in graph.constants else ()
    if node.op_type == "Add":
        for value, bias in (node.input, node.input[::-1]):
            layer = makers.get(value)
            if bias in graph.constants and layer is not None and layer.op_type == "MatMul":
                return (layer, node) if layer.input[1] in graph.constants else ()
    return ()


def _scaled(graph: Graph, parts: tuple[Any, ...], factor: Array, *, divide: bool) -> dict[str, Array] | None:
    """Weights and bias with the factor in them; None where it does not fit, or a value would leave float32."""
    layer, weights = parts[0], graph.constants[parts[0].input[1]]
    if weights.ndim != 2 or weights.dtype != np.float32 or factor.dtype != np.float32:
        return None
    across = bool(attributes(layer).get("transB")) if layer.op_type == "Gemm" else False
    channels = weights.shape[0 if across else 1]
    names = [layer.input[1]]
    if layer.op_type == "Gemm" and len(layer.input) > 2 and layer.input[2]:
        names.append(layer.input[2])
    names += [name for one in parts[1:] for name in one.input if name in graph.constants]
    shape = factor.shape
    if factor.ndim > 2 or factor.size != (shape[-1] if shape else 1) or factor.size not in (1, channels):
        return None
    if any(name not in graph.constants for name in names) or (divide and not factor.all()):
        return None
    scale = factor.reshape(-1).astype(np.float64)
    scale = 1.0 / scale if divide else scale
    new = {}
    for index, name in enumerate(names):
        old = graph.constants[name]
        if index and (old.size not in (1, channels) or old.size != (old.shape[-1] if old.ndim else 1)):
            return None
        one = scale[:, None] if across and not index and scale.size > 1 else scale
        with np.errstate(over="ignore"):
            new[name] = (old * one).astype(np.float32)
        lost = (new[name] == 0) & ((old != 0) & (one != 0))
        if not np.isfinite(new[name]).all() or lost.any():
            return None
    return new


def _folded(graph: Graph, factor: _Factor) -> Graph:
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    stem, last = factor.node.output[0], factor.parts[-1].output[0]
    names = {name: f"{stem}.{index}" for index, name in enumerate(factor.new)}
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in names]
    kept += [numpy_helper.from_array(np.ascontiguousarray(factor.new[old]), new) for old, new in names.items()]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    inner = {one.output[0] for one in factor.parts}
    for node in list(model.graph.node):
        if node.output[0] == stem:
            model.graph.node.remove(node)
        elif node.output[0] in inner:
            node.input[:] = [names.get(name, name) for name in node.input]
            if node.output[0] == last:
                node.output[0] = stem
    infos = [value for value in model.graph.value_info if value.name != last]
    del model.graph.value_info[:]
    model.graph.value_info.extend(infos)
    read = {name for node in model.graph.node for name in node.input} | {v.name for v in model.graph.output}
    left = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(left)
    return Graph(model)
