"""Fold a constant factor behind or in front of a dense layer or a convolution into its weights and bias.

TensorFlow's converter does the same later, when it would undo a rounding of the weights to 4 bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper

from converters.graph.graph import Graph, attributes
from converters.lowering.fusing import gelu_results
from edgekit.tensors import Array

DENSE = ("MatMul", "Gemm")
LAYERS = (*DENSE, "Conv")


class FoldFactors:
    """Folds each Mul and Div by a constant that is the only reader of a layer, or that only layers read.

    A layer is a MatMul, Gemm or Conv. Behind it, the constant may have a factor for each channel; in front it is one
    number. An Add of a constant behind a MatMul is its bias. Weights that other nodes read stay: a copy would make the
    file larger. Different factors in front of a layer stay too: they bring its inputs to one scale, which int8 needs.
    The factor that ends a gelu stays, because without it nothing knows it as one.
    """

    name = "fold-factors"

    def applies(self, graph: Graph) -> bool:
        """True if at least one can be folded."""
        return next(_found(graph), None) is not None

    def run(self, graph: Graph) -> Graph:
        """The graph with new weights under new names."""
        while (factor := next(_found(graph), None)) is not None:
            graph = _folded(graph, factor)
        return graph

    def holds(self, graph: Graph) -> bool:
        """No factor that can be folded is left."""
        return not self.applies(graph)


class _Factor(NamedTuple):
    """A factor that goes into constants, and the tensor that takes another's place when `node` is gone."""

    node: Any
    new: Mapping[str, Array]  # constants with the factor in them, by the name of the old one
    gone: str
    instead: str


class _Uses(NamedTuple):
    """The graph with what its tensors are for."""

    graph: Graph
    makers: Mapping[str, Any]
    readers: Mapping[str, list[Any]]  # a node once for each of its inputs
    results: frozenset[str]

    def read_once(self, name: str) -> bool:
        return len(self.readers[name]) == 1 and name not in self.results


def _found(graph: Graph) -> Iterator[_Factor]:
    if any(one.type == onnx.AttributeProto.GRAPH for node in graph.nodes for one in node.attribute):
        return  # branches may read tensors of the graph around them
    readers: dict[str, list[Any]] = {}
    for node in graph.nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    makers = {name: node for node in graph.nodes for name in node.output}
    gelus = gelu_results(graph)
    uses = _Uses(graph, makers, readers, frozenset(value.name for value in graph.model.graph.output))
    for node in graph.nodes:
        if node.op_type not in ("Mul", "Div") or node.output[0] in gelus:
            continue
        for value, constant in (node.input, node.input[::-1])[: 1 + (node.op_type == "Mul")]:
            scale = _scale(graph.constants.get(constant), divide=node.op_type == "Div")
            if scale is None:
                continue
            new = _behind(uses, value, scale)
            if new:
                yield _Factor(node, new, value, node.output[0])
            elif scale.size == 1 and scale.ndim <= 2 and (new := _in_front(uses, node.output[0], scale.reshape(-1))):
                yield _Factor(node, new, node.output[0], value)


def _scale(factor: Array | None, *, divide: bool) -> Array | None:
    """The number that the factor multiplies by, in float64; None where there is none."""
    if factor is None or factor.dtype != np.float32 or (divide and not factor.all()):
        return None
    scale = factor.astype(np.float64)
    return 1.0 / scale if divide else scale


def _for_channels(scale: Array, layer: Any, weights: Array) -> Array | None:
    """The factor behind `layer` as (channels,) or (1,); None where it is no factor for each channel."""
    rank = weights.ndim if layer.op_type == "Conv" else 2
    if scale.ndim > rank:
        return None
    axis = 1 if layer.op_type == "Conv" else rank - 1
    shape = (1,) * (rank - scale.ndim) + scale.shape
    return scale.reshape(-1) if scale.size == shape[axis] else None


def _behind(uses: _Uses, value: str, scale: Array) -> dict[str, Array] | None:
    """Constants of the layer that makes the tensor `value`, multiplied by `scale`; None where it makes no such."""
    graph, parts = uses.graph, _parts(uses.graph, uses.makers, value)
    if not parts or not all(uses.read_once(one.output[0]) for one in parts):
        return None
    layer = parts[0]
    factor = _for_channels(scale, layer, graph.constants[layer.input[1]])
    if factor is None:
        return None
    names = [layer.input[1]]
    if len(layer.input) > 2 and layer.input[2]:
        names.append(layer.input[2])
    names += [name for one in parts[1:] for name in one.input if name in graph.constants]
    if not all(name in graph.constants and uses.read_once(name) for name in names):
        return None
    new: dict[str, Array] = {}
    for index, name in enumerate(names):
        old = graph.constants[name]
        if index and (old.size not in (1, _outputs(graph, layer)) or old.size != _last(old)):
            return None
        made = _weights(graph, layer, factor) if index == 0 else _product(old, factor)
        if made is None:
            return None
        new[name] = made
    return new


def _in_front(uses: _Uses, value: str, scale: Array) -> dict[str, Array] | None:
    """Weights of all layers that read the tensor `value`, times the number `scale`; None where others read it too."""
    layers = uses.readers.get(value, [])
    if not layers or value in uses.results:
        return None
    new: dict[str, Array] = {}
    for layer in layers:
        if layer.op_type not in LAYERS or layer.input[0] != value or list(layer.input).count(value) > 1:
            return None
        name = layer.input[1]
        if name not in uses.graph.constants or not uses.read_once(name):
            return None
        if layer.op_type == "Gemm" and attributes(layer).get("transA"):
            return None
        made = _weights(uses.graph, layer, scale)
        if made is None:
            return None
        new[name] = made
    return new


def _parts(graph: Graph, makers: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    """The layer that makes the tensor `name`, with the Add of its bias; empty for any other."""
    node = makers.get(name)
    if node is None:
        return ()
    if node.op_type in LAYERS:
        return (node,) if node.input[1] in graph.constants else ()
    if node.op_type == "Add":
        for value, bias in (node.input, node.input[::-1]):
            layer = makers.get(value)
            if bias in graph.constants and layer is not None and layer.op_type == "MatMul":
                return (layer, node) if layer.input[1] in graph.constants else ()
    return ()


def _is_across(layer: Any) -> bool:
    """True where the weights of a layer have the outputs first."""
    return layer.op_type == "Conv" or (layer.op_type == "Gemm" and bool(attributes(layer).get("transB")))


def _outputs(graph: Graph, layer: Any) -> int:
    return int(graph.constants[layer.input[1]].shape[0 if _is_across(layer) else -1])


def _last(values: Array) -> int:
    return int(values.shape[-1]) if values.ndim else 1


def _weights(graph: Graph, layer: Any, scale: Array) -> Array | None:
    """The layer's weights times one number, or a factor for each output; None where it does not fit."""
    weights = graph.constants[layer.input[1]]
    if weights.dtype != np.float32 or (layer.op_type in DENSE and weights.ndim != 2):
        return None
    if scale.size not in (1, _outputs(graph, layer)):
        return None
    is_first = _is_across(layer) and scale.size > 1
    return _product(weights, scale.reshape(-1, *(1,) * (weights.ndim - 1)) if is_first else scale)


def _product(old: Array, scale: Array) -> Array | None:
    """`old` times `scale` in float32; None where a value would leave float32."""
    with np.errstate(over="ignore"):
        made: Array = (old * scale).astype(np.float32)
    lost = (made == 0) & ((old != 0) & (scale != 0))
    return made if np.isfinite(made).all() and not lost.any() else None


def _folded(graph: Graph, factor: _Factor) -> Graph:
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    stem = factor.node.output[0]
    names = {name: f"{stem}.{index}" for index, name in enumerate(factor.new)}
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in names]
    kept += [numpy_helper.from_array(np.ascontiguousarray(factor.new[old]), new) for old, new in names.items()]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    renamed = {**names, factor.gone: factor.instead}
    for node in list(model.graph.node):
        if node.output[0] == stem:
            model.graph.node.remove(node)
            continue
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    infos = [value for value in model.graph.value_info if value.name != factor.gone]
    del model.graph.value_info[:]
    model.graph.value_info.extend(infos)
    read = {name for node in model.graph.node for name in node.input} | {v.name for v in model.graph.output}
    left = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(left)
    return Graph(model)
