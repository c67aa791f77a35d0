"""Writes the sparse constants of a model as dense ones, which shape inference, passes and runtimes know."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from converters.frontends.onnx.nodes import all_nodes


def with_dense_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without sparse initializers and sparse values of Constant nodes; itself where it has none.

    Raises:
        ValueError: An index lies outside of its tensor.
    """
    if not model.graph.sparse_initializer and not any(_sparse_value(node) for node in all_nodes(model.graph)):
        return model
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for sparse in made.graph.sparse_initializer:
        made.graph.initializer.append(numpy_helper.from_array(_dense(sparse), sparse.values.name))
    del made.graph.sparse_initializer[:]
    for node in all_nodes(made.graph):
        if value := _sparse_value(node):
            dense = onnx.helper.make_attribute("value", numpy_helper.from_array(_dense(value), node.output[0]))
            del node.attribute[:]
            node.attribute.append(dense)
    return made


def _sparse_value(node: Any) -> Any | None:
    if node.op_type != "Constant":
        return None
    return next((one.sparse_tensor for one in node.attribute if one.name == "sparse_value"), None)


def _dense(sparse: Any) -> np.ndarray[Any, Any]:
    """`sparse.indices` are (count,) places in the flat tensor, or (count, axes)."""
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return dense
