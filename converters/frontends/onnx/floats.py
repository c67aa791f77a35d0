"""Makes every float of a model float32: weights, constants, casts, inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from converters.frontends.onnx.nodes import all_graphs, all_nodes
from converters.frontends.onnx.shapes import inferred_shapes

OTHER_FLOATS = {
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.DOUBLE: "float64",
}
FLOATS = {TensorProto.FLOAT, *OTHER_FLOATS}
# Attributes that name an element type.
TYPE_ATTRIBUTES = {"Cast": "to", "RandomNormal": "dtype", "RandomUniform": "dtype", "EyeLike": "dtype"}
TYPE_ATTRIBUTES |= {
    "RandomNormalLike": "dtype",
    "RandomUniformLike": "dtype",
    "Bernoulli": "dtype",
    "Multinomial": "dtype",
}
COARSEST_FIRST = ("bfloat16", "float16", "float32", "float64")


def precision_of(model: onnx.ModelProto) -> str:
    """The coarsest float in the model: ``bfloat16``, ``float16``, ``float32`` or ``float64``."""
    found = {OTHER_FLOATS.get(kind, "float32") for kind in _types(model) if kind in FLOATS}
    return next((name for name in COARSEST_FIRST if name in found), "float32")


def dtypes_of(model: onnx.ModelProto) -> dict[str, str]:
    """The type of each input and output of another float type than float32, by its name."""
    values = (*model.graph.input, *model.graph.output)
    return {
        value.name: OTHER_FLOATS[value.type.tensor_type.elem_type]
        for value in values
        if value.type.tensor_type.elem_type in OTHER_FLOATS
    }


def all_float32(model: onnx.ModelProto, source: str) -> onnx.ModelProto:
    """The model with float32 in place of every other float type, without the casts between them.

    A finite float64 constant that float32 cannot hold becomes the largest float32.

    Raises:
        ModelFormatError: A node does not accept its inputs.
    """
    if not any(kind in OTHER_FLOATS for kind in _types(model)):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _drop_float_casts(copy, source)
    for graph in all_graphs(copy.graph):
        for tensor in graph.initializer:
            _widen(tensor)
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type in OTHER_FLOATS:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        for node in graph.node:
            _widen_attributes(node)
    return copy


def _types(model: onnx.ModelProto) -> set[int]:
    """Every element type in the model, except the targets of casts."""
    found = set()
    for graph in all_graphs(model.graph):
        found |= {tensor.data_type for tensor in graph.initializer}
        found |= {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR:
                    found.add(attribute.t.data_type)
                elif attribute.name == TYPE_ATTRIBUTES.get(node.op_type) and attribute.i in OTHER_FLOATS:
                    found.add(attribute.i)
    return found


def _widen_attributes(node: Any) -> None:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.TENSOR:
            _widen(attribute.t)
        elif attribute.name == TYPE_ATTRIBUTES.get(node.op_type) and attribute.i in OTHER_FLOATS:
            attribute.i = TensorProto.FLOAT


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type not in OTHER_FLOATS:
        return
    value = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        wide = value.astype(np.float32)
    largest = np.finfo(np.float32).max
    overflown = np.isinf(wide) & np.isfinite(value)
    wide = np.where(overflown, np.copysign(largest, wide), wide).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))


def _drop_float_casts(model: onnx.ModelProto, source: str) -> None:
    """Turn casts from float to float into Identity, and skip those that do not make an output."""
    kinds = _tensor_types(inferred_shapes(model, source).graph)
    for graph in all_graphs(model.graph):
        results = {value.name for value in graph.output}
        skipped: dict[str, str] = {}
        for index in reversed(range(len(graph.node))):
            node = graph.node[index]
            to = next((attribute.i for attribute in node.attribute if attribute.name == "to"), 0)
            if node.op_type != "Cast" or to not in FLOATS or kinds.get(node.input[0]) not in FLOATS:
                continue
            if node.output[0] in results:
                node.op_type = "Identity"
                del node.attribute[:]
            else:
                skipped[node.output[0]] = node.input[0]
                del graph.node[index]
        _read_instead(graph, skipped)


def _tensor_types(graph: Any) -> dict[str, int]:
    """The element type of each tensor of `graph` and of the graphs inside it, where it is known."""
    kinds: dict[str, int] = {}
    for one in all_graphs(graph):
        values = (*one.input, *one.output, *one.value_info)
        kinds |= {value.name: value.type.tensor_type.elem_type for value in values}
        kinds |= {tensor.name: tensor.data_type for tensor in one.initializer}
    return kinds


def _read_instead(graph: Any, skipped: Mapping[str, str]) -> None:
    def origin(name: str) -> str:
        while name in skipped:
            name = skipped[name]
        return name

    for node in all_nodes(graph):
        for index, name in enumerate(node.input):
            if name in skipped:
                node.input[index] = origin(name)
    for inner in all_graphs(graph):
        for value in inner.output:
            if inner is not graph and value.name in skipped:
                inner.node.append(onnx.helper.make_node("Identity", [origin(value.name)], [value.name]))
