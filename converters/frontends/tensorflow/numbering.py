"""Order and names of what tf2onnx adds to graphs with Einsum, by what they compute: the same bytes in each export.

tf2onnx names helpers of Einsum by addresses in memory, sorts nodes by names, and keeps any one of equal constants.
"""

from __future__ import annotations

import re
from typing import Any

import onnx

_ADDRESS = re.compile(r"\d{10,}_")
_NUMBER = re.compile(r"__\d+(?=(:\d+)?$)")


def renumber(graph: onnx.GraphProto) -> None:
    """Where names hold addresses: sort nodes and constants by what reads them, and name them anew.

    A layer keeps its name; a constant is named by the first node that reads it.
    """
    if not any(_ADDRESS.search(tensor.name) for tensor in graph.initializer):
        return
    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        return  # a body reads tensors of this graph by their names
    nodes = _from_outputs(graph)
    ends = {value.name for value in (*graph.input, *graph.output)}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    names: dict[str, str] = {}
    for number, node in enumerate(nodes):
        node.name = _numbered(node.name, number)
        for place, name in enumerate(node.input):  # of equal constants, tf2onnx keeps any one with its name
            if name in constants and name not in ends:
                names.setdefault(name, f"{node.name or node.output[0]}/constant{place}")
        for name in (*node.input, *node.output):
            if name and name not in ends:
                names.setdefault(name, _numbered(name, len(names)))
    kept = [_copied(constants[name]) for name in names if name in constants]
    kept += [_copied(constants[name]) for name in constants if name in ends]
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for tensor in kept:
        tensor.name = names.get(tensor.name, tensor.name)
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)


def _from_outputs(graph: onnx.GraphProto) -> list[Any]:
    """The nodes that outputs need, each after those whose results it reads, in the order of its inputs."""
    makers = {name: node for node in graph.node for name in node.output}
    nodes: list[Any] = []
    done: set[int] = set()
    pending = [(makers[value.name], False) for value in reversed(graph.output) if value.name in makers]
    while pending:
        node, ready = pending.pop()
        if ready:
            nodes.append(_copied(node))
        elif id(node) not in done:
            done.add(id(node))
            pending.append((node, True))
            pending += [(makers[name], False) for name in reversed(node.input) if name in makers]
    return nodes


def _numbered(name: str, number: int) -> str:
    """`name` with this number in place of tf2onnx's own; a name without one stays."""
    plain = _NUMBER.sub("", _ADDRESS.sub("", name))
    return f"{plain}__{number}" if plain != name else name


def _copied(message: Any) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
