"""Walks over the nodes of an ONNX graph, and gives them names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx


def all_nodes(graph: Any) -> Iterator[Any]:
    """The nodes of `graph` and of every graph inside it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from all_nodes(attribute.g)


def name_nodes(model: onnx.ModelProto) -> None:
    """Give every node a unique name, for quantizers, recipes and messages; exporters may omit or repeat names."""
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):
        name = node.name or f"{node.op_type}_{index}"
        while name in taken:
            name = f"{name}_{index}"
        node.name = name
        taken.add(name)
