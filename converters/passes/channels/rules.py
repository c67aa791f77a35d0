"""Rules per operator: which channels it passes on, mixes or fixes (see groups.py).

A rule returns False if it does not cover a node. The channels of the node's inputs and outputs are then fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from converters.graph.graph import Graph, attributes
from converters.passes.channels.groups import Channels, Cut, Lanes, Read
from converters.passes.weights import Dense, is_dense
from edgekit.tensors import Array

UNARY = (
    "Abs", "Cast", "Ceil", "Celu", "Clip", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity",
    "LeakyRelu", "Log", "Mish", "Neg", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Softplus", "Softsign",
    "Sqrt", "Swish", "Tanh", "ThresholdedRelu",
)  # fmt: skip
ELEMENTWISE = ("Add", "Div", "Max", "Mean", "Min", "Mul", "PRelu", "Pow", "Sub", "Sum")
POOLING = ("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool")
REDUCTIONS = ("ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceSumSquare")
RESHAPING = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")

Rule = Callable[[Channels, int, Any], bool]


def channels_of(graph: Graph) -> Channels:
    """The channels of `graph`. Channels that reach an operator without a rule are fixed."""
    channels = Channels(graph)
    for number, node in enumerate(graph.nodes):
        rule = _rules.get(node.op_type)
        if node.op_type == "Constant" or (rule is not None and rule(channels, number, node)):
            continue
        for name in (*node.input, *node.output):
            channels.fix(name)
    for value in graph.model.graph.output:
        channels.fix(value.name)
    if any(entry.HasField("g") or entry.graphs for node in graph.nodes for entry in node.attribute):
        channels.fix_all()  # the rules do not look into subgraphs
    return channels


def _dense(channels: Channels, number: int, node: Any) -> bool:
    """Conv, Gemm and MatMul read their input channels and make new ones. A depthwise Conv passes its channels on."""
    graph = channels.graph
    rank, rank_out = (len(channels.sizes.get(name, ())) for name in (node.input[0], node.output[0]))
    if rank < 2 or rank_out < 2 or not is_dense(graph, node):
        return False
    layer, image = Dense(graph, node), node.op_type == "Conv"
    inputs = channels.lanes_at(node.input[0], 1 if image else rank - 1)
    if inputs is None or (layer.group > 1 and layer.group != len(inputs.ids)):
        return False
    first = image or bool(node.op_type == "Gemm" and attributes(node).get("transB"))
    if layer.group > 1:
        ids = np.repeat(inputs.ids, len(layer.matrix) // layer.group)
        channels.groups[number] = inputs.ids
    else:
        ids = channels.new_ids(len(layer.matrix))
        used = (layer.matrix.reshape(len(ids), len(inputs.ids), -1) != 0).any(axis=(0, 2))
        channels.reads.append(Read(node.input[0], inputs, used))
        channels.cuts.append(Cut(number, 1, 1 if first else 0, inputs.ids))
    channels.cuts.append(Cut(number, 1, 0 if first else 1, ids))
    channels.lanes[node.output[0]] = Lanes(1 if image else rank_out - 1, ids)
    if len(node.input) < 3 or not node.input[2]:
        return True
    bias = graph.constants[node.input[2]]
    if bias.ndim and bias.shape[-1] == bias.size == len(ids):
        channels.cuts.append(Cut(number, 2, bias.ndim - 1, ids))
    return bool(bias.size in (1, len(ids)))


def _conv_transposed(channels: Channels, number: int, node: Any) -> bool:
    """ConvTranspose of one group; axis 0 of its weights are the input channels."""
    constants = channels.graph.constants
    known = all(name in constants for name in node.input[1:] if name)
    inputs = channels.lanes_at(node.input[0], 1)
    if not known or inputs is None or attributes(node).get("group", 1) != 1:
        return False
    weights = constants[node.input[1]]
    ids = channels.new_ids(weights.shape[1])
    used = (weights.reshape(*weights.shape[:2], -1) != 0).any(axis=(1, 2))
    channels.reads.append(Read(node.input[0], inputs, used))
    channels.cuts += [Cut(number, 1, 0, inputs.ids), Cut(number, 1, 1, ids)]
    if len(node.input) > 2 and node.input[2]:
        channels.cuts.append(Cut(number, 2, 0, ids))
    channels.lanes[node.output[0]] = Lanes(1, ids)
    return True


def _normalized(channels: Channels, number: int, node: Any) -> bool:
    """BatchNormalization that was not folded: four constants with one value per channel."""
    lanes = channels.lanes.get(node.input[0])
    known = all(name in channels.graph.constants for name in node.input[1:5])
    if lanes is None or lanes.axis != 1 or not known or len(node.output) > 1:
        return False
    channels.cuts += [Cut(number, input_index, 0, lanes.ids) for input_index in range(1, 5)]
    channels.lanes[node.output[0]] = lanes
    return True


def _passed_on(channels: Channels, number: int, node: Any) -> bool:
    """Operators that treat each value or each channel alone, with further inputs that are scalar constants."""
    lanes, constants = channels.lanes.get(node.input[0]), channels.graph.constants
    others = [name for name in node.input[1:] if name]
    image = node.op_type not in POOLING or (lanes is not None and lanes.axis == 1)
    if lanes is None or len(node.output) > 1 or not image:
        return False
    if any(name not in constants or constants[name].size != 1 for name in others):
        return False
    channels.lanes[node.output[0]] = lanes
    return True


def _elementwise(channels: Channels, number: int, node: Any) -> bool:
    """Elementwise operators with several inputs: channels at the same position form a group."""
    constants = channels.graph.constants
    tensors = [name for name in node.input if name not in constants]
    first = next((channels.lanes[name] for name in tensors if name in channels.lanes), None)
    if first is None:
        return False
    sizes = [channels.sizes.get(name, ()) for name in tensors]
    rank = len(channels.sizes.get(node.output[0], ()))
    if any(len(size) != rank for size in sizes):
        return False
    wide = max((one for name in tensors if (one := channels.lanes.get(name))), key=lambda one: len(one.ids))
    axis = wide.axis
    lanes = [channels.lanes_at(name, axis) for name in tensors]
    if any(one is None for one in lanes):
        return False
    full_width = [one.ids for one in lanes if one is not None and len(one.ids) == len(wide.ids)]
    for one, name in zip(lanes, tensors, strict=True):
        assert one is not None
        if len(one.ids) != len(wide.ids):
            if len(one.ids) != 1:
                return False
            channels.fix(name)  # broadcast: one value for all channels
    cuts = _constant_cuts(channels, number, node, rank, Lanes(axis, wide.ids))
    if cuts is None:
        return False
    for ids in full_width:
        channels.unite(wide.ids, ids)
    channels.cuts += cuts
    channels.lanes[node.output[0]] = Lanes(axis, wide.ids)
    return True


def _constant_cuts(channels: Channels, number: int, node: Any, rank: int, lanes: Lanes) -> list[Cut] | None:
    """Constants of an elementwise node with one value per channel; None if a constant makes the tensor larger."""
    cuts = []
    for input_index, name in enumerate(node.input):
        if name not in channels.graph.constants:
            continue
        value = channels.graph.constants[name]
        axis = lanes.axis - (rank - value.ndim)
        size = value.shape[axis] if axis >= 0 else 1
        if value.ndim > rank or size not in (1, len(lanes.ids)):
            return None
        if size == len(lanes.ids):
            cuts.append(Cut(number, input_index, axis, lanes.ids))
    return cuts


def _concatenated(channels: Channels, number: int, node: Any) -> bool:
    first = next((channels.lanes[name] for name in node.input if name in channels.lanes), None)
    rank = len(channels.sizes.get(node.output[0], ()))
    if first is None or rank == 0 or any(name in channels.graph.constants for name in node.input):
        return False
    lanes = [channels.lanes_at(name, first.axis) for name in node.input]
    if any(one is None for one in lanes):
        return False
    ids = [one.ids for one in lanes if one is not None]
    if int(attributes(node)["axis"]) % rank == first.axis:
        channels.lanes[node.output[0]] = Lanes(first.axis, np.concatenate(ids))
        return True
    for other in ids[1:]:
        channels.unite(ids[0], other)
    channels.lanes[node.output[0]] = Lanes(first.axis, ids[0])
    return True


def _split(channels: Channels, number: int, node: Any) -> bool:
    """Split along another axis passes channels on; along the channel axis each output gets some of them."""
    lanes = channels.lanes.get(node.input[0])
    if lanes is None:
        return False
    rank = len(channels.sizes[node.input[0]])
    if int(attributes(node).get("axis", 0)) % rank != lanes.axis:
        channels.lanes.update(dict.fromkeys(node.output, lanes))
        return True
    if len(node.input) < 2 or node.input[1] not in channels.graph.constants:
        return False
    start = 0
    for output_index, (name, size) in enumerate(zip(node.output, channels.graph.constants[node.input[1]], strict=True)):
        ids = lanes.ids[start : start + int(size)]
        channels.lanes[name] = Lanes(lanes.axis, ids)
        channels.counts[number, 1, output_index] = ids
        start += int(size)
    return True


def _padded(channels: Channels, number: int, node: Any) -> bool:
    """Pad that adds nothing along the channel axis."""
    lanes, constants = channels.lanes.get(node.input[0]), channels.graph.constants
    rank = len(channels.sizes.get(node.input[0], ()))
    if lanes is None or len(node.input) < 2 or node.input[1] not in constants or len(node.input) > 3:
        return False
    pads = constants[node.input[1]]
    if len(pads) != 2 * rank or pads[lanes.axis] or pads[rank + lanes.axis]:
        return False
    channels.lanes[node.output[0]] = lanes
    return True


def _reduced(channels: Channels, number: int, node: Any) -> bool:
    """A reduction over axes other than the batch and the channels."""
    lanes, given = channels.lanes.get(node.input[0]), attributes(node)
    rank = len(channels.sizes.get(node.input[0], ()))
    axes = given.get("axes")
    if len(node.input) > 1 and node.input[1] in channels.graph.constants:
        axes = channels.graph.constants[node.input[1]].tolist()
    if lanes is None or not axes:
        return False
    reduced = sorted(int(axis) % rank for axis in axes)
    if lanes.axis in reduced or 0 in reduced:
        return False
    shift = 0 if given.get("keepdims", 1) else sum(axis < lanes.axis for axis in reduced)
    channels.lanes[node.output[0]] = Lanes(lanes.axis - shift, lanes.ids)
    return True


def _transposed_axes(channels: Channels, number: int, node: Any) -> bool:
    """Transpose that keeps the batch first."""
    lanes, order = channels.lanes.get(node.input[0]), list(attributes(node).get("perm", ()))
    if lanes is None or not order or order[0] != 0:
        return False
    channels.lanes[node.output[0]] = Lanes(order.index(lanes.axis), lanes.ids)
    return True


def _resized(channels: Channels, number: int, node: Any) -> bool:
    """Resize to constant sizes, or by constant scales with scale 1 for the channels."""
    lanes, constants = channels.lanes.get(node.input[0]), channels.graph.constants
    given = [(input_index, name) for input_index, name in enumerate(node.input) if input_index >= 2 and name]
    if lanes is None or len(given) != 1 or given[0][1] not in constants or attributes(node).get("axes"):
        return False
    input_index, values = given[0][0], constants[given[0][1]]
    whole = len(lanes.ids) if input_index == 3 else 1
    if len(values) <= lanes.axis or values[lanes.axis] != whole:
        return False
    if input_index == 3:
        channels.counts[number, 3, lanes.axis] = lanes.ids
    channels.lanes[node.output[0]] = lanes
    return True


def _reshaped(channels: Channels, number: int, node: Any) -> bool:
    """A reshape after which each index along one axis still belongs to one channel."""
    lanes = channels.lanes.get(node.input[0])
    before, after = channels.sizes.get(node.input[0], ()), channels.sizes.get(node.output[0], ())
    if lanes is None or lanes.axis == 0 or len(before) < 2 or len(after) < 2:
        return False
    if None in before or None in after or before[0] != after[0]:
        return False
    sizes = [size for size in before[1:] if size is not None]
    shape = [1] * len(sizes)
    shape[lanes.axis - 1] = -1
    channel_index = np.broadcast_to(np.arange(len(lanes.ids)).reshape(shape), sizes).reshape(after[1:])
    axis, origin = _only_axis(channel_index)
    if axis is None or not _target_shape_can_shrink(channels, number, node, axis + 1, lanes.ids[origin]):
        return False
    channels.origins[node.output[0]] = origin
    channels.lanes[node.output[0]] = Lanes(axis + 1, lanes.ids[origin])
    return True


def _only_axis(values: Array) -> tuple[int | None, Array]:
    """The only axis along which `values` differ, and the values along it (L,); None if there is no such axis."""
    for axis in range(values.ndim):
        first = tuple(slice(None) if i == axis else slice(0, 1) for i in range(values.ndim))
        if (values == values[first]).all():
            return axis, values[first].ravel()
    return None, np.empty(0, dtype=np.int64)


def _target_shape_can_shrink(channels: Channels, number: int, node: Any, axis: int, ids: Array) -> bool:
    """True if the target shape can shrink with the channels along `axis`. Adds the element to change to `counts`."""
    if node.op_type != "Reshape":
        return True
    wanted = channels.graph.constants.get(node.input[1])
    if wanted is not None:
        if wanted[axis] > 0:
            channels.counts[number, 1, axis] = ids
        return bool(wanted[axis] > 0 or wanted[axis] == -1)
    maker = channels.made_by(node.input[1])  # the shape is computed from the batch size; its other parts are constants
    parts = list(maker.input) if maker is not None and maker.op_type == "Concat" else []
    rest = channels.graph.constants.get(parts[axis]) if axis < len(parts) else None
    single = all(channels.sizes.get(name) == (1,) for name in parts)
    return bool(single and rest is not None and rest.item() == -1)


def _shape_read(channels: Channels, number: int, node: Any) -> bool:
    """Shape, if its readers take only the batch size from it."""
    readers: Sequence[Any] = channels.graph.consumers(node.output[0])
    constants = channels.graph.constants
    first = attributes(node).get("start", 0) == 0 and attributes(node).get("end") == 1
    return bool(readers) and (
        first
        or all(
            reader.op_type == "Gather"
            and reader.input[1] in constants
            and math.prod(constants[reader.input[1]].shape) == 1
            and constants[reader.input[1]].item() == 0
            for reader in readers
        )
    )


_rules: dict[str, Rule] = {
    **dict.fromkeys((*UNARY, *POOLING), _passed_on),
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(RESHAPING, _reshaped),
    **dict.fromkeys(REDUCTIONS, _reduced),
    **dict.fromkeys(("Conv", "Gemm", "MatMul"), _dense),
    "BatchNormalization": _normalized,
    "Concat": _concatenated,
    "ConvTranspose": _conv_transposed,
    "Pad": _padded,
    "Resize": _resized,
    "Shape": _shape_read,
    "Split": _split,
    "Transpose": _transposed_axes,
}
