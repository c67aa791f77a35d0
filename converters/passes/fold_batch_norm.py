"""Fold batch normalization into the weights of the convolution or dense layer before it.

y = gamma * (conv(x) - mean) / sqrt(var + epsilon) + beta is a convolution with weights W * k and bias
(b - mean) * k + beta, where k = gamma / sqrt(var + epsilon), one factor per output channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

from converters.graph.graph import Graph, attributes
from edgekit.tensors import Array


class FoldBatchNorm:
    """Folds every BatchNormalization that is the only reader of a Conv, Gemm or MatMul.

    A Flatten or Reshape to two axes may stand between them where it keeps the channels: Conv, Flatten,
    BatchNormalization is the end of networks for face embeddings.
    """

    name = "fold-batch-norm"

    def applies(self, graph: Graph) -> bool:
        """True if at least one can be folded."""
        return bool(_pairs(graph))

    def run(self, graph: Graph) -> Graph:
        """The graph with new weights under new names."""
        model = onnx.ModelProto()
        model.CopyFrom(graph.model)
        makers = {name: node for node in model.graph.node for name in node.output}
        for pair in _pairs(graph):
            _fold(model, graph, makers[pair.layer.output[0]], makers[pair.norm.output[0]])
        _drop_unused(model)
        return Graph(model)

    def holds(self, graph: Graph) -> bool:
        """No foldable BatchNormalization is left."""
        return not _pairs(graph)


class _Pair(NamedTuple):
    layer: Any
    norm: Any


def _pairs(graph: Graph) -> list[_Pair]:
    makers = {name: node for node in graph.nodes for name in node.output}
    results = {value.name for value in graph.model.graph.output}
    found = []
    for norm in graph.nodes:
        if norm.op_type != "BatchNormalization" or not all(name in graph.constants for name in norm.input[1:]):
            continue
        made = _only_read(graph, makers, results, norm.input[0])
        reshaped = made is not None and made.op_type in ("Flatten", "Reshape")
        layer = _only_read(graph, makers, results, made.input[0]) if made is not None and reshaped else made
        if layer is None or not _foldable(layer, graph):
            continue
        if (not reshaped and layer.op_type != "MatMul") or _keeps_channels(graph, layer, norm):
            found.append(_Pair(layer, norm))
    return found


def _only_read(graph: Graph, makers: Mapping[str, Any], results: set[str], name: str) -> Any | None:
    """The node that makes the tensor, where one node reads it and it is no result."""
    return makers.get(name) if name not in results and len(graph.consumers(name)) == 1 else None


def _keeps_channels(graph: Graph, layer: Any, norm: Any) -> bool:
    """True if the second of two axes of the BatchNormalization's input is the channels of `layer`."""
    before, after = graph.shapes.get(layer.output[0], ()), graph.shapes.get(norm.input[0], ())
    channels = graph.constants[norm.input[3]].size
    if len(after) != 2 or after[1] != channels:
        return False
    if layer.op_type == "Conv":
        return len(before) > 2 and before[1] == channels and all(size == 1 for size in before[2:])
    return bool(before) and before[-1] == channels


def _foldable(layer: Any, graph: Graph) -> bool:
    if layer.op_type not in ("Conv", "Gemm", "MatMul") or layer.input[1] not in graph.constants:
        return False
    if layer.op_type == "MatMul":
        return graph.constants[layer.input[1]].ndim == 2
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
    if layer.op_type == "MatMul":  # it has no bias of its own
        layer.input[1] = new_weights
        norm.CopyFrom(helper.make_node("Add", [norm.input[0], new_bias], [norm.output[0]], name=norm.name))
        return
    layer.input[:] = [layer.input[0], new_weights, new_bias]
    before = next(node for node in model.graph.node if norm.input[0] in node.output)
    before.output[0] = norm.output[0]
    model.graph.node.remove(norm)


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
