"""Makes shapes constant that a graph computes from the sizes of its tensors.

Exporters of attention compute the shape of a Reshape or Expand from that of its input, and shape inference follows few
of these computations: sizes behind them are unknown, and channels cannot be followed. The pass reads the sizes in runs
with different numbers of rows. A size that is the same in all is constant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from converters.graph.graph import Graph
from edgekit.errors import EdgekitError
from edgekit.runtimes.onnx import OnnxRuntime
from edgekit.tensors import Array

BATCHES = (1, 2, 3)
SHAPED = ("Expand", "Reshape")
MADE = "/constant-shape"  # end of the names of these shapes
# Operators that make sizes of sizes and constants.
COMPUTING = (
    "Add", "Cast", "Concat", "ConstantOfShape", "Div", "Equal", "Expand", "Gather", "Identity", "Max", "Min", "Mul",
    "ReduceProd", "Reshape", "Shape", "Size", "Slice", "Squeeze", "Sub", "Unsqueeze", "Where",
)  # fmt: skip
# Operators whose results have other sizes for other values of their inputs, from the number of the first such input on.
SIZED_BY = {
    "ConstantOfShape": 0, "Expand": 1, "OneHot": 1, "Pad": 1, "Range": 0, "Reshape": 1, "Resize": 1, "Slice": 1,
    "Split": 1, "Tile": 1, "TopK": 1,
}  # fmt: skip
SIZED_BY_VALUES = ("Compress", "If", "Loop", "NonMaxSuppression", "NonZero", "Scan", "Unique")

Sizes = tuple[tuple[int, ...], ...]  # the shape of a tensor in each run


class ConstantShapes:
    """Gives each Reshape and Expand a constant shape, where the sizes of tensors decide it.

    The size of a Reshape that grows with the rows is -1. Nodes that nothing reads any more are removed.
    """

    name = "constant-shapes"

    def applies(self, graph: Graph) -> bool:
        """True if a shape is computed from sizes, and no size depends on values."""
        return bool(_places(graph))

    def run(self, graph: Graph) -> Graph:
        """The new graph; the same one where no shape is constant for all numbers of rows."""
        places = _places(graph)
        try:
            found = _sizes(graph, [name for number in places for name in _ends(graph.nodes[number])])
        except EdgekitError:  # the graph does not run on zeros; it is as good as before with its shapes
            return graph
        model = onnx.ModelProto()
        model.CopyFrom(graph.model)
        made = 0
        for number in places:
            node = model.graph.node[number]
            shape = _constant(node, *(found[name] for name in _ends(node)))
            if shape is not None:
                node.input[1] = f"{node.output[0]}{MADE}"
                model.graph.initializer.append(numpy_helper.from_array(shape, node.input[1]))
                made += 1
        if not made:
            return graph
        _drop_unread(model)
        return Graph(model)

    def holds(self, graph: Graph) -> bool:
        """Each shape that is made here leaves at most one size open."""
        return all(np.count_nonzero(value == -1) <= 1 for name, value in graph.constants.items() if name.endswith(MADE))


def _places(graph: Graph) -> list[int]:
    """The numbers of the nodes with a computed shape; none where a size in the graph depends on values."""
    makers = {name: node for node in graph.nodes for name in node.output}
    of_sizes: dict[str, bool] = {}
    found = []
    for number, node in enumerate(graph.nodes):
        if node.op_type in SIZED_BY_VALUES or "Sequence" in node.op_type:
            return []
        for name in node.input[SIZED_BY[node.op_type] :] if node.op_type in SIZED_BY else ():
            if name and name not in graph.constants and not _is_of_sizes(graph, makers, of_sizes, name):
                return []
        if node.op_type in SHAPED and node.input[1] not in graph.constants:
            found.append(number)
    return found


def _is_of_sizes(graph: Graph, makers: Mapping[str, Any], known: dict[str, bool], name: str) -> bool:
    """True if a tensor is computed of constants and of the sizes of tensors only; adds to `known`."""
    if name not in known:
        node = makers.get(name)
        known[name] = node is not None and node.op_type in COMPUTING
        if known[name] and node is not None and node.op_type not in ("Shape", "Size"):
            given = [one for one in node.input if one and one not in graph.constants]
            known[name] = all(_is_of_sizes(graph, makers, known, one) for one in given)
    return known[name]


def _ends(node: Any) -> tuple[str, str]:
    """The tensor that a node shapes, and its result."""
    return node.input[0], node.output[0]


def _sizes(graph: Graph, names: Sequence[str]) -> dict[str, Sizes]:
    """The shapes of tensors in runs of zeros with different numbers of rows. Raises RuntimeLoadError or DataError."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.output[:]
    shapes = {name: f"{name}/sizes" for name in names}
    for name, output in shapes.items():
        model.graph.node.append(helper.make_node("Shape", [name], [output]))
        model.graph.output.append(helper.make_tensor_value_info(output, onnx.TensorProto.INT64, [None]))
    runtime = OnnxRuntime(model.SerializeToString(), threads=1, quiet=True)
    del model
    try:
        runs = [runtime.run(_zeros(graph, rows)) for rows in (BATCHES if graph.free_batch else BATCHES[:1])]
    finally:
        runtime.close()
    return {name: tuple(tuple(run[output].tolist()) for run in runs) for name, output in shapes.items()}


def _zeros(graph: Graph, rows: int) -> dict[str, Array]:
    sizes = {spec.name: [rows if size is None else size for size in spec.shape] for spec in graph.inputs}
    return {spec.name: np.zeros(sizes[spec.name], spec.dtype.numpy) for spec in graph.inputs}


def _constant(node: Any, before: Sizes, after: Sizes) -> Array | None:
    """The shape as a constant; None where two of its sizes grow with the rows, or one grows in another way."""
    found = []
    for axis, sizes in enumerate(zip(*after, strict=True)):
        if 0 in sizes:  # in a shape it would mean that the size is copied
            return None
        if len(set(sizes)) == 1:
            found.append(sizes[0])
        elif list(sizes) != [sizes[0] * rows for rows in BATCHES]:
            return None
        elif node.op_type == "Reshape":
            found.append(-1)
        else:
            place = axis - (len(after[0]) - len(before[0]))
            if place < 0 or tuple(one[place] for one in before) != sizes:
                return None
            found.append(1)  # the size of the input stays
    return np.array(found, np.int64) if found.count(-1) <= 1 else None


def _drop_unread(model: onnx.ModelProto) -> None:
    """Remove nodes and constants that nothing reads any more."""
    outputs = {value.name for value in model.graph.output}
    left = list(model.graph.node)
    while True:
        read = outputs | {name for node in left for name in node.input}
        kept = [node for node in left if read & set(node.output)]
        if len(kept) == len(left):
            break
        left = kept
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in left]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for place in reversed(range(len(model.graph.initializer))):
        if model.graph.initializer[place].name not in read:
            del model.graph.initializer[place]
