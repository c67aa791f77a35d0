"""Makes the batch the first axis of every input and output, with transpositions and added axes at the borders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from converters.frontends.interface.axes import BatchAxes, Dims
from converters.frontends.interface.cancelling import cancel_borders
from converters.frontends.interface.protobuf import dims_of, inputs_of, rename, set_dims
from converters.graph.graph import BATCH

SOURCE_LAYOUT = "_in_source_layout"
FIRST_AXIS = "edgekit_first_axis"


def move_batches(model: onnx.ModelProto, inputs: BatchAxes, outputs: BatchAxes, *, free: bool) -> None:
    """Change `model` so that the batch comes first in every input and output.

    Args:
        model: The model, with the sizes of its inputs and outputs settled; it is changed.
        inputs, outputs: The batch axis of each; a tensor without a batch gets a first axis of 1, unless it has one.
        free: The batch is free; otherwise it is 1.
    """
    batch: int | str = BATCH if free else 1
    before, after = [], []
    names: dict[str, str] = {}
    for value in inputs_of(model):
        node = _border(value, inputs.get(value.name), batch, inward=True)
        if node is not None:
            names[value.name] = node.output[0]
            before.append(node)
    for value in model.graph.output:
        node = _border(value, outputs.get(value.name), batch, inward=False)
        if node is not None:
            names[value.name] = node.input[0]
            after.append(node)
    rename(model, names)
    nodes = [*before, *model.graph.node, *after]
    if any(FIRST_AXIS in node.input for node in nodes):
        model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), FIRST_AXIS))
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    cancel_borders(model, [node.name for node in (*before, *after)])


def _border(value: Any, axis: int | None, batch: int | str, *, inward: bool) -> Any | None:
    """Set the canonical shape of one input or output. Returns the node that its border needs, or None for none."""
    dims = dims_of(value)
    name, inner = value.name, value.name + SOURCE_LAYOUT
    ends = ([name], [inner]) if inward else ([inner], [name])
    label = f"{name}{SOURCE_LAYOUT}"
    if axis is None and dims[:1] == (1,):  # one sample a call: the first axis of 1 is as good as a batch
        return None
    if axis is None:
        set_dims(value, (batch, *dims))
        kind = "Squeeze" if inward else "Unsqueeze"
        return helper.make_node(kind, [*ends[0], FIRST_AXIS], ends[1], name=label)
    rest: Dims = (*dims[:axis], *dims[axis + 1 :])
    set_dims(value, (batch, *rest))
    if axis == 0:
        return None
    order = _front(axis, len(dims))
    return helper.make_node("Transpose", *ends, name=label, perm=np.argsort(order).tolist() if inward else list(order))


def _front(axis: int, rank: int) -> Sequence[int]:
    """The order that moves `axis` to the front."""
    return (axis, *(index for index in range(rank) if index != axis))
