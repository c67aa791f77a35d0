"""The targets of training a pruned graph: the original's answers, and its layers' outputs at the kept channels."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx

from converters.graph.graph import Graph, joined
from converters.passes.channels.groups import Channels
from converters.passes.weights import dense_layers
from converters.pruning.linear import Linear
from edgekit.runtimes.onnx import OnnxRuntime
from edgekit.tensors import Array

LAYER_BYTES = 128 << 20  # of all kept layer outputs; the first layers are left out where they do not fit


def taught(
    channels: Channels, removed: Array, pruned: Graph, inputs: Mapping[str, Array]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The original model's answers (N, ...) by output, and its layers' outputs (N, ...) by the tensor in `pruned`.

    Outputs of integers, such as an index of a class, have no gradient and are left out.

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
    model = onnx.ModelProto()
    model.CopyFrom(original.model)
    outputs = [spec.name for spec in original.outputs]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in wanted if name not in outputs)
    runtime = OnnxRuntime(model.SerializeToString(), threads=1, quiet=True)
    try:
        values = joined([runtime.run(chunk) for chunk in original.chunks(inputs)])
    finally:
        runtime.close()
    layers = {}
    for name, node in wanted.items():
        lanes = channels.lanes.get(node)
        kept = values[name] if lanes is None else np.compress(~removed[lanes.ids], values[name], axis=lanes.axis)
        layers[name] = kept
    return {name: values[name] for name in outputs if values[name].dtype.kind == "f"}, layers
