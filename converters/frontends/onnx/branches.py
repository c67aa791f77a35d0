"""Folds If: where a constant, a fixed input or a known size decides, the branch takes the place of the node."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import helper, numpy_helper

from converters.frontends.onnx.known_values import known_values
from converters.frontends.onnx.nodes import all_graphs, all_nodes, attribute_of, drop_unread, free_name, taken_names
from converters.frontends.onnx.repair import give_outputs_nodes
from converters.frontends.onnx.shapes import known_shapes
from edgekit.tensors import Array


def fold_branches(model: onnx.ModelProto, source: str) -> onnx.ModelProto:
    """The model without those If nodes whose condition is known; nested ones too. Others stay.

    Raises:
        ModelFormatError: A node does not accept its inputs.
    """
    while any(node.op_type == "If" for node in model.graph.node):
        model, known = _with_known_values(model, source)
        decided = [
            index
            for index, node in enumerate(model.graph.node)
            if node.op_type == "If" and node.input[0] in known and known[node.input[0]].size == 1
        ]
        if not decided:
            break
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        del copy.graph.value_info[:]
        for index in reversed(decided):
            _replace(copy.graph, index, bool(known[copy.graph.node[index].input[0]].reshape(-1)[0]))
        drop_unread(copy.graph)
        model = copy
    return model


def _with_known_values(model: onnx.ModelProto, source: str) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The model with known values as constants, and these values.

    Shape inference sees constants, for example the pads of a Pad, and then settles more sizes; so this is repeated.
    """
    while True:
        known = known_values(model, known_shapes(model, source))
        computed = [
            index
            for index, node in enumerate(model.graph.node)
            if node.op_type != "Constant" and all(name in known for name in node.output if name)
        ]
        if not computed:
            return model, known
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        del copy.graph.value_info[:]
        for index in reversed(computed):
            names = [name for name in copy.graph.node[index].output if name]
            copy.graph.initializer.extend(numpy_helper.from_array(known[name], name) for name in names)
            del copy.graph.node[index]
        give_outputs_nodes(copy.graph)
        model = copy


def _replace(graph: Any, index: int, condition: bool) -> None:
    """Put the nodes of a branch where the If node is."""
    node = graph.node[index]
    branch = onnx.GraphProto()
    branch.CopyFrom(attribute_of(node, "then_branch" if condition else "else_branch", None))
    _rename(branch, _new_names(branch, taken_names(graph), list(node.output)))
    results = [
        helper.make_node("Identity", [value.name], [name])
        for value, name in zip(branch.output, node.output, strict=True)
        if name and value.name != name
    ]
    rest = list(graph.node)[index + 1 :]
    del graph.node[index:]
    graph.node.extend([*branch.node, *results, *rest])
    graph.initializer.extend(branch.initializer)


def _new_names(branch: Any, taken: set[str], outputs: list[str]) -> dict[str, str]:
    """A free name for each tensor that the branch makes; a result of a node gets the name of the If's output."""
    made = [name for node in branch.node for name in node.output if name]
    names: dict[str, str] = {}
    for value, name in zip(branch.output, outputs, strict=True):
        if name and value.name in made and value.name not in names:
            names[value.name] = name
    for name in (*made, *(tensor.name for tensor in branch.initializer)):
        if name not in names:
            names[name] = free_name(name, taken)
    return names


def _rename(branch: Any, names: dict[str, str]) -> None:
    for tensor in branch.initializer:
        tensor.name = names[tensor.name]
    for graph in all_graphs(branch):
        for value in graph.output:
            value.name = names.get(value.name, value.name)
    for node in all_nodes(branch):
        for side in (node.input, node.output):
            for index, name in enumerate(side):
                side[index] = names.get(name, name)
