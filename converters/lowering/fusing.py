"""Activations that exporters write as several operators, found again by what they compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper

from converters.graph.graph import Graph, label

PARTS = ("Mul", "Div", "Add", "Sub", "Erf", "Tanh", "Pow", "Neg", "Sqrt", "Identity")
POINTS = np.concatenate([np.linspace(-6, 6, 97), [-30.0, 30.0]]).astype(np.float32)
LARGEST = 12  # nodes of the longest form


def with_gelus(graph: Graph) -> list[Any]:
    """The nodes of `graph`, with each group that computes a gelu replaced by one Gelu node.

    Exporters write gelu in several ways. A group of scalar operators around an Erf or Tanh with one input is tried on
    points across the whole range, and is a gelu where every answer agrees.
    """
    nodes, outputs = graph.nodes, {value.name for value in graph.model.graph.output}
    for core in [node for node in nodes if node.op_type in ("Erf", "Tanh")]:
        found = _group(graph, core, outputs)
        if found is None:
            continue
        group, source, result, exact = found
        kind = "none" if exact else "tanh"
        gelu = helper.make_node("Gelu", [source], [result], name=label(core), approximate=kind)
        names = {node.output[0] for node in group}
        place = max(index for index, node in enumerate(nodes) if node.output[0] in names)
        nodes = [gelu if index == place else node for index, node in enumerate(nodes)
                 if index == place or node.output[0] not in names]  # fmt: skip
    return nodes


def _group(graph: Graph, core: Any, outputs: set[str]) -> tuple[list[Any], str, str, bool] | None:
    """The nodes of one gelu around `core`, its input, its output, and whether it is the exact one."""
    makers = {name: node for node in graph.nodes for name in node.output}
    behind, at = [core], core
    while len(behind) < LARGEST:  # forwards to the product with x that every form ends in
        readers = graph.consumers(at.output[0])
        if len(readers) != 1 or at.output[0] in outputs or readers[0].op_type not in PARTS:
            return None
        at = readers[0]
        behind.append(at)
        group, source = _closed(graph, makers, at)
        if source is not None:
            exact = _is_gelu(graph, group, source, at.output[0])
            if exact is not None and not _leaks(graph, group, at.output[0], outputs):
                return group, source, at.output[0], exact
    return None


def _closed(graph: Graph, makers: dict[str, Any], end: Any) -> tuple[list[Any], str | None]:
    """All scalar operators that `end` is made of, down to the one tensor that they share; None where there are more."""
    best: tuple[list[Any], str | None] = ([], None)
    group, frontier = [end], _inputs(graph, end)
    while frontier and len(group) <= LARGEST:
        if len(frontier) == 1 and any(node.op_type in ("Erf", "Tanh") for node in group):
            best = (group, next(iter(frontier)))
            break
        order = {node.output[0]: index for index, node in enumerate(graph.nodes)}
        latest = max((name for name in frontier if name in makers), key=lambda name: order.get(name, -1), default="")
        node = makers.get(latest)
        if node is None or node.op_type not in PARTS:
            return [], None
        group = [node, *group]
        frontier = (frontier - {latest}) | _inputs(graph, node)
    return best


def _inputs(graph: Graph, node: Any) -> set[str]:
    """What it reads, but for scalar constants."""
    constants = graph.constants
    return {name for name in node.input if not (name in constants and constants[name].size == 1)}


def _leaks(graph: Graph, group: list[Any], result: str, outputs: set[str]) -> bool:
    mine = {node.output[0] for node in group}
    readers = {name: graph.consumers(name) for name in mine - {result}}
    return any(name in outputs or any(r.output[0] not in mine for r in found) for name, found in readers.items())


def _is_gelu(graph: Graph, group: list[Any], source: str, result: str) -> bool | None:
    """True for the exact gelu, False for the one with tanh, None for something else."""
    used = {name for node in group for name in node.input if name in graph.constants}
    value = helper.make_tensor_value_info
    shape = [len(POINTS)]
    model = helper.make_model(
        helper.make_graph(
            sorted(group, key=lambda node: [n.output[0] for n in graph.nodes].index(node.output[0])),
            "gelu",
            [value(source, onnx.TensorProto.FLOAT, shape)],
            [value(result, onnx.TensorProto.FLOAT, None)],
            [onnx.numpy_helper.from_array(graph.constants[name], name) for name in sorted(used)],
        ),
        opset_imports=[helper.make_opsetid("", graph.opset)],
    )
    [found] = onnx.reference.ReferenceEvaluator(model).run(None, {source: POINTS})
    x = POINTS.astype(np.float64)
    exact = onnx.reference.ReferenceEvaluator(_erf_model()).run(None, {"x": (POINTS / np.sqrt(2)).astype(np.float32)})[
        0
    ]
    if np.allclose(found, 0.5 * x * (1 + exact), atol=1e-5):
        return True
    tanh = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return False if np.allclose(found, tanh, atol=1e-5) else None


def _erf_model() -> Any:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Erf", ["x"], ["y"])],
        "erf",
        [value("x", onnx.TensorProto.FLOAT, ["n"])],
        [value("y", onnx.TensorProto.FLOAT, ["n"])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
