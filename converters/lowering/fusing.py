"""Recognize activations that exporters write as several operators, by their values."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper

from converters.graph.graph import Graph, label

FUSED_OPERATORS = ("Mul", "Div", "Add", "Sub", "Erf", "Tanh", "Pow", "Neg", "Sqrt", "Identity")
POINTS = np.concatenate([np.linspace(-6, 6, 97), [-30.0, 30.0]]).astype(np.float32)
MAX_FUSED_NODES = 12  # nodes of the longest form


def with_gelus(graph: Graph) -> list[Any]:
    """The nodes of `graph`, with each group that computes a gelu replaced by one Gelu node.

    Exporters write gelu in several ways. A group of scalar operators around an Erf or Tanh with one input is evaluated
    on points across the whole range. It is a gelu if every value agrees.
    """
    nodes, outputs = graph.nodes, {value.name for value in graph.model.graph.output}
    for core in [node for node in nodes if node.op_type in ("Erf", "Tanh")]:
        match = _group(graph, core, outputs)
        if match is None:
            continue
        group, source, result, exact = match
        kind = "none" if exact else "tanh"
        gelu = helper.make_node("Gelu", [source], [result], name=label(core), approximate=kind)
        names = {node.output[0] for node in group}
        last = max(index for index, node in enumerate(nodes) if node.output[0] in names)
        nodes = [gelu if index == last else node for index, node in enumerate(nodes)
                 if index == last or node.output[0] not in names]  # fmt: skip
    return nodes


def gelu_results(graph: Graph) -> frozenset[str]:
    """The tensors that are the results of gelus written as several operators."""
    outputs = {value.name for value in graph.model.graph.output}
    matches = [_group(graph, node, outputs) for node in graph.nodes if node.op_type in ("Erf", "Tanh")]
    return frozenset(match[2] for match in matches if match is not None)


def with_sigmoids(graph: Graph, nodes: list[Any]) -> list[Any]:
    """`nodes`, with x / (1 + exp(t)) written as x times a Sigmoid, which has a scale of its own in 8 bits.

    In 8 bits the quotient divides by numbers that are 0, and accelerators have neither Exp nor Div.
    """
    makers = {name: node for node in nodes for name in node.output}
    outputs = {value.name for value in graph.model.graph.output}

    def made_by(kind: str, name: str) -> Any:
        """The node of this kind that makes the tensor, where nothing else reads it."""
        node = makers.get(name)
        alone = len(graph.consumers(name)) == 1 and name not in outputs
        return node if node is not None and node.op_type == kind and alone else None

    def is_one(name: str) -> bool:
        value = graph.constants.get(name)
        return value is not None and value.size == 1 and value.dtype == np.float32 and float(value.ravel()[0]) == 1.0

    new: dict[str, list[Any]] = {}
    gone: set[str] = set()
    for node in nodes:
        if node.op_type not in ("Reciprocal", "Div"):
            continue
        total = made_by("Add", node.input[-1])
        pairs = (total.input, total.input[::-1]) if total is not None else ()
        power = next((e for name, one in pairs if is_one(one) and (e := made_by("Exp", name)) is not None), None)
        if power is None:
            continue
        [result], name = node.output, label(node)
        plain = node.op_type == "Reciprocal" or is_one(node.input[0])
        share = result if plain else f"{result}/share"
        turned = made_by("Neg", power.input[0])  # of exp(-x): the Sigmoid reads x
        minus = f"{result}/minus" if turned is None else turned.input[0]
        before = [helper.make_node("Neg", [power.input[0]], [minus], name=f"{name}/minus")] if turned is None else []
        scaled = made_by("Mul", power.input[0])
        factor = next((one for one in scaled.input if one in graph.constants), None) if scaled is not None else None
        if factor is not None:  # of exp(-50x): the Sigmoid reads 50x, by the negative of the constant
            turned = scaled
            other = f"{result}/factor"
            inputs = [other if one == factor else one for one in scaled.input]
            before = [
                helper.make_node("Neg", [factor], [other], name=f"{name}/factor"),
                helper.make_node("Mul", inputs, [minus], name=label(scaled)),
            ]
        new[result] = [
            *before,
            helper.make_node("Sigmoid", [minus], [share], name=name if plain else f"{name}/share"),
            *([] if plain else [helper.make_node("Mul", [node.input[0], share], [result], name=name)]),
        ]
        gone.update((total.output[0], power.output[0], *([turned.output[0]] if turned is not None else [])))
    kept = [node for node in nodes if node.output[0] not in gone]
    return [one for node in kept for one in new.get(node.output[0], [node])]


def _group(graph: Graph, core: Any, outputs: set[str]) -> tuple[list[Any], str, str, bool] | None:
    """The nodes of one gelu around `core`, its input, its output, and True for the exact (erf) form."""
    makers = {name: node for node in graph.nodes for name in node.output}
    chain, node = [core], core
    while len(chain) < MAX_FUSED_NODES:  # forwards to the product with x that ends every form
        readers = graph.consumers(node.output[0])
        if len(readers) != 1 or node.output[0] in outputs or readers[0].op_type not in FUSED_OPERATORS:
            return None
        node = readers[0]
        chain.append(node)
        group, source = _closed(graph, makers, node)
        if source is not None:
            exact = _is_gelu(graph, group, source, node.output[0])
            if exact is not None and not _leaks(graph, group, node.output[0], outputs):
                return group, source, node.output[0], exact
    return None


def _closed(graph: Graph, makers: dict[str, Any], end: Any) -> tuple[list[Any], str | None]:
    """The scalar operators that compute `end`, and their one common input; None if they have several inputs."""
    best: tuple[list[Any], str | None] = ([], None)
    group, frontier = [end], _inputs(graph, end)
    while frontier and len(group) <= MAX_FUSED_NODES:
        if len(frontier) == 1 and any(node.op_type in ("Erf", "Tanh") for node in group):
            best = (group, next(iter(frontier)))
            break
        order = {node.output[0]: index for index, node in enumerate(graph.nodes)}
        latest = max((name for name in frontier if name in makers), key=lambda name: order.get(name, -1), default="")
        node = makers.get(latest)
        if node is None or node.op_type not in FUSED_OPERATORS:
            return [], None
        group = [node, *group]
        frontier = (frontier - {latest}) | _inputs(graph, node)
    return best


def _inputs(graph: Graph, node: Any) -> set[str]:
    """The inputs of a node, without scalar constants."""
    constants = graph.constants
    return {name for name in node.input if not (name in constants and constants[name].size == 1)}


def _leaks(graph: Graph, group: list[Any], result: str, outputs: set[str]) -> bool:
    members = {node.output[0] for node in group}
    readers = {name: graph.consumers(name) for name in members - {result}}
    return any(name in outputs or any(r.output[0] not in members for r in nodes) for name, nodes in readers.items())


def _is_gelu(graph: Graph, group: list[Any], source: str, result: str) -> bool | None:
    """True for the exact gelu, False for the tanh approximation, None for another function."""
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
    [values] = onnx.reference.ReferenceEvaluator(model).run(None, {source: POINTS})
    x = POINTS.astype(np.float64)
    exact = onnx.reference.ReferenceEvaluator(_erf_model()).run(None, {"x": (POINTS / np.sqrt(2)).astype(np.float32)})[
        0
    ]
    if np.allclose(values, 0.5 * x * (1 + exact), atol=1e-5):
        return True
    tanh = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return False if np.allclose(values, tanh, atol=1e-5) else None


def _erf_model() -> Any:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Erf", ["x"], ["y"])],
        "erf",
        [value("x", onnx.TensorProto.FLOAT, ["n"])],
        [value("y", onnx.TensorProto.FLOAT, ["n"])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
