"""Rules per operator: which channels it passes on, mixes or fixes (see groups.py).

A rule returns False if it does not cover a node. The channels of the node's inputs and outputs are then fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from converters.graph.graph import Graph, attributes, label
from converters.passes.channels import moving
from converters.passes.channels.groups import Channels, Cut, Lanes, Read
from converters.passes.weights import Dense, is_dense
from edgekit.tensors import Array

UNARY = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Elu",
    "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "Mish", "Neg", "Not",
    "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt",
    "Swish", "Tan", "Tanh", "ThresholdedRelu",
)  # fmt: skip
ELEMENTWISE = ("Add", "Div", "Max", "Mean", "Min", "Mul", "PRelu", "Pow", "Sub", "Sum", "Where")
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
            channels.fix(name, f"it reaches {node.op_type} {label(node)}, which mixes channels in its own way")
    for value in graph.model.graph.output:
        channels.fix(value.name, f"it reaches the output {value.name}")
    if any(entry.HasField("g") or entry.graphs for node in graph.nodes for entry in node.attribute):
        channels.fix_all("the model has branches or loops")  # the rules do not look into subgraphs
    return channels


def _dense(channels: Channels, number: int, node: Any) -> bool:
    """Conv, Gemm and MatMul read their input channels and make new ones. A depthwise Conv passes its channels on.

    In a grouped Conv, the channels at the same place of each group form a group, so that all groups stay equally large.
    """
    graph = channels.graph
    rank, rank_out = (len(channels.sizes.get(name, ())) for name in (node.input[0], node.output[0]))
    if rank < 2 or rank_out < 2 or not is_dense(graph, node):
        return False
    layer, image = Dense(graph, node), node.op_type == "Conv"
    inputs = channels.lanes_at(node.input[0], 1 if image else rank - 1)
    if inputs is None or len(inputs.ids) % layer.group:
        return False
    first = image or bool(node.op_type == "Gemm" and attributes(node).get("transB"))
    if layer.group == len(inputs.ids) > 1:
        ids = np.repeat(inputs.ids, len(layer.matrix) // layer.group)
        channels.groups[number] = inputs.ids
    else:
        ids = channels.new_ids(len(layer.matrix))
        channels.made[number] = ids
        channels.reads.append(Read(number, node.input[0], inputs, _used(layer, inputs)))
        each = len(inputs.ids) // layer.group
        channels.cuts.append(Cut(number, 1, 1 if first else 0, inputs.ids[:each]))
        for group in range(1, layer.group):
            channels.unite(inputs.ids[:each], inputs.ids[group * each : (group + 1) * each])
            made = len(ids) // layer.group
            channels.unite(ids[:made], ids[group * made : (group + 1) * made])
    channels.cuts.append(Cut(number, 1, 0 if first else 1, ids))
    channels.lanes[node.output[0]] = Lanes(1 if image else rank_out - 1, ids)
    if len(node.input) < 3 or not node.input[2]:
        return True
    bias = graph.constants[node.input[2]]
    if bias.ndim and bias.shape[-1] == bias.size == len(ids):
        channels.cuts.append(Cut(number, 2, bias.ndim - 1, ids))
    return bool(bias.size in (1, len(ids)))


def _used(layer: Dense, inputs: Lanes) -> Array:
    """False for each input channel (L,) whose weights are all 0."""
    each = len(inputs.ids) // layer.group
    weights = layer.matrix.reshape(layer.group, -1, each, layer.matrix.shape[1] // each)
    used: Array = (weights != 0).any(axis=(1, 3)).ravel()
    return used


def _multiplied(channels: Channels, number: int, node: Any) -> bool:
    """MatMul of two tensors, as in attention: channels along a batch axis (heads) or along the last axis pass through.

    The columns of the second factor do not depend on each other. Sums over channels are not followed.
    """
    one, other = (channels.lanes.get(name) for name in node.input)
    ranks = {len(channels.sizes.get(name, ())) for name in (*node.input, *node.output)}
    if len(ranks) > 1 or min(ranks) < 3:
        return False
    rank = min(ranks)
    if one is not None and other is not None and one.axis == other.axis < rank - 2:
        if len(one.ids) != len(other.ids):
            return False
        channels.unite(one.ids, other.ids)
        channels.lanes[node.output[0]] = one
        return True
    if other is not None and other.axis == rank - 1 and node.input[0] not in channels.graph.constants:
        channels.fix(node.input[0], f"it is summed over by {label(node)}")
        channels.lanes[node.output[0]] = other
        return True
    return False


def _matrix_product(channels: Channels, number: int, node: Any) -> bool:
    constants = channels.graph.constants
    if node.input[0] not in constants and node.input[1] not in constants:
        return _multiplied(channels, number, node)
    return _dense(channels, number, node)


def _recurrent(channels: Channels, number: int, node: Any) -> bool:
    """LSTM, GRU and RNN read the channels of their input; the channels that they make are fixed."""
    constants = channels.graph.constants
    inputs = channels.lanes.get(node.input[0])
    if inputs is None or inputs.axis != 2 or node.input[1] not in constants or attributes(node).get("layout"):
        return False
    used = (constants[node.input[1]] != 0).any(axis=(0, 1))
    channels.reads.append(Read(number, node.input[0], inputs, used))
    channels.cuts.append(Cut(number, 1, 2, inputs.ids))
    for name in node.input[2:]:
        channels.fix(name, f"it is a state of {label(node)}")
    return True


def _normalized_along(channels: Channels, number: int, node: Any) -> bool:
    """Softmax and LayerNormalization over other axes than that of the channels."""
    lanes = channels.lanes.get(node.input[0])
    rank = len(channels.sizes.get(node.input[0], ()))
    axis = int(attributes(node).get("axis", -1))
    if lanes is None or not rank or len([name for name in node.output if name]) > 1:
        return False
    if node.op_type == "LayerNormalization":
        apart = lanes.axis < axis % rank
    else:
        apart = channels.graph.opset >= 13 and lanes.axis != axis % rank
    if apart:
        channels.lanes[node.output[0]] = lanes
    return apart


def _instance_normalized(channels: Channels, number: int, node: Any) -> bool:
    """InstanceNormalization: each channel alone, with two constants per channel."""
    lanes = channels.lanes.get(node.input[0])
    known = all(name in channels.graph.constants for name in node.input[1:3])
    if lanes is None or lanes.axis != 1 or not known:
        return False
    channels.cuts += [Cut(number, input_index, 0, lanes.ids) for input_index in (1, 2)]
    channels.lanes[node.output[0]] = lanes
    return True


def _conv_transposed(channels: Channels, number: int, node: Any) -> bool:
    """ConvTranspose of one group; axis 0 of its weights are the input channels."""
    constants = channels.graph.constants
    known = all(name in constants for name in node.input[1:] if name)
    inputs = channels.lanes_at(node.input[0], 1)
    if not known or inputs is None or attributes(node).get("group", 1) != 1:
        return False
    weights = constants[node.input[1]]
    ids = channels.new_ids(weights.shape[1])
    channels.made[number] = ids
    used = (weights.reshape(*weights.shape[:2], -1) != 0).any(axis=(1, 2))
    channels.reads.append(Read(number, node.input[0], inputs, used))
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
    """Elementwise operators with several inputs: channels at the same position form a group.

    An input with fewer axes, or with size 1 along the channels, has one value for all channels.
    """
    constants = channels.graph.constants
    rank = len(channels.sizes.get(node.output[0], ()))
    tensors = [name for name in node.input if name not in constants]
    placed = [one for name in tensors if (one := _placed(channels, name, rank)) is not None]
    if not placed or not rank:
        return False
    wide = max(placed, key=lambda one: len(one.ids))
    full_width = []
    for name in tensors:
        lacking = rank - len(channels.sizes.get(name, ()))
        if lacking > wide.axis:
            channels.fix(name, "it is one value for all channels of another tensor")
            continue
        one = channels.lanes_at(name, wide.axis - lacking)
        if one is None or len(one.ids) not in (1, len(wide.ids)):
            return False
        if len(one.ids) == len(wide.ids):
            full_width.append(one.ids)
        else:
            channels.fix(name, "it is one value for all channels of another tensor")
    cuts = _constant_cuts(channels, number, node, rank, wide)
    if cuts is None:
        return False
    for ids in full_width:
        channels.unite(wide.ids, ids)
    channels.cuts += cuts
    channels.lanes[node.output[0]] = wide
    return True


def _placed(channels: Channels, name: str, rank: int) -> Lanes | None:
    """The channels of an input of an elementwise node along the axis of its output, which has `rank` axes."""
    lanes = channels.lanes.get(name)
    return Lanes(lanes.axis + rank - len(channels.sizes.get(name, ())), lanes.ids) if lanes is not None else None


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
        if axis >= 0 and size == len(lanes.ids):
            cuts.append(Cut(number, input_index, axis, lanes.ids))
    return cuts


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


def _resized(channels: Channels, number: int, node: Any) -> bool:
    """Resize to constant sizes, or by constant scales with scale 1 for the channels, or to the channels it has."""
    lanes, constants = channels.lanes.get(node.input[0]), channels.graph.constants
    given = [(input_index, name) for input_index, name in enumerate(node.input) if input_index >= 2 and name]
    if lanes is not None and moving.keeps_first_sizes(channels, node):
        channels.lanes[node.output[0]] = lanes
        return lanes.axis < moving.FIRST_SIZES
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


_rules: dict[str, Rule] = {
    **dict.fromkeys((*UNARY, *POOLING), _passed_on),
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(RESHAPING, moving.reshaped),
    **dict.fromkeys(REDUCTIONS, _reduced),
    **dict.fromkeys(("Conv", "Gemm"), _dense),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), _recurrent),
    **dict.fromkeys(("LayerNormalization", "LogSoftmax", "Softmax"), _normalized_along),
    "BatchNormalization": _normalized,
    "Concat": moving.concatenated,
    "ConvTranspose": _conv_transposed,
    "Expand": moving.expanded,
    "Gather": moving.gathered,
    "InstanceNormalization": _instance_normalized,
    "MatMul": _matrix_product,
    "Pad": _padded,
    "Resize": _resized,
    "Shape": moving.shape_read,
    "Slice": moving.sliced,
    "Split": moving.split,
    "Transpose": moving.transposed_axes,
}
