"""Cancels the nodes at the borders against the model's own: transpositions, and axes of 1 that come and go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from onnx import helper, numpy_helper

from converters.frontends.interface.protobuf import all_graphs, rename

INVERSE = {"Squeeze": "Unsqueeze", "Unsqueeze": "Squeeze", "Transpose": "Transpose"}


def cancel_borders(model: onnx.ModelProto, borders: Sequence[str]) -> None:
    """Change `model`: merge each node named in `borders` with neighbours that undo it, and drop what nobody reads.

    An image without a batch, to which the model adds one, then enters the convolution as it is.
    """
    for name in borders:
        node = next(one for one in model.graph.node if one.name == name)
        inward = any(value.name == node.input[0] for value in model.graph.input)
        if inward:
            _merge_readers(model, node)
        else:
            _merge_maker(model, node)
    _drop_unread(model, borders)


def _merge_readers(model: onnx.ModelProto, border: Any) -> None:
    """Let the nodes that undo an input's border read the input itself."""
    results = {value.name for value in model.graph.output}
    for reader in list(model.graph.node):
        if border.output[0] != (reader.input[0] if reader.input else None) or reader.op_type != INVERSE[border.op_type]:
            continue
        order = _together(model, border, reader)
        if order is None or (not order and reader.output[0] in results):
            continue
        if order:
            reader.input[0] = border.input[0]
            _set_order(reader, order)
        else:
            rename(model, {reader.output[0]: border.input[0]})
            model.graph.node.remove(reader)


def _merge_maker(model: onnx.ModelProto, border: Any) -> None:
    """Let an output's border read what was there before a node that it undoes."""
    maker = next((node for node in model.graph.node if border.input[0] in node.output), None)
    if maker is None or maker.op_type != INVERSE[border.op_type]:
        return
    order = _together(model, maker, border)
    if order is None:
        return
    origin, result = maker.input[0], border.output[0]
    if order:
        border.input[0] = origin
        _set_order(border, order)
        return
    taken = {value.name for value in (*model.graph.input, *model.graph.output)}
    made = any(origin in node.output for node in model.graph.node)
    if made and origin not in taken:
        model.graph.node.remove(border)
        rename(model, {origin: result})


def _together(model: onnx.ModelProto, first: Any, second: Any) -> list[int] | None:
    """The transposition of two nodes in a row: empty where they cancel; None where they cannot be merged."""
    if first.op_type == "Transpose":
        one, two = _order(first), _order(second)
        if one is None or two is None or len(one) != len(two):
            return None
        both = [one[index] for index in two]
        return [] if both == sorted(both) else both
    return [] if _axes(model, first) == [0] == _axes(model, second) else None


def _order(node: Any) -> list[int] | None:
    return next((list(one.ints) for one in node.attribute if one.name == "perm"), None)


def _set_order(node: Any, order: Sequence[int]) -> None:
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("perm", list(order)))


def _axes(model: onnx.ModelProto, node: Any) -> list[int] | None:
    """The constant axes of a Squeeze or Unsqueeze; None where they are not known."""
    if len(node.input) < 2:
        return None
    found = _constants(model).get(node.input[1])
    return None if found is None else [int(axis) for axis in numpy_helper.to_array(found).reshape(-1)]


def _constants(model: onnx.ModelProto) -> Mapping[str, onnx.TensorProto]:
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            values[node.output[0]] = node.attribute[0].t
    return values


def _drop_unread(model: onnx.ModelProto, borders: Sequence[str]) -> None:
    """Remove borders, and nodes before an output's border, whose results nobody reads any more."""
    while True:
        read = {name for graph in all_graphs(model.graph) for node in graph.node for name in node.input}
        read |= {value.name for graph in all_graphs(model.graph) for value in graph.output}
        left = [
            node
            for node in model.graph.node
            if (node.name in borders or node.op_type in INVERSE) and not any(name in read for name in node.output)
        ]
        if not left:
            return
        for node in left:
            model.graph.node.remove(node)
