"""ONNX artifacts for Jetson: ONNX Runtime with TensorRT and CUDA.

TensorRT supports explicit quantization only: zero points of 0, activations per tensor, weights per channel, and biases
    in
float. Up to TensorRT 9, the builder chooses float or half precision for everything else. From 10 on, the types in the
file may decide, and from 11 on only they decide; so everything that is not int8 is float16 in the file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from converters.backends.context import ConversionContext
from converters.backends.contract import Artifact
from converters.backends.layers import Layer, layers_of, output_axis, raise_opset, without_four_bits
from converters.backends.onnx_common import artifact_of, half, named
from converters.backends.onnx_pads import unmerged_pads
from converters.backends.tensorrt_rules import Placement, choose_placement, violations
from converters.graph.graph import Graph, label
from edgekit.bundle.recipe import STATIC, WHOLE, Recipe
from edgekit.errors import ConversionError

TYPED_OPSET = 19  # the first operator set whose QuantizeLinear supports float16
INT8_LEVELS = 127


class OnnxTensorRTBackend:
    """Builds .onnx artifacts with a batch of 1: float32, float16, or symmetric QDQ int8 where TensorRT fuses it.

    Args:
        context: The context of the conversion.
        typed: Write everything that is not int8 as float16 into int8 artifacts.
    """

    name = "ONNX Runtime (TensorRT)"
    precisions: tuple[str, ...] = ("float32", "float16", STATIC)
    lowers = False

    def __init__(self, context: ConversionContext, *, typed: bool = False) -> None:
        self._context = context
        self._graph = context.fixed
        self._typed = typed

    @property
    def graph(self) -> Graph:
        """The graph of the artifacts. See `Backend.graph`."""
        return self._graph

    def layers(self, base: Recipe = WHOLE) -> tuple[Layer, ...]:
        """Layers that a recipe may name. See `Backend.layers`."""
        return without_four_bits(layers_of(self._context.base_graph(self._graph, base)))

    def build(self, recipe: Recipe) -> Artifact:
        """Make the .onnx of `recipe`. Raises as `Backend.build`."""
        if recipe.precision not in self.precisions or recipe.int4_layers:
            wanted = f"{recipe.precision} with 4-bit layers" if recipe.int4_layers else recipe.precision
            raise ConversionError(f"{self.name} supports {', '.join(self.precisions)}, not {wanted}")
        graph = named(unmerged_pads(self._context.prepared(recipe, self._graph)))
        if recipe.precision == "float32":
            return artifact_of(self._graph, graph.model, recipe)
        if recipe.precision == "float16":
            return artifact_of(self._graph, half(graph, keep=recipe.float_layers), recipe)
        if not recipe.symmetric or not recipe.per_channel:
            raise ConversionError(
                "TensorRT needs int8 activations with a zero point of 0 and weights with one scale per channel",
                advice="Set symmetric = true and per_channel = true in the recipe.",
            )
        model = self._int8(graph, recipe)
        return artifact_of(self._graph, model, recipe, calibration=self._context.calibration_bytes(recipe, self._graph))

    def _int8(self, graph: Graph, recipe: Recipe) -> onnx.ModelProto:
        placement = choose_placement(graph, recipe.float_layers)
        if not placement.layers:
            reasons = "; ".join(f"{name}: {why}" for name, why in placement.reasons.items())
            raise ConversionError(
                f"no layer gets faster in int8 on TensorRT ({reasons or 'no layer has weights'})",
                advice="Use float16.",
            )
        ranges = self._context.calibration_of(recipe, self._graph).ranges(recipe.ranges)
        if self._typed:
            graph = raise_opset(graph, TYPED_OPSET, "half precision beside int8")
        quantized = with_pairs(graph, placement, ranges)
        faults = violations(quantized)
        if faults:
            raise ConversionError("the placement of quantization breaks TensorRT's rules: " + "; ".join(faults))
        return half(quantized) if self._typed else quantized.model


def with_pairs(graph: Graph, placement: Placement, ranges: dict[str, tuple[float, float]]) -> Graph:
    """`graph` with pairs of QuantizeLinear and DequantizeLinear at the places of `placement`.

    Raises:
        ConversionError: a tensor has no calibrated range.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    model.graph.initializer.append(numpy_helper.from_array(np.int8(0), "quantized.zero"))
    skips = set(placement.skips)
    pairs: dict[str, str] = {}
    nodes: list[Any] = []
    for node in model.graph.node:
        chosen = [0] if label(node) in placement.layers else [i for i in range(2) if (label(node), i) in skips]
        for index in chosen:
            tensor = node.input[index]
            if tensor not in pairs:
                pairs[tensor] = f"quantized{len(pairs)}"
                nodes += _pair(model, tensor, pairs[tensor], ranges)
            node.input[index] = pairs[tensor]
        if label(node) in placement.layers:
            nodes.append(_weights(model, graph, node))
        nodes.append(node)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input} | {value.name for value in model.graph.output}
    read_constants = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(read_constants)
    return Graph(model)


def _pair(model: onnx.ModelProto, tensor: str, name: str, ranges: dict[str, tuple[float, float]]) -> list[Any]:
    if tensor not in ranges:
        raise ConversionError(f"tensor {tensor} was not calibrated, so its quantization has no range")
    reach = max(abs(ranges[tensor][0]), abs(ranges[tensor][1]))
    scale = np.float32(max(reach, 1e-6) / INT8_LEVELS)
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(scale), f"{name}.s"))
    return [
        helper.make_node("QuantizeLinear", [tensor, f"{name}.s", "quantized.zero"], [f"{name}.q"], name=f"{name}.Q"),
        helper.make_node("DequantizeLinear", [f"{name}.q", f"{name}.s", "quantized.zero"], [name], name=f"{name}.DQ"),
    ]


def _weights(model: onnx.ModelProto, graph: Graph, node: Any) -> Any:
    """Quantize the weights of `node` in `model`. Returns the DequantizeLinear that `node` reads from then on."""
    name, weights = node.input[1], graph.constants[node.input[1]]
    axis = output_axis(node, weights.ndim)
    others = tuple(i for i in range(weights.ndim) if i != axis)
    largest = np.abs(weights.astype(np.float64)).max(axis=others)
    scale = np.where(largest == 0, 1.0, largest) / INT8_LEVELS
    shape = [-1 if i == axis else 1 for i in range(weights.ndim)]
    integers = np.clip(np.rint(weights / scale.reshape(shape)), -INT8_LEVELS, INT8_LEVELS).astype(np.int8)
    made = f"{label(node)}.weights"
    for part, value in (("q", integers), ("s", scale.astype(np.float32)), ("z", np.zeros(scale.shape, np.int8))):
        model.graph.initializer.append(numpy_helper.from_array(value, f"{made}.{part}"))
    node.input[list(node.input).index(name, 1)] = made
    inputs = [f"{made}.q", f"{made}.s", f"{made}.z"]
    return helper.make_node("DequantizeLinear", inputs, [made], name=f"{made}.DQ", axis=axis)
