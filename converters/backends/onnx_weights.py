"""Stores ONNX weights as integers with a DequantizeLinear: the file is smaller, the arithmetic stays float."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from converters.backends.layers import output_axis, raise_opset, weight_names
from converters.graph.graph import Graph, attributes, label
from edgekit.tensors import Array

FOUR_BIT_OPSET = 21  # the first operator set with INT4
LEAST_TABLE = 4096  # values of a table that is worth two more operators
LEVELS_BY_BITS = {8: 127, 4: 7}


def integer_weights(graph: Graph, layers: Collection[str], *, bits: int, per_channel: bool = True) -> Graph:
    """`graph` with the weights of `layers` (labels) as symmetric integers.

    A tensor that several layers share is written once, with one scale per output channel or one scale for all.

    Raises:
        ConversionError: the graph cannot be converted to the operator set that 4 bits need.
    """
    if not layers:
        return graph
    model = onnx.ModelProto()
    model.CopyFrom(graph.model if bits > 4 else raise_opset(graph, FOUR_BIT_OPSET, "4-bit weights").model)
    written: dict[str, str] = {}
    dequantizers = []
    for node in model.graph.node:
        if label(node) not in layers:
            continue
        for name in weight_names(graph, node):
            if name not in written:
                axis = output_axis(node, graph.constants[name].ndim) if per_channel else None
                written[name] = f"weights{bits}.{len(written)}"  # short, because a file holds each name several times
                dequantizers.append(_dequantized(model, written[name], graph.constants[name], axis, bits))
            node.input[list(node.input).index(name)] = written[name]
    nodes = [*dequantizers, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    _drop_unread(model, written)
    return Graph(model)


def integer_tables(graph: Graph) -> Graph:
    """`graph` with tables of embeddings as symmetric 8-bit integers, with one scale for each row.

    Rows are read as integers and multiplied afterwards, so a run converts only the rows that it reads.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    nodes: list[Any] = []
    tables: dict[str, str] = {}
    for node in model.graph.node:
        name = node.input[0] if node.op_type == "Gather" and not attributes(node).get("axis") else ""
        table = graph.constants.get(name)
        if table is None or table.ndim != 2 or table.dtype != np.float32 or table.size < LEAST_TABLE:
            nodes.append(node)
            continue
        if name not in tables:
            tables[name] = f"table{len(tables)}"
            largest = np.abs(table.astype(np.float64)).max(axis=1, keepdims=True)
            scale = (np.where(largest == 0, 1.0, largest) / LEVELS_BY_BITS[8]).astype(np.float32)
            model.graph.initializer.append(
                numpy_helper.from_array(np.rint(table / scale).astype(np.int8), f"{tables[name]}.q")
            )
            model.graph.initializer.append(numpy_helper.from_array(scale, f"{tables[name]}.s"))
        made, own = node.output[0], label(node)
        rows = [f"{made}.rows", f"{made}.float", f"{made}.scales"]
        nodes += [
            helper.make_node("Gather", [f"{tables[name]}.q", node.input[1]], [rows[0]], name=own),
            helper.make_node("Cast", [rows[0]], [rows[1]], name=f"{own}.cast", to=TensorProto.FLOAT),
            helper.make_node("Gather", [f"{tables[name]}.s", node.input[1]], [rows[2]], name=f"{own}.scales"),
            helper.make_node("Mul", [rows[1], rows[2]], [made], name=f"{own}.scale"),
        ]
    if not tables:
        return graph
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    _drop_unread(model, tables)
    return Graph(model)


def _dequantized(model: onnx.ModelProto, name: str, values: Array, axis: int | None, bits: int) -> Any:
    """Add integers and scales of `values` to `model`. Returns the DequantizeLinear that makes `name`."""
    largest = np.abs(values.astype(np.float64))
    others = tuple(i for i in range(values.ndim) if i != axis) if axis is not None else None
    largest = largest.max(axis=others)
    scale = np.where(largest == 0, 1.0, largest) / LEVELS_BY_BITS[bits]
    shape = [-1 if i == axis else 1 for i in range(values.ndim)] if axis is not None else []
    integers = np.clip(np.rint(values / scale.reshape(shape)), -LEVELS_BY_BITS[bits], LEVELS_BY_BITS[bits]).astype(
        np.int8
    )
    zero = np.zeros(scale.shape, np.int8)  # without it, ONNX Runtime assumes a scalar and refuses the model
    model.graph.initializer.append(_tensor(f"{name}.q", integers, bits))
    model.graph.initializer.append(numpy_helper.from_array(scale.astype(np.float32), f"{name}.s"))
    model.graph.initializer.append(_tensor(f"{name}.z", zero, bits))
    where = {} if axis is None else {"axis": axis}
    inputs = [f"{name}.q", f"{name}.s", f"{name}.z"]
    return helper.make_node("DequantizeLinear", inputs, [name], name=f"{name}.d", **where)


def _tensor(name: str, integers: Array, bits: int) -> Any:
    if bits == 8:
        return numpy_helper.from_array(integers, name)
    nibbles = np.append(integers.ravel(), np.zeros(integers.size % 2, np.int8)).astype(np.uint8) & 15
    packed = (nibbles[::2] | (nibbles[1::2] << 4)).astype(np.uint8)  # the first value is in the lower half
    return helper.make_tensor(name, TensorProto.INT4, list(integers.shape), packed.tobytes(), raw=True)


def _drop_unread(model: onnx.ModelProto, names: Collection[str]) -> None:
    read = {name for node in model.graph.node for name in node.input} | {v.name for v in model.graph.output}
    needed = [t for t in model.graph.initializer if t.name in read or t.name not in names]
    del model.graph.initializer[:]
    model.graph.initializer.extend(needed)
    nodes = [n for n in model.graph.node if n.op_type != "Constant" or n.output[0] in read or n.output[0] not in names]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
