"""Walks over the nodes of an ONNX graph and of the graphs inside it, and names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx

from converters.graph.graph import label
from edgekit.errors import UnsupportedOpError

RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")


def all_graphs(graph: Any) -> Iterator[Any]:
    """`graph` and every graph inside it."""
    yield graph
    for node in graph.node:
        for inner in inner_graphs(node):
            yield from all_graphs(inner)


def inner_graphs(node: Any) -> Iterator[Any]:
    """The graphs in the attributes of a node: branches and bodies of loops."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def all_nodes(graph: Any) -> Iterator[Any]:
    """The nodes of `graph` and of every graph inside it."""
    for one in all_graphs(graph):
        yield from one.node


def taken_names(graph: Any) -> set[str]:
    """Every name of a tensor in `graph` and in the graphs inside it."""
    taken = set()
    for one in all_graphs(graph):
        taken |= {value.name for value in (*one.input, *one.output, *one.initializer)}
        taken |= {name for node in one.node for name in (*node.input, *node.output)}
    return taken


def free_name(wanted: str, taken: set[str]) -> str:
    """`wanted`, or with a number where it is taken; the result is then taken."""
    name, number = wanted, 0
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    taken.add(name)
    return name


def name_nodes(model: onnx.ModelProto) -> None:
    """Give every node a unique name, for quantizers, recipes and messages; exporters may omit or repeat names."""
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):
        name = node.name or f"{node.op_type}_{index}"
        while name in taken:
            name = f"{name}_{index}"
        node.name = name
        taken.add(name)


def attribute_of(node: Any, name: str, default: Any) -> Any:
    """The value of an attribute, bytes as text; `default` where the node does not have it."""
    for attribute in node.attribute:
        if attribute.name == name:
            value = onnx.helper.get_attribute_value(attribute)
            return value.decode() if isinstance(value, bytes) else value
    return default


def no_standard_form(node: Any, why: str, *, advice: str) -> UnsupportedOpError:
    """The error for an operator of another domain that is used in a way which standard operators lack."""
    return UnsupportedOpError(
        f"{node.domain}::{node.op_type}",
        label(node),
        backend=f"any target: it has no standard form, since {why}",
        advice=advice,
    )


def drop_unread(graph: Any) -> None:
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
