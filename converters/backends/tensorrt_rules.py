"""TensorRT's rules for quantization, on graphs: which nodes to quantize, and which rules a finished model breaks.

Sources: NVIDIA's documentation of explicit quantization, and the rules of its Model Optimizer. A layer is fused to an
int8 kernel when its input and its weights come from DequantizeLinear; the sum behind it is fused when the other branch
does too. Layers that get no faster, or need a change of format on both sides, stay in half precision.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import msgspec
import numpy as np

from converters.backends.layers import output_axis
from converters.graph.graph import Graph, attributes, label

WEIGHTED_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
SMALLEST_GEMM = 16  # smallest inner and outer size
SMALLEST_CONV, CONV_STEP = 16, 8  # channels: fewer than 16 must be a multiple of 8
NEVER = ("LayerNormalization", "Softmax", "Sigmoid", "Tanh", "Erf", "Gelu", "Exp", "Sqrt", "Pow", "NonMaxSuppression")
FOLLOWERS = ("Relu", "LeakyRelu", "Clip", "BatchNormalization")


class Placement(msgspec.Struct, frozen=True):
    """The places to quantize.

    Attributes:
        layers: Labels of the layers whose input and weights are quantized.
        skips: (label of an Add, index of its input) for the branch that joins the sum behind a quantized layer.
        reasons: Why each other layer is not quantized, by label.
    """

    layers: tuple[str, ...]
    skips: tuple[tuple[str, int], ...]
    reasons: dict[str, str]


def choose_placement(graph: Graph, keep: Collection[str] = ()) -> Placement:
    """The places to quantize in `graph`, whose batch is 1; `keep` are labels of layers that stay float."""
    reasons: dict[str, str] = {}
    layers = []
    for node in graph.nodes:
        if node.op_type not in WEIGHTED_OPERATORS:
            continue
        why = "the recipe keeps it float" if label(node) in keep else unfit(graph, node)
        if why:
            reasons[label(node)] = why
        else:
            layers.append(label(node))
    return Placement(tuple(layers), _skips(graph, set(layers)), reasons)


def unfit(graph: Graph, node: Any) -> str:
    """Why a layer should stay in half precision; empty where it should be quantized."""
    weights = graph.shapes.get(node.input[1], ())
    if node.input[1] not in graph.constants:
        return "both factors are activations, as inside attention"
    if _is_head(graph, node):
        return "it is a head: no later layer reduces the effect of its rounding"
    if "Conv" in node.op_type:
        group = int(attributes(node).get("group", 1))
        if group > 1:
            return "it is depthwise or grouped"
        few = [size for size in weights[:2] if size is not None and size < SMALLEST_CONV and size % CONV_STEP]
        return f"it has {few[0]} channels" if few else ""
    inner, outer = (weights[1], weights[0]) if attributes(node).get("transB") else (weights[-2], weights[-1])
    rows = math.prod(size or 1 for size in graph.shapes.get(node.output[0], (1, 1))[:-1])
    if 1 in (rows, inner, outer):
        return "it multiplies a vector"
    narrow = [size for size in (inner, outer) if size is not None and size < SMALLEST_GEMM]
    return f"it is only {narrow[0]} wide" if narrow else ""


def _is_head(graph: Graph, node: Any) -> bool:
    """True where no other layer depends on `node`."""
    visited, queue = set(), list(node.output)
    while queue:
        for reader in graph.consumers(queue.pop()):
            if reader.op_type in WEIGHTED_OPERATORS:
                return False
            fresh = [name for name in reader.output if name not in visited]
            visited.update(fresh)
            queue += fresh
    return True


def _skips(graph: Graph, layers: set[str]) -> tuple[tuple[str, int], ...]:
    """For each sum behind a quantized layer, the branch that is not fused with it: the one that is computed first."""
    order = {name: index for index, node in enumerate(graph.nodes) for name in node.output}
    makers = {name: node for node in graph.nodes for name in node.output}
    skips = []
    for node in graph.nodes:
        if node.op_type != "Add" or any(name in graph.constants for name in node.input) or len(set(node.input)) < 2:
            continue
        fused = [i for i, name in enumerate(node.input) if name in makers and label(makers[name]) in layers]
        fused = [i for i in fused if len(graph.consumers(node.input[i])) == 1]
        if fused:
            last = max(fused, key=lambda i: order[node.input[i]])
            skips.append((label(node), 1 - last))
    return tuple(skips)


def violations(graph: Graph) -> list[str]:
    """Everything in a quantized model that TensorRT refuses or runs slowly, one sentence each.

    The rules: Zero points are 0. Activations have one scale; weights have one per output channel, on the right axis. A
    layer has its input and its weights quantized, or neither. Biases are float. Nothing lies between a layer and the
    activation that is fused with it. The branch that joins a sum behind a quantized layer is quantized. Layers that do
    not fit, and operators without an int8 kernel, are not quantized.
    """
    makers = {name: node for node in graph.nodes for name in node.output}
    faults = []
    for node in graph.nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            faults += _pair_faults(graph, node)
        elif node.op_type in WEIGHTED_OPERATORS:
            faults += _layer_faults(graph, node, makers)
        elif node.op_type in NEVER and any(_dequantized(makers, name) for name in node.input):
            faults.append(f"{node.op_type} {label(node)} reads quantized values, but has no int8 kernel")
        elif node.op_type == "Add":
            faults += _sum_faults(graph, node, makers)
    return faults


def _pair_faults(graph: Graph, node: Any) -> list[str]:
    faults = []
    zero = graph.constants.get(node.input[2]) if len(node.input) > 2 else None
    if zero is not None and (zero.dtype != np.int8 or np.any(zero)):
        faults.append(f"{label(node)} has zero points of {zero.dtype} that are not all 0, expected int8 zeros")
    scale = graph.constants.get(node.input[1])
    if scale is None:
        faults.append(f"{label(node)} has a computed scale, expected a constant")
    elif scale.size > 1 and node.input[0] not in graph.constants:
        faults.append(f"{label(node)} has {scale.size} scales for an activation, expected one")
    if node.op_type == "QuantizeLinear":
        followers = [reader.op_type for reader in graph.consumers(node.output[0])]
        if any(kind != "DequantizeLinear" for kind in followers):
            faults.append(f"{label(node)} is read by {', '.join(followers)}, expected DequantizeLinear")
    return faults


def _layer_faults(graph: Graph, node: Any, makers: dict[str, Any]) -> list[str]:
    quantized = [_dequantized(makers, name) for name in node.input[:2]]
    name = f"{node.op_type} {label(node)}"
    if not any(quantized):
        return []
    faults = []
    if not all(quantized):
        faults.append(
            f"{name} has only its {'input' if quantized[0] else 'weights'} quantized, expected both or neither"
        )
    elif makers[node.input[1]].input[0] in graph.constants:
        faults += _weight_faults(graph, node, makers[node.input[1]])
        why = unfit(_as_float(graph, node, makers), node)
        if why:
            faults.append(f"{name} is quantized: {why}")
    else:
        faults.append(f"{name} is quantized: both factors are activations, as inside attention")
    if len(node.input) > 2 and _dequantized(makers, node.input[2]):
        faults.append(f"{name} has a quantized bias, expected a float one")
    readers = graph.consumers(node.output[0])
    next_nodes = [r for reader in readers if reader.op_type == "QuantizeLinear" for r in _after(graph, reader)]
    fused = [reader.op_type for reader in next_nodes if reader.op_type in FOLLOWERS]
    if fused:
        faults.append(f"{name} is quantized before its {fused[0]}, expected after it, so that the two can be fused")
    return faults


def _weight_faults(graph: Graph, node: Any, pair: Any) -> list[str]:
    scale, weights = graph.constants.get(pair.input[1]), graph.constants[pair.input[0]]
    axis = output_axis(node, weights.ndim)
    actual = attributes(pair).get("axis", 1) % weights.ndim
    if scale is not None and (scale.size != weights.shape[axis] or (scale.size > 1 and actual != axis)):
        return [
            f"{node.op_type} {label(node)} has {scale.size} weight scales on axis {actual}, expected "
            f"{weights.shape[axis]} on axis {axis}"
        ]
    return []


def _sum_faults(graph: Graph, node: Any, makers: dict[str, Any]) -> list[str]:
    """Faults of a sum that reads a quantized layer directly."""
    quantized = [_dequantized(makers, name) for name in node.input]
    from_layer = [
        name in makers
        and makers[name].op_type in WEIGHTED_OPERATORS
        and all(_dequantized(makers, part) for part in makers[name].input[:2])
        and len(graph.consumers(name)) == 1
        for name in node.input
    ]
    constant = any(name in graph.constants for name in node.input)
    if any(from_layer) and not any(quantized) and not constant and len(set(node.input)) == 2:
        return [f"Add {label(node)} joins a quantized layer with a float branch, expected the branch to be quantized"]
    return []


def _dequantized(makers: dict[str, Any], name: str) -> bool:
    return name in makers and makers[name].op_type == "DequantizeLinear"


def _after(graph: Graph, quantizer: Any) -> list[Any]:
    pairs = [r for r in graph.consumers(quantizer.output[0]) if r.op_type == "DequantizeLinear"]
    return [reader for pair in pairs for reader in graph.consumers(pair.output[0])]


class _FloatView:
    """The parts of a graph that `unfit` reads, with the weights of one layer as if they were not quantized."""

    def __init__(self, graph: Graph, node: Any, pair: Any) -> None:
        self._graph = graph
        self.constants = {**graph.constants, node.input[1]: graph.constants[pair.input[0]]}
        self.shapes = {**graph.shapes, node.input[1]: graph.constants[pair.input[0]].shape}

    def consumers(self, tensor: str) -> list[Any]:
        return self._graph.consumers(tensor)


def _as_float(graph: Graph, node: Any, makers: dict[str, Any]) -> Any:
    return _FloatView(graph, node, makers[node.input[1]])
