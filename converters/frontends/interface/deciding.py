"""Finds branches and loops that the values of the inputs decide. One decision then holds for all rows of a call."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from converters.frontends.interface.protobuf import inner_graphs

SHAPES_ONLY = ("Shape", "Size")
ONE_DECISION = "a branch or loop is decided once for all rows of a call"


def decides_by_value(graph: Any, inputs: Collection[str]) -> bool:
    """True if an If, or the number of steps of a Loop, depends on the values of some of the inputs.

    Args:
        graph: The graph of a model, its nodes in order.
        inputs: Names of the inputs whose values count.
    """
    return _walk(graph, set(inputs))[1]


def _walk(graph: Any, varying: set[str]) -> tuple[set[str], bool]:
    """The tensors that depend on `varying`, and whether a decision does."""
    varying, decided = set(varying), False
    for node in graph.node:
        if node.op_type in SHAPES_ONLY:
            continue
        own, found = _loop(node, varying) if node.op_type == "Loop" else _node(node, varying)
        varying |= {name for name, moved in zip(node.output, own, strict=False) if moved and name}
        decided = decided or found
    return varying, decided


def _node(node: Any, varying: set[str]) -> tuple[list[bool], bool]:
    """Which outputs of a node vary, and whether a decision in it does."""
    read = [name in varying for name in node.input]
    given = varying if node.op_type == "If" else varying | {v.name for one in inner_graphs(node) for v in one.input}
    walks = [(inner, *_walk(inner, given)) for inner in inner_graphs(node)]
    decided = any(found for *_, found in walks) or (node.op_type == "If" and any(read))
    moved = any(read) or any(value.name in names for inner, names, _ in walks for value in inner.output)
    return [moved] * len(node.output), decided


def _loop(node: Any, varying: set[str]) -> tuple[list[bool], bool]:
    """Which outputs of a Loop vary, and whether its number of steps does. States vary once any step makes them vary."""
    [body] = inner_graphs(node)
    states = [value.name for value in body.input[2:]]
    moving = {state for state, name in zip(states, node.input[2:], strict=False) if name in varying}
    while True:
        names, decided = _walk(body, varying | moving)
        results = [value.name in names for value in body.output]
        more = {state for state, moved in zip(states, results[1:], strict=False) if moved} - moving
        if not more:
            break
        moving |= more
    decided = decided or results[0] or any(name in varying for name in node.input[:2])
    return [decided or moved for moved in results[1:]], decided
