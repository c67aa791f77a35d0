"""Finds operators whose number of results depends on the data, and where to cut a model before them.

Such operators (NonMaxSuppression, NonZero, ...) end detection models. Bundles have outputs of fixed sizes; the steps
after the model (edgekit.preprocess) take the place of the operators that a cut removes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import numpy_helper

from converters.frontends.onnx.known_values import value_of_constant
from converters.frontends.onnx.nodes import all_nodes, attribute_of, inner_graphs
from converters.graph.graph import label
from edgekit.errors import UnsupportedOpError
from edgekit.tensors import Array

DATA_DEPENDENT = ("Compress", "NonMaxSuppression", "NonZero", "StringSplit", "Unique")
SHAPES_ONLY = ("Shape", "Size")
FEWEST_CHANNELS = 5  # of a tensor with boxes and scores: 4 numbers of a box and one class
LONGEST_TAIL = 200  # nodes at the end of a model that may convert boxes
Sizes = tuple[int | None, ...]


class Tail(msgspec.Struct, frozen=True):
    """The part of a model behind its first data-dependent operator.

    Attributes:
        operator, layer: The first such operator.
        outputs: The model's outputs that depend on it, and have no fixed sizes.
        cut: Tensors before it, where the model can be cut, with their shapes.
        suppression: The NonMaxSuppression, if the tail has exactly one, and a step can take its place.
        raw: The first tensor of `cut` has boxes and scores together: (B, 4 + classes, M) or (B, M, 4 + classes).
    """

    operator: str
    layer: str
    outputs: tuple[str, ...]
    cut: dict[str, Sizes]
    suppression: Suppression | None = None
    raw: bool = False


class Suppression(msgspec.Struct, frozen=True):
    """A NonMaxSuppression and its settings.

    Attributes:
        boxes, scores: Its input tensors: boxes (B, M, 4), and scores (B, classes, M).
        centers: Boxes are centers and sizes; otherwise two corners.
        overlap: Intersection over union above which a box is dropped.
        least: Lower scores are ignored.
        most: Largest number of boxes per class.
    """

    boxes: str
    scores: str
    centers: bool
    overlap: float
    least: float
    most: int


def tail_of(model: onnx.ModelProto, shapes: Mapping[str, Sizes]) -> Tail | None:
    """The data-dependent tail of a model; None where all its outputs have sizes that do not depend on the data.

    Args:
        model: The model, with declared shapes of its outputs that inference agrees with.
        shapes: The shape of each tensor of known rank, None for a free or unknown size.
    """
    first, tainted = _tainted(model.graph)
    if first is None:
        return None
    symbols = {dim.dim_param for value in model.graph.input for dim in value.type.tensor_type.shape.dim} - {""}
    outputs = tuple(value.name for value in model.graph.output if value.name in tainted and not _fixed(value, symbols))
    if not outputs:
        return None
    kept = [value.name for value in model.graph.output if value.name not in tainted]
    suppressions = [node for node in model.graph.node if node.op_type == "NonMaxSuppression"]
    found = _suppression(suppressions[0], model.graph) if len(suppressions) == 1 else None
    names, raw = list(_frontier(model.graph, tainted)), False
    if found is not None and not {found.boxes, found.scores} & tainted:
        names = [found.boxes, _before_transpose(found.scores, model.graph)]
    elif found is not None and (predictions := _predictions(model.graph, tainted, shapes)):
        names, raw = [predictions], True
        found = _before_filter(found, model.graph)
    else:
        found = None
    cut = {name: shapes.get(name, ()) for name in dict.fromkeys([*names, *kept])}
    return Tail(first.op_type, label(first), outputs, cut, found, raw)


def _predictions(graph: Any, tainted: set[str], shapes: Mapping[str, Sizes]) -> str:
    """The last tensor that alone leads to the tail, with boxes and scores together; empty where there is none."""
    varying = _depends_on_inputs(graph)
    uses: dict[str, int] = {}
    for node in graph.node:
        for name in {name for name in node.input if name in varying}:
            uses[name] = uses.get(name, 0) + 1
    live, found = {value.name for value in graph.input}, ""
    for node in graph.node:
        if any(name in tainted for name in node.output):
            break
        for name in {name for name in node.input if name in uses}:
            uses[name] -= 1
            live -= {name} if not uses[name] else set()
        live |= {name for name in node.output if uses.get(name)}
        [*few] = live if len(live) == 1 else []
        shape = shapes.get(few[0], ()) if few else ()
        if len(shape) == 3 and min(size or 0 for size in shape[1:]) >= FEWEST_CHANNELS:
            found = few[0]
    return found


def _before_filter(found: Suppression, graph: Any) -> Suppression:
    """The settings of a tail that filters boxes by their score before the NonMaxSuppression, as YOLO exports do."""
    values = [
        float(value.reshape(-1)[0])
        for node in graph.node
        if node.op_type in ("Greater", "GreaterOrEqual")
        and (value := constant_of(graph, node.input[1])) is not None
        and value.size == 1
    ]
    least = next((value for value in values if 0 < value < 1), found.least)
    halved = any(_is_halving(node, graph) for node in graph.node[-LONGEST_TAIL:])
    return msgspec.structs.replace(found, least=least, centers=found.centers or halved)


def _is_halving(node: Any, graph: Any) -> bool:
    """True for a node that halves its input, as boxes of centers and sizes are made corners."""
    if node.op_type not in ("Div", "Mul") or len(node.input) != 2:
        return False
    value = constant_of(graph, node.input[1])
    return value is not None and value.size == 1 and float(value.reshape(-1)[0]) in (0.5, 2.0)


def refuse_tail(tail: Tail, source: str) -> UnsupportedOpError:
    """The error for a model whose outputs have no fixed sizes. It says where to cut, and which step takes the place."""
    names = ",".join(tail.cut)
    where = "; ".join(f"{name} {_text(shape)}" for name, shape in tail.cut.items())
    step = (
        "The step nms after the model takes its place; --cut auto writes it"
        if tail.suppression is not None
        else "Do what follows in the application"
    )
    advice = f"Cut the model before it: --cut {names} ({where}). {step}. See docs/preprocess.md."
    return UnsupportedOpError(
        tail.operator,
        tail.layer,
        backend=f"any target: the size of output {', '.join(tail.outputs)} of {source} depends on the data",
        advice=advice if names else "Export the model without it.",
    )


def _tainted(graph: Any) -> tuple[Any | None, set[str]]:
    """The first data-dependent node, and the tensors whose sizes may depend on the data."""
    tainted: set[str] = set()
    first = None
    for node in graph.node:
        own = node.op_type in DATA_DEPENDENT or any(
            inner.op_type in DATA_DEPENDENT for one in inner_graphs(node) for inner in all_nodes(one)
        )
        first = node if own and first is None else first
        if own or any(name in tainted for name in node.input):
            tainted.update(name for name in node.output if name)
    return first, tainted


def _fixed(value: Any, symbols: set[str]) -> bool:
    """True for an output whose sizes are numbers, or symbols of the inputs."""
    kind = value.type.tensor_type
    return kind.HasField("shape") and all(
        (dim.HasField("dim_value") and dim.dim_value > 0) or dim.dim_param in symbols for dim in kind.shape.dim
    )


def _frontier(graph: Any, tainted: set[str]) -> Iterator[str]:
    """The computed tensors that data-dependent operators, or those behind them, read."""
    made = {name: node for node in graph.node for name in node.output}
    varying = _depends_on_inputs(graph)
    for node in graph.node:
        if any(name in tainted for name in node.output):
            for name in node.input:
                if name in made and name in varying and name not in tainted:
                    yield name


def _depends_on_inputs(graph: Any) -> set[str]:
    """The tensors whose values depend on the values of the inputs, and not only on their shapes."""
    varying = {value.name for value in graph.input}
    for node in graph.node:
        if node.op_type not in SHAPES_ONLY and any(name in varying for name in node.input):
            varying.update(node.output)
    return varying


def _suppression(node: Any, graph: Any) -> Suppression:
    """The settings of a node: a usual value for one that is computed, ONNX's default for one that is absent."""

    def number(index: int, usual: float, absent: float) -> float:
        name = node.input[index] if len(node.input) > index else ""
        value = constant_of(graph, name)
        return float(value.reshape(-1)[0]) if value is not None and value.size else usual if name else absent

    return Suppression(
        boxes=node.input[0],
        scores=node.input[1],
        centers=attribute_of(node, "center_point_box", 0) == 1,
        overlap=number(3, 0.5, 0.0),
        least=number(4, 0.25, 0.0),
        most=int(min(number(2, 100.0, 100.0), 10_000.0)),
    )


def constant_of(graph: Any, name: str) -> Array | None:
    """The value of an initializer or a Constant node; None for any other tensor."""
    for tensor in graph.initializer:
        if tensor.name == name:
            return np.asarray(numpy_helper.to_array(tensor))
    for node in graph.node:
        if name in node.output and node.op_type == "Constant":
            return value_of_constant(node)
    return None


def _before_transpose(name: str, graph: Any) -> str:
    """The tensor (B, M, classes) where scores (B, classes, M) are only its transposition; else `name`."""
    for node in graph.node:
        if name in node.output and node.op_type == "Transpose" and attribute_of(node, "perm", []) == [0, 2, 1]:
            return str(node.input[0])
    return name


def _text(shape: Sizes) -> str:
    return "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
