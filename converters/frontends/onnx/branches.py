"""Folds If: where a constant, a fixed input or a known size decides, the branch takes the place of the node."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import helper

from converters.frontends.onnx.known_values import Sizes, known_values
from converters.frontends.onnx.nodes import all_graphs, all_nodes, attribute_of, free_name, inner_graphs, taken_names
from converters.frontends.onnx.shapes import inferred_shapes


def fold_branches(model: onnx.ModelProto, source: str) -> onnx.ModelProto:
    """The model without those If nodes whose condition is known; nested ones too. Others stay.

    Raises:
        ModelFormatError: A node does not accept its inputs.
    """
    while any(node.op_type == "If" for node in model.graph.node):
        known = known_values(model, _shapes(model, source))
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
        _drop_unread(copy.graph)
        model = copy
    return model


def _shapes(model: onnx.ModelProto, source: str) -> dict[str, Sizes]:
    graph = inferred_shapes(model, source).graph
    return {
        value.name: tuple(
            int(dim.dim_value) if dim.HasField("dim_value") and dim.dim_value >= 0 else None
            for dim in value.type.tensor_type.shape.dim
        )
        for value in (*graph.input, *graph.value_info)
        if value.type.tensor_type.HasField("shape")
    }


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


def _drop_unread(graph: Any) -> None:
    """Remove nodes and weights whose results nobody reads."""
    read = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if any(name in read for name in node.output):
            kept.append(node)
            read |= set(node.input)
            for inner in inner_graphs(node):
                read |= {name for child in all_nodes(inner) for name in child.input}
                read |= {value.name for one in all_graphs(inner) for value in one.output}
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(kept)]
    del graph.node[:]
    graph.node.extend(nodes)
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in read:
            del graph.initializer[index]
