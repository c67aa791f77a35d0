"""Writes of one value where a mask is true (``x[mask] = 0``), which exporters make of a list of places.

The size of the list depends on the data; the answer's does not. Where writes the same without the list.
"""

from __future__ import annotations

import math
from typing import Any

import onnx
from onnx import helper, numpy_helper

SPREADING = ("Expand", "Reshape", "Unsqueeze", "Identity", "Tile")  # of one value to a list


def with_masked_writes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with Where in place of NonZero, Transpose and ScatterND that write one value.

    Args:
        model: A parsed model; the same one is returned where it has no such writes.
    """
    if not any(node.op_type == "NonZero" for node in model.graph.node):
        return model
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    reader = _Reader(changed.graph, onnx.shape_inference.infer_shapes(model).graph)
    found = 0
    for place, node in enumerate(changed.graph.node):
        if (write := reader.masked_write(node)) is not None:
            mask, value = write
            where = helper.make_node("Where", [mask, value, node.input[0]], list(node.output), name=node.name)
            changed.graph.node[place].CopyFrom(where)
            found += 1
    if not found:
        return model
    _drop_unread(changed.graph)
    return changed


class _Reader:
    """Where the tensors of a graph come from.

    Args:
        graph: The graph.
        inferred: The same graph with the shapes that inference found.
    """

    def __init__(self, graph: Any, inferred: Any) -> None:
        self._makers = {name: node for node in graph.node for name in node.output}
        self._constants = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
        typed = (*inferred.value_info, *inferred.input, *inferred.output)
        self._shapes = {value.name: _sizes(value) for value in typed if _has_shape(value)}
        self._shapes.update({tensor.name: [*tensor.dims] for tensor in graph.initializer})

    def masked_write(self, node: Any) -> tuple[str, str] | None:
        """The mask, and a tensor of the one value that `node` writes where it is true; None for any other node."""
        if node.op_type != "ScatterND" or _attribute(node, "reduction", b"none") != b"none":
            return None
        turned = self._maker(node.input[1], "Transpose")
        places = self._maker(turned.input[0], "NonZero") if turned is not None else None
        if places is None or turned is None or list(_attribute(turned, "perm", [1, 0])) != [1, 0]:
            return None
        mask, value = places.input[0], self._one_value(node.input[2])
        sizes = self._shapes.get(mask)
        # Where would repeat a mask that is smaller than the tensor, and add the axes of a value that has more.
        fits = sizes is not None and None not in sizes and sizes == self._shapes.get(node.input[0])
        return (mask, value) if fits and value and len(self._shapes.get(value, ())) <= len(sizes or ()) else None

    def _maker(self, name: str, kind: str) -> Any:
        node = self._makers.get(name)
        return node if node is not None and node.op_type == kind else None

    def _one_value(self, name: str) -> str:
        """The tensor of one element that `name` repeats; empty where there is none."""
        for _ in range(len(self._makers) + 1):
            node = self._makers.get(name)
            if self._constants.get(name) == 1 or (node is not None and _is_one_constant(node)):
                return name
            if node is None or node.op_type not in SPREADING:
                return ""
            name = node.input[0]
        return ""


def _sizes(value: Any) -> list[int | str | None]:
    """The sizes of a tensor: numbers, names of free axes, and None for what is not known."""
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in dims]


def _has_shape(value: Any) -> bool:
    return bool(value.type.tensor_type.HasField("shape"))


def _is_one_constant(node: Any) -> bool:
    value = _attribute(node, "value", None) if node.op_type == "Constant" else None
    return isinstance(value, onnx.TensorProto) and numpy_helper.to_array(value).size == 1


def _attribute(node: Any, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name), default)


def _drop_unread(graph: Any) -> None:
    """Remove the nodes whose outputs nobody reads, the last first."""
    read = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if any(name in read for name in node.output) or any(entry.HasField("g") for entry in node.attribute):
            read.update(node.input)
            for entry in node.attribute:
                read.update(name for inner in entry.g.node for name in inner.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
