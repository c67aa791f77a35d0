"""Read and write the weights of convolutions and dense layers as a matrix over patches of their input, and a bias.

Passes that change weights use these functions. A Graph is immutable, so each write returns a new one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from onnx import numpy_helper

from converters.data.samples import Samples
from converters.graph.graph import Graph, attributes, label
from edgekit.runtimes.onnx import OnnxRuntime
from edgekit.tensors import Array


class Dense:
    """One Conv, Gemm or MatMul with constant weights.

    Args:
        graph: The graph that contains the node.
        node: One of the graph's nodes, for which `is_dense` holds.
    """

    def __init__(self, graph: Graph, node: Any) -> None:
        self.node = node
        self.name = label(node)
        self.group = int(attributes(node).get("group", 1)) if node.op_type == "Conv" else 1
        self.weight_name = node.input[1]
        self._weights = graph.constants[node.input[1]]
        self._attributes = attributes(node)
        self._bias_add = None if node.op_type != "MatMul" else _added_bias(graph, node)
        # the output after the bias, which a MatMul gets from a separate Add
        self.output = self._bias_add.output[0] if self._bias_add is not None else node.output[0]

    @property
    def matrix(self) -> Array:
        """Weights (O, K), float64: one row per output channel, columns in the order of `features`."""
        weights = self._weights.astype(np.float64)
        if self.node.op_type == "Conv":
            return weights.reshape(len(weights), -1)
        return weights if self._attributes.get("transB") else weights.T

    @property
    def dtype(self) -> Any:
        """The type of the weights."""
        return self._weights.dtype

    def weights_of(self, matrix: Array) -> Array:
        """`matrix` (O, K) in the shape and dtype of the graph's constant."""
        if self.node.op_type == "Conv" or self._attributes.get("transB"):
            return matrix.reshape(self._weights.shape).astype(self._weights.dtype)
        return np.ascontiguousarray(matrix.T, dtype=self._weights.dtype)

    def bias_name(self) -> str | None:
        """The name of the bias constant; None if there is none."""
        if self._bias_add is not None:
            return str(next(name for name in self._bias_add.input if name != self.node.output[0]))
        has = self.node.op_type != "MatMul" and len(self.node.input) > 2 and self.node.input[2]
        return str(self.node.input[2]) if has else None

    @property
    def can_have_bias(self) -> bool:
        """False for a MatMul without a constant Add behind it."""
        return self.node.op_type != "MatMul" or self._bias_add is not None

    def features(self, x: Array) -> Array:
        """Patches (positions, K) of one row's input `x`; for group 1 the output is ``features @ matrix.T + bias``."""
        if self.node.op_type == "Conv":
            return patches(x, self._weights.shape[2:], self._attributes)
        return x.reshape(-1, x.shape[-1])

    def results(self, y: Array) -> Array:
        """Output `y` of one row as (positions, O), positions in the order of `features`."""
        if self.node.op_type == "Conv":
            return np.moveaxis(y, 1, -1).reshape(-1, y.shape[1])
        return y.reshape(-1, y.shape[-1])


def is_dense(graph: Graph, node: Any) -> bool:
    """True for a Conv, a plain Gemm, or a MatMul by a matrix, whose weights are constant."""
    if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] not in graph.constants:
        return False
    given = attributes(node)
    if node.op_type == "Gemm":
        plain = given.get("alpha", 1.0) == 1.0 and given.get("beta", 1.0) == 1.0 and not given.get("transA")
        return bool(plain and (len(node.input) < 3 or not node.input[2] or _of_channels(graph, node)))
    if node.op_type == "Conv":
        return len(node.input) < 3 or not node.input[2] or node.input[2] in graph.constants
    return bool(graph.constants[node.input[1]].ndim == 2)


def _of_channels(graph: Graph, node: Any) -> bool:
    """True if the bias of a Gemm is constant and has one number for each output channel."""
    bias, weights = graph.constants.get(node.input[2]), graph.constants[node.input[1]]
    width = weights.shape[0 if attributes(node).get("transB") else 1]
    return bias is not None and bias.size == width and bias.shape[-1:] == (width,)


def dense_layers(graph: Graph) -> list[Dense]:
    """Every layer for which `is_dense` holds, in order of execution."""
    return [Dense(graph, node) for node in graph.nodes if is_dense(graph, node)]


def patches(x: Array, kernel: Sequence[int], given: Mapping[str, Any]) -> Array:
    """Patches (positions, channels * kernel) of `x` (1, channels, ...), the operand of a convolution of group 1."""
    rank = len(kernel)
    windows = patch_windows(x, kernel, given)[0]
    order = (*range(1, rank + 1), 0, *range(rank + 1, 2 * rank + 1))
    flat: Array = windows.transpose(order).reshape(math.prod(windows.shape[1 : rank + 1]), -1)
    return flat


def patch_windows(x: Array, kernel: Sequence[int], given: Mapping[str, Any]) -> Array:
    """A view (N, channels, positions ..., kernel ...) of the padded `x` (N, channels, ...) of a convolution."""
    rank = len(kernel)
    strides = list(given.get("strides", [1] * rank))
    dilations = list(given.get("dilations", [1] * rank))
    pads = _pads(x.shape[2:], kernel, strides, dilations, given)
    margins = [(pads[i], pads[rank + i]) for i in range(rank)]
    padded = np.pad(x, [(0, 0), (0, 0), *margins])
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    windows = sliding_window_view(padded, reach, axis=tuple(range(2, rank + 2)))
    steps = tuple(slice(None, None, s) for s in strides)
    inside = tuple(slice(None, None, d) for d in dilations)
    chosen = (slice(None), slice(None), *steps, *inside)
    view: Array = windows[chosen]
    return view


def with_constants(graph: Graph, values: Mapping[str, Array], biases: Mapping[str, Array] | None = None) -> Graph:
    """`graph` with new `values` of constants by name, and with `biases` for nodes (by label) that had none."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    remaining = dict(values)
    for tensor in model.graph.initializer:
        if tensor.name in remaining:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(remaining.pop(tensor.name)), tensor.name))
    for node in [n for n in model.graph.node if n.op_type == "Constant" and n.output[0] in remaining]:
        name = node.output[0]
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(remaining.pop(name)), name))
        model.graph.node.remove(node)
    for node in model.graph.node:
        bias = (biases or {}).get(label(node))
        if bias is not None:
            name = f"{node.output[0]}.bias"
            model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(bias), name))
            node.input[:] = [*node.input[:2], name]
    return Graph(model)


def with_layer(graph: Graph, layer: Dense, matrix: Array, bias: Array | None) -> Graph:
    """`graph` with new weights (O, K) of `layer`, and a new bias (O,) unless `bias` is None."""
    values, new = ({}, {}) if bias is None else with_bias(graph, layer, bias)
    return with_constants(graph, {layer.weight_name: layer.weights_of(matrix), **values}, new)


def with_bias(graph: Graph, layer: Dense, bias: Array) -> tuple[dict[str, Array], dict[str, Array]]:
    """A new bias (O,) as arguments of `with_constants`: a constant, or the bias of a layer that had none."""
    name, bias = layer.bias_name(), bias.astype(layer.dtype)
    if name is not None:
        return {name: bias.reshape(graph.constants[name].shape)}, {}
    return {}, {layer.name: bias}


def read_by_one(graph: Graph, name: str) -> bool:
    """True if exactly one input of one node is `name`."""
    return sum(list(node.input).count(name) for node in graph.nodes) == 1


def tensors_of_rows(graph: Graph, tensors: Collection[str], samples: Samples) -> Iterator[dict[str, Array]]:
    """The values of `tensors` of `graph` (batch 1) for each row of `samples`; they may be inputs."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.output[:]
    made = dict.fromkeys(name for name in tensors if name not in samples.inputs)
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in made)
    runtime = OnnxRuntime(model.SerializeToString(), threads=1) if made else None
    del model
    try:
        for row in range(len(samples)):
            inputs = {name: value[row : row + 1] for name, value in samples.inputs.items()}
            yield inputs | (runtime.run(inputs) if runtime else {})
    finally:
        if runtime:
            runtime.close()


def _added_bias(graph: Graph, node: Any) -> Any:
    readers = graph.consumers(node.output[0])
    if len(readers) != 1 or readers[0].op_type != "Add" or node.output[0] in {v.name for v in graph.outputs}:
        return None
    other = [name for name in readers[0].input if name != node.output[0]]
    width = graph.constants[node.input[1]].shape[-1]
    known = len(other) == 1 and other[0] in graph.constants
    if not known or graph.constants[other[0]].size != width or graph.constants[other[0]].shape[-1] != width:
        return None
    return readers[0]


def _pads(
    sizes: Sequence[int], kernel: Sequence[int], strides: list[int], dilations: list[int], given: Mapping[str, Any]
) -> list[int]:
    mode = given.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", "VALID"):
        return list(given.get("pads", [0] * (2 * len(kernel)))) if mode == "NOTSET" else [0] * (2 * len(kernel))
    before, after = [], []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
        small, large = total // 2, total - total // 2
        before.append(small if mode == "SAME_UPPER" else large)
        after.append(large if mode == "SAME_UPPER" else small)
    return before + after
