"""Gives every reader of a quantized constant a copy of its own.

With ``session.x64quantprecision`` ONNX Runtime 1.31 makes unsigned copies of signed constants on x86, one for each
reader and all under one name, and then refuses the model ("Attempt to replace the existing tensor"). Constants are
shared where layers share weights, and where simplification merged equal constants, as in transformers.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import onnx


def unshared(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` in which no 8-bit constant has two readers; `model` itself where it has no such constants."""
    constants = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8}
    if not constants:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _split_dequantizers(copy.graph, constants)
    _split_constants(copy.graph, constants)
    return copy


def _split_dequantizers(graph: Any, constants: set[str]) -> None:
    makers = {n.output[0]: n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants}
    times: Counter[str] = Counter()
    nodes = []
    for node in graph.node:
        for index, name in enumerate(node.input):
            times[name] += 1
            if name in makers and times[name] > 1:
                own = onnx.NodeProto()
                own.CopyFrom(makers[name])
                own.name = f"{own.name}.{times[name]}"
                node.input[index] = own.output[0] = f"{name}.{times[name]}"
                nodes.append(own)
        nodes.append(node)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(nodes)


def _split_constants(graph: Any, constants: set[str]) -> None:
    values = {t.name: t for t in graph.initializer if t.name in constants}
    times: Counter[str] = Counter()
    for node in graph.node:
        for index, name in enumerate(node.input):
            times[name] += 1
            if name in values and times[name] > 1:
                copy = onnx.TensorProto()
                copy.CopyFrom(values[name])
                copy.name = node.input[index] = f"{name}.{times[name]}"
                graph.initializer.append(copy)
