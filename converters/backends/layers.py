"""The layers that a recipe may name: the nodes of the canonical graph that hold weights."""

from __future__ import annotations

from typing import Any

import msgspec
from onnx import version_converter

from converters.foreign_text import failure
from converters.graph.graph import Graph, attributes, label
from edgekit.bundle.recipe import Recipe
from edgekit.errors import ConversionError

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN")


class Layer(msgspec.Struct, frozen=True):
    """A node with constant weights.

    Attributes:
        name: Name of the canonical node, as recipes name it.
        operator: ONNX operator.
        weights: Number of weights without biases.
        macs: Multiply-adds of one row.
        four_bit: Its weights can have 4 bits. Depthwise convolutions have too few weights to save much.
    """

    name: str
    operator: str
    weights: int
    macs: int
    four_bit: bool


def layers_of(graph: Graph) -> tuple[Layer, ...]:
    """The layers of `graph` in order of execution."""
    constants = graph.constants
    return tuple(
        Layer(
            name=label(node),
            operator=node.op_type,
            weights=sum(constants[name].size for name in weight_names(graph, node)),
            macs=graph.macs.get(node.output[0], 0),
            four_bit=_four_bit(graph, node),
        )
        for node in graph.nodes
        if weight_names(graph, node)
    )


def search_macs(graph: Graph, rows: int) -> float:
    """Estimated multiply-adds of a search on `rows` calibration rows, which tells whether the search will be long.

    For each layer, the graph runs once for its score and once for rounding, and rounding multiplies the weights by a
    square matrix of the inputs.
    """
    layers = layers_of(graph)
    return float(len(layers) * rows * sum(layer.macs for layer in layers) + sum(layer.weights**1.5 for layer in layers))


def four_bit_default(layers: tuple[Layer, ...]) -> tuple[str, ...]:
    """Names of the layers that usually lose little with 4 bits: all that can have them, except the first and last."""
    return tuple(layer.name for layer in layers[1:-1] if layer.four_bit)


def without_four_bits(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """`layers` for a backend without 4-bit weights."""
    return tuple(msgspec.structs.replace(layer, four_bit=False) for layer in layers)


def require_layers(recipe: Recipe, layers: tuple[Layer, ...]) -> None:
    """Check the layers that `recipe` names.

    Raises:
        ConversionError: there is no such layer, or its weights cannot have 4 bits.
    """
    known = {layer.name: layer for layer in layers}
    unknown = [name for name in (*recipe.float_layers, *recipe.int4_layers) if name not in known]
    if unknown:
        raise ConversionError(
            f"the recipe names the layers {', '.join(unknown)}, which the model does not have",
            advice=f"The model's layers: {', '.join(known)}.",
        )
    wide = [name for name in recipe.int4_layers if not known[name].four_bit]
    if wide:
        raise ConversionError(
            f"the recipe sets 4 bits for {', '.join(wide)}, which cannot have 4-bit weights",
            advice=f"Layers that can: {', '.join(layer.name for layer in layers if layer.four_bit) or 'none'}.",
        )


def weight_names(graph: Graph, node: Any) -> list[str]:
    """Names of the constants that are the weights of `node`; empty where it holds none."""
    inputs = list(node.input)
    if node.op_type not in WEIGHTED:
        return []
    positions = (1, 2) if node.op_type in ("LSTM", "GRU", "RNN") else (1,)
    return [inputs[i] for i in positions if len(inputs) > i and inputs[i] in graph.constants]


def output_axis(node: Any, rank: int) -> int:
    """The axis of a layer's weights (of `rank` axes) that its outputs are along."""
    if node.op_type == "Conv" or (node.op_type == "Gemm" and attributes(node).get("transB")):
        return 0
    return rank - 1 if node.op_type == "MatMul" else 1


def raise_opset(graph: Graph, opset: int, purpose: str) -> Graph:
    """`graph` in operator set `opset` or a later one, which `purpose` needs.

    Raises:
        ConversionError: the graph cannot be converted to that set.
    """
    if graph.opset >= opset:
        return graph
    try:
        return Graph(version_converter.convert_version(graph.model, opset))
    except (RuntimeError, ValueError) as error:  # the base classes of the converter's errors
        work = f"converting the model from operator set {graph.opset} to {opset}, which {purpose} needs,"
        raise failure("ONNX", work, error) from error


def _four_bit(graph: Graph, node: Any) -> bool:
    operator, settings = node.op_type, attributes(node)
    if operator == "Conv":
        planes = graph.constants[node.input[1]].ndim <= 4  # LiteRT computes a volume as several planes
        return bool(settings.get("group", 1) == 1) and planes
    if operator == "Gemm":
        return bool(settings.get("alpha", 1.0) == 1.0 and not settings.get("transA"))
    return bool(operator == "MatMul" and graph.constants[node.input[1]].ndim == 2)
