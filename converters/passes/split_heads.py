"""Split an output into the parts of its Concat if they are too different to share an 8-bit scale.

The rule is in converters/calibration/joins.py. The pass removes a Concat at the end of the graph and makes its inputs
the outputs; neighbours with similar ranges stay joined. Operators between the Concat and the output that only move
values (Transpose, Reshape and similar) are applied to each part. If the levels of a detector, each joined from boxes
and scores, are joined along another axis, the pass joins boxes with boxes and scores with scores.

A Concat with other readers stays. Otherwise a part would be both an output and the input of a Concat with another
scale, and litert-quantizer writes a file for it that does not run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import helper, numpy_helper

from converters.calibration.joins import Ranges, alike, axis_of, reach
from converters.graph.graph import Graph, attributes
from edgekit.tensors import Array, TensorSpec

RESHAPING = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")


class Head(msgspec.Struct, frozen=True):
    """An output that was split.

    Attributes:
        output: Name of the output.
        axis: The axis along which its parts are joined.
        parts: Names of the outputs that replace it, in order.
    """

    output: str
    axis: int
    parts: tuple[str, ...]


class SplitHeads:
    """Splits each output whose parts are too different to share a scale.

    Args:
        ranges: Calibrated smallest and largest value by tensor. An output with a part of unknown range is not split.
    """

    name = "split-heads"

    def __init__(self, ranges: Ranges) -> None:
        self._ranges = ranges

    def applies(self, graph: Graph) -> bool:
        """True if there is an output to split."""
        return bool(self._cuts(graph))

    def heads(self, graph: Graph) -> tuple[Head, ...]:
        """The outputs of `graph` that `run` splits, with their parts."""
        return tuple(Head(name, cut.axis, _names(name, cut)) for name, cut in self._cuts(graph).items())

    def outputs(self, graph: Graph) -> tuple[TensorSpec, ...]:
        """The outputs of `graph`, each split output replaced by its parts."""
        cuts, specs = self._cuts(graph), []
        for spec in graph.outputs:
            cut = cuts.get(spec.name)
            if cut is None:
                specs.append(spec)
                continue
            for name, piece in zip(_names(spec.name, cut), cut.pieces, strict=True):
                shape = (*spec.shape[: cut.axis], piece.size, *spec.shape[cut.axis + 1 :])
                specs.append(TensorSpec(name, spec.dtype, shape))
        return tuple(specs)

    def run(self, graph: Graph) -> Graph:
        """The graph with the parts as outputs, without nodes that are no longer read."""
        model = onnx.ModelProto()
        model.CopyFrom(graph.model)
        cuts = self._cuts(graph)
        del model.graph.output[:]
        for value in graph.model.graph.output:
            cut = cuts.get(value.name)
            if cut is None:
                model.graph.output.append(value)
                continue
            for name, piece in zip(_names(value.name, cut), cut.pieces, strict=True):
                _build(model, piece.recipe, name)
                part = model.graph.output.add()
                part.CopyFrom(value)
                part.name = name
                part.type.tensor_type.shape.dim[cut.axis].dim_value = piece.size
        _drop_unread(model)
        return Graph(model)

    def holds(self, graph: Graph) -> bool:
        """No output is left to split."""
        return not self._cuts(graph)

    def _cuts(self, graph: Graph) -> dict[str, _Cut]:
        makers = {name: node for node in graph.nodes for name in node.output}
        moved = {spec.name for spec in graph.interface.outputs if spec.batch_axis != 0}  # parts have the batch first
        cuts = {s.name: _cut(graph, makers, s.name, self._ranges) for s in graph.outputs if s.name not in moved}
        return {name: cut for name, cut in cuts.items() if cut is not None}


def join(heads: Sequence[Head], values: Mapping[str, Array]) -> dict[str, Array]:
    """The original outputs, joined from the outputs (N, ...) of the split graph."""
    parts = {name for head in heads for name in head.parts}
    outputs = {name: value for name, value in values.items() if name not in parts}
    outputs.update({h.output: np.concatenate([values[name] for name in h.parts], axis=h.axis) for h in heads})
    return outputs


class _TensorRecipe(msgspec.Struct, frozen=True):
    """How to make a tensor: it exists as `name`, or an operator makes it from inputs; `shape` is that of a Reshape."""

    name: str = ""
    operator: str = ""
    inputs: tuple[_TensorRecipe, ...] = ()
    attributes: dict[str, Any] = {}
    shape: tuple[int, ...] = ()


class _Piece(msgspec.Struct, frozen=True):
    """A part: its size along the axis, its largest absolute value, and how to make it."""

    size: int
    reach: float
    recipe: _TensorRecipe


class _Cut(msgspec.Struct, frozen=True):
    axis: int
    pieces: tuple[_Piece, ...]


def _names(output: str, cut: _Cut) -> tuple[str, ...]:
    return tuple(f"{output}.{index}" for index in range(len(cut.pieces)))


def _cut(graph: Graph, makers: Mapping[str, Any], name: str, ranges: Ranges) -> _Cut | None:
    """How to split the tensor `name`; None if it need not be split, or cannot be by these rules."""
    node = makers.get(name)
    if node is None or len(graph.consumers(name)) + (name in _results(graph)) != 1:
        return None
    if node.op_type == "Concat":
        return _cut_concat(graph, makers, node, ranges)
    if node.op_type not in ("Identity", "Transpose", *RESHAPING):
        return None
    inner = _cut(graph, makers, node.input[0], ranges)
    if inner is None or node.op_type == "Identity":
        return inner
    return _transposed(node, inner) if node.op_type == "Transpose" else _reshaped(graph, node, inner)


def _cut_concat(graph: Graph, makers: Mapping[str, Any], node: Any, ranges: Ranges) -> _Cut | None:
    rank = len(graph.shapes.get(node.output[0], ()))
    axis = axis_of(node, rank) if rank else 0
    if axis == 0:
        return None
    pieces = []
    for name in _leaves(graph, makers, node, axis, rank):
        size, reached = graph.shapes.get(name, (None,) * rank)[axis], reach(graph, name, ranges)
        joined = sum(list(reader.input).count(name) for reader in graph.consumers(name) if reader.op_type == "Concat")
        if size is None or reached is None or joined > 1 or name in _results(graph) or name in graph.constants:
            return None
        pieces.append(_Piece(size, reached, _TensorRecipe(name)))
    groups = [[pieces[0]]]
    for piece in pieces[1:]:
        if alike([one.reach for one in (*groups[-1], piece)]):
            groups[-1].append(piece)
        else:
            groups.append([piece])
    if len(groups) > 1:
        return _Cut(axis, tuple(_merged(group, axis, sum(piece.size for piece in group)) for group in groups))
    return _cut_levels([_cut(graph, makers, name, ranges) for name in node.input], axis)


def _cut_levels(levels: Sequence[_Cut | None], axis: int) -> _Cut | None:
    """Join the first parts, the second parts and so on of `levels` that all split alike along another axis."""
    first = levels[0]
    if first is None or first.axis == axis:
        return None
    sizes = [piece.size for piece in first.pieces]
    known = [level for level in levels if level is not None and level.axis == first.axis]
    if len(known) < len(levels) or any([piece.size for piece in level.pieces] != sizes for level in known):
        return None
    columns = zip(*(level.pieces for level in known), strict=True)
    return _Cut(first.axis, tuple(_merged(column, axis, column[0].size) for column in columns))


def _merged(pieces: Sequence[_Piece], axis: int, size: int) -> _Piece:
    if len(pieces) == 1:
        return pieces[0]
    recipe = _TensorRecipe(operator="Concat", inputs=tuple(piece.recipe for piece in pieces), attributes={"axis": axis})
    return _Piece(size, max(piece.reach for piece in pieces), recipe)


def _leaves(graph: Graph, makers: Mapping[str, Any], node: Any, axis: int, rank: int) -> Iterator[str]:
    """The inputs of a Concat; nested Concats along the same axis are flattened."""
    for name in node.input:
        maker = makers.get(name)
        same = maker is not None and maker.op_type == "Concat" and axis_of(maker, rank) == axis
        if same and len(graph.consumers(name)) == 1:
            yield from _leaves(graph, makers, maker, axis, rank)
        else:
            yield name


def _results(graph: Graph) -> set[str]:
    return {spec.name for spec in graph.outputs}


def _transposed(node: Any, inner: _Cut) -> _Cut | None:
    perm = attributes(node).get("perm")
    if not perm or list(perm).index(inner.axis) == 0:
        return None
    pieces = [
        _Piece(
            one.size,
            one.reach,
            _TensorRecipe(operator="Transpose", inputs=(one.recipe,), attributes={"perm": list(perm)}),
        )
        for one in inner.pieces
    ]
    return _Cut(list(perm).index(inner.axis), tuple(pieces))


def _reshaped(graph: Graph, node: Any, inner: _Cut) -> _Cut | None:
    """Split a reshape: the axes before the split axis must keep their size, and each part must fill whole rows."""
    before, after = graph.shapes.get(node.input[0], ()), graph.shapes.get(node.output[0], ())
    if not before or not after or None in (*before[1:], *after[1:]) or (before[0] is None) != (after[0] is None):
        return None
    old, new = ([size or 1 for size in shape] for shape in (before, after))
    behind = math.prod(old[inner.axis + 1 :])
    for axis in range(1, len(new)):
        rest = math.prod(new[axis + 1 :])
        whole = all(piece.size * behind % rest == 0 for piece in inner.pieces)
        if math.prod(new[:axis]) == math.prod(old[: inner.axis]) and whole and new[axis] > 1:
            sizes = [piece.size * behind // rest for piece in inner.pieces]
            pieces = [_reshaped_piece(*one, axis, after) for one in zip(inner.pieces, sizes, strict=True)]
            return _Cut(axis, tuple(pieces))
    return None


def _reshaped_piece(piece: _Piece, size: int, axis: int, after: Sequence[int | None]) -> _Piece:
    shape = tuple(
        size if index == axis else known or 0 for index, known in enumerate(after)
    )  # 0 keeps a free batch size
    return _Piece(size, piece.reach, _TensorRecipe(operator="Reshape", inputs=(piece.recipe,), shape=shape))


def _build(model: onnx.ModelProto, recipe: _TensorRecipe, name: str) -> None:
    """Add the nodes that compute `recipe` as tensor `name`."""
    if recipe.name:
        model.graph.node.append(helper.make_node("Identity", [recipe.name], [name], name=name))
        return
    inputs = []
    for index, one in enumerate(recipe.inputs):
        inputs.append(one.name or f"{name}.{index}")
        if not one.name:
            _build(model, one, inputs[-1])
    if recipe.operator == "Reshape":
        inputs.append(f"{name}.shape")
        model.graph.initializer.append(numpy_helper.from_array(np.array(recipe.shape, np.int64), inputs[-1]))
    model.graph.node.append(helper.make_node(recipe.operator, inputs, [name], name=name, **recipe.attributes))


def _drop_unread(model: onnx.ModelProto) -> None:
    """Remove nodes and constants that are not read, and shapes, which are inferred on demand."""
    del model.graph.value_info[:]
    results = {value.name for value in model.graph.output}
    while True:
        read = results.union(_reads(model.graph))
        dead = [node for node in model.graph.node if not read & set(node.output)]
        if not dead:
            break
        for node in dead:
            model.graph.node.remove(node)
    constants = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)


def _reads(graph: Any) -> Iterator[str]:
    """Tensors that the nodes of `graph` and of its subgraphs read."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _reads(attribute.g)
                yield from (value.name for value in attribute.g.output)
