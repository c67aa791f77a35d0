"""The targets of training a pruned graph: the original's answers, and its layers' outputs at the kept channels."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np
import onnx

from converters.graph.graph import Graph, joined
from converters.passes.channels.groups import Channels
from converters.passes.weights import dense_layers
from converters.pruning.linear import Linear
from edgekit.runtimes.onnx import OnnxRuntime
from edgekit.tensors import Array

LAYER_BYTES = 128 << 20  # of all kept layer outputs; the first layers are left out where they do not fit
NEAR = 1e-3  # of a tensor's largest value: one row alone or beside others is computed by other kernels


def taught(
    channels: Channels, removed: Array, pruned: Graph, inputs: Mapping[str, Array]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The original model's answers (N, ...) by output, and its layers' outputs (N, ...) by the tensor in `pruned`.

    Outputs of integers, such as an index of a class, have no gradient and are left out, and so are layers without an
    axis for the rows. A layer whose first axis is rows times k, as with words or windows in it, has (N, k, ...).

    Args:
        channels: The channels of the original graph.
        removed: The channels (n,), bool, that `pruned` lacks.
        pruned: The original graph without them.
        inputs: Inputs (N, ...).
    """
    original, rows = channels.graph, len(next(iter(inputs.values())))
    made = {node.output[0]: node for node in original.nodes}
    shapes = original.with_batch(1).shapes
    left, wanted = LAYER_BYTES, {}  # the tensor after the bias -> the tensor whose channels are known
    for layer in reversed(dense_layers(pruned)):
        node = layer.node.output[0]
        name = Linear(original, made[node]).output
        size = 4 * rows * math.prod(n or 1 for n in shapes.get(name, ()))
        if size > left:
            break
        left -= size
        wanted[name] = node
    blocks = _blocks(original, wanted, inputs)
    values = _run(original, blocks, inputs)
    layers = {}
    for name, block in blocks.items():
        lanes = channels.lanes.get(wanted[name])
        kept = values[name] if lanes is None else np.compress(~removed[lanes.ids], values[name], axis=lanes.axis)
        layers[name] = kept if block == 1 else kept.reshape(rows, block, *kept.shape[1:])
    outputs = [spec.name for spec in original.outputs]
    return {name: values[name] for name in outputs if values[name].dtype.kind == "f"}, layers


def _blocks(graph: Graph, names: Collection[str], inputs: Mapping[str, Array]) -> dict[str, int]:
    """The tensors whose first axis is the rows, or the rows times this number: each row is one block of it.

    Exporters of attention also compute layers with the words first, where no block belongs to one row.
    """
    one = _run(graph, names, {name: value[:1] for name, value in inputs.items()}, together=True)
    blocks = {name: len(one[name]) for name in names if one[name].ndim}
    if not graph.free_batch:  # then rows run one by one, and their values are joined
        return blocks
    chunk = {name: value[:2] for name, value in inputs.items()}
    two = _run(graph, names, chunk, together=True)
    return {
        name: count
        for name, count in blocks.items()
        if two[name].shape[1:] == one[name].shape[1:]
        and len(two[name]) == count * len(next(iter(chunk.values())))
        and np.allclose(two[name][:count], one[name], rtol=NEAR, atol=NEAR * float(np.abs(one[name]).max(initial=0.0)))
    }


def _run(
    graph: Graph, names: Collection[str], inputs: Mapping[str, Array], *, together: bool = False
) -> dict[str, Array]:
    """The outputs of `graph` and its tensors `names` for `inputs` (N, ...), run in chunks of rows or all together."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    outputs = [spec.name for spec in graph.outputs]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in outputs)
    runtime = OnnxRuntime(model.SerializeToString(), threads=1, quiet=True)
    try:
        return joined([runtime.run(chunk) for chunk in ([inputs] if together else graph.chunks(inputs))])
    finally:
        runtime.close()
