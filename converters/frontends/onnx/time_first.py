"""Gives recurrent layers with ``layout`` 1 (batch first) the layout with time first: ONNX Runtime runs no other."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import helper

from converters.frontends.onnx.nodes import all_graphs, attribute_of, free_name, taken_names

RECURRENT = ("GRU", "LSTM", "RNN")
SWAPPED, Y_BATCH_FIRST = [1, 0, 2], [2, 0, 1, 3]  # Y: (time, directions, batch, hidden) to (batch, time, ...)
STATES = (5, 6)  # inputs initial_h and initial_c


def time_first(graph: Any) -> None:
    """Change `graph` and the graphs inside it in place: a Transpose before and after each such layer.

    ONNX defines ``layout`` for RNN, GRU and LSTM from opset 14 on.
    """
    taken = taken_names(graph)
    for one in all_graphs(graph):
        if not any(_batch_first(node) for node in one.node):
            continue
        nodes: list[Any] = []
        for node in one.node:
            nodes += _turned(node, taken) if _batch_first(node) else [node]
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del one.node[:]
        one.node.extend(copies)


def _batch_first(node: Any) -> bool:
    return node.op_type in RECURRENT and not node.domain and bool(attribute_of(node, "layout", 0))


def _turned(node: Any, taken: set[str]) -> list[Any]:
    """A layer with its Transposes; its inputs and outputs keep their names."""
    before, after = [], []
    for index in (0, *STATES):
        if index < len(node.input) and node.input[index]:
            name = free_name(f"{node.input[index]}_time_first", taken)
            before.append(helper.make_node("Transpose", [node.input[index]], [name], perm=SWAPPED))
            node.input[index] = name
    for index, given in enumerate(node.output):
        if given:
            node.output[index] = free_name(f"{given}_time_first", taken)
            perm = SWAPPED if index else Y_BATCH_FIRST
            after.append(helper.make_node("Transpose", [node.output[index]], [given], perm=perm))
    kept = [attribute for attribute in node.attribute if attribute.name != "layout"]
    del node.attribute[:]
    node.attribute.extend(kept)
    return [*before, node, *after]
