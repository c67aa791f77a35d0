"""Fold batch normalization into the weights of the convolution or dense layer before it.

y = gamma * (conv(x) - mean) / sqrt(var + epsilon) + beta is a convolution with weights W * k and bias
(b - mean) * k + beta, where k = gamma / sqrt(var + epsilon), one factor per output channel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from converters.graph.graph import Graph, attributes
from edgekit.tensors import Array


class FoldBatchNorm:
    """Folds every BatchNormalization that is the only reader of a Conv or Gemm."""

    name = "fold-batch-norm"

    def applies(self, graph: Graph) -> bool:
        """True if at least one can be folded."""
        return bool(_pairs(graph))

    def run(self, graph: Graph) -> Graph:
        """The graph with new weights under new names."""
        model = onnx.ModelProto()
        model.CopyFrom(graph.model)
        folded = {norm.name or norm.output[0]: layer.output[0] for layer, norm in _pairs(graph)}
        for norm in [n for n in model.graph.node if (n.name or n.output[0]) in folded]:
            layer = next(n for n in model.graph.node if norm.input[0] in n.output)
            _fold(model, graph, layer, norm)
            model.graph.node.remove(norm)
        _drop_unused(model)
        return Graph(model)

    def holds(self, graph: Graph) -> bool:
        """No foldable BatchNormalization is left."""
        return not _pairs(graph)


def _pairs(graph: Graph) -> list[tuple[Any, Any]]:
    makers = {name: node for node in graph.nodes for name in node.output}
    results = {value.name for value in graph.model.graph.output}
    return [
        (makers[node.input[0]], node)
        for node in graph.nodes
        if node.op_type == "BatchNormalization"
        and node.input[0] in makers
        and node.input[0] not in results
        and len(graph.consumers(node.input[0])) == 1
        and all(name in graph.constants for name in node.input[1:])
        and _foldable(makers[node.input[0]], graph)
    ]


def _foldable(layer: Any, graph: Graph) -> bool:
    if layer.op_type not in ("Conv", "Gemm") or layer.input[1] not in graph.constants:
        return False
    given = attributes(layer)
    plain = layer.op_type == "Conv" or (given.get("alpha", 1.0) == 1.0 and given.get("beta", 1.0) == 1.0)
    return plain and (len(layer.input) < 3 or not layer.input[2] or layer.input[2] in graph.constants)


def _fold(model: onnx.ModelProto, graph: Graph, layer: Any, norm: Any) -> None:
    gamma, beta, mean, variance = (graph.constants[name].astype(np.float64) for name in norm.input[1:5])
    factor = gamma / np.sqrt(variance + attributes(norm).get("epsilon", 1e-5))
    weights = graph.constants[layer.input[1]]
    axis = 0 if layer.op_type == "Conv" or attributes(layer).get("transB") else 1
    shape = [1] * weights.ndim
    shape[axis] = -1
    has_bias = len(layer.input) > 2 and layer.input[2]
    bias = graph.constants[layer.input[2]].astype(np.float64) if has_bias else np.zeros_like(mean)
    stem = norm.output[0]
    new_weights = _constant(model, f"{stem}.weight", (weights * factor.reshape(shape)).astype(weights.dtype))
    new_bias = _constant(model, f"{stem}.bias", ((bias - mean) * factor + beta).astype(weights.dtype))
    layer.input[:] = [layer.input[0], new_weights, new_bias]
    layer.output[0] = norm.output[0]


def _constant(model: onnx.ModelProto, name: str, value: Array) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
    return name


def _drop_unused(model: onnx.ModelProto) -> None:
    used = {name for node in model.graph.node for name in node.input} | {v.name for v in model.graph.output}
    constants = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)
    made = {name for node in model.graph.node for name in node.output}
    infos = [value for value in model.graph.value_info if value.name in made]
    del model.graph.value_info[:]
    model.graph.value_info.extend(infos)
