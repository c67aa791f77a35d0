"""The canonical graph with other rounding in its layers, as another runtime has it.

A decision between two nearly equal values (the peaks of a heat map, a rank, a rounded answer) falls either way with the
order of a runtime's sums, and the answer jumps with it. The graph that this module makes shows which answers do so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from converters.graph.graph import Graph
from edgekit.tensors import Array

# Operators that sum, whose float results depend on the order of the sums, and functions that runtimes approximate.
SUMS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "ReduceMean", "ReduceSum", "GlobalAveragePool",
                  "AveragePool", "GRU", "LSTM", "RNN", "LayerNormalization", "BatchNormalization",
                  "InstanceNormalization", "Resize", "Exp", "Log", "Sigmoid", "Tanh", "Softmax", "Erf"})  # fmt: skip
SHARE = 5e-7  # of the largest value of a layer's result: four roundings of float32
JUMP = 4.0  # multiples of the usual limit; less is no jump, and counts as noise only (`converters.quality.noise`)
VARIATIONS = 8  # a decision that rounding alone makes stays in all of them 1 time in 256


def jumps(
    graph: Graph, inputs: Mapping[str, Array], answers: Mapping[str, Array], limits: Mapping[str, Array]
) -> dict[str, Array]:
    """The largest jump of each element of `answers` with other rounding; 0 where it moves by less than `JUMP` limits.

    Args:
        graph: The float graph.
        inputs: Inputs (N, ...).
        answers: The graph's answers (N, ...) by output.
        limits: Usual limits by output, which broadcast with the answers.

    Returns:
        Arrays (N, ...) by output.

    Raises:
        RuntimeLoadError: ONNX Runtime cannot run the graph with other rounding.
    """
    largest = {name: np.zeros(value.shape) for name, value in answers.items()}
    for varied in _rounded_answers(graph, inputs):
        for name, value in answers.items():
            if varied[name].shape != value.shape:
                continue  # the size of this output depends on its values; parity checks report it
            moved = np.nan_to_num(np.abs(varied[name].astype(np.float64) - value.astype(np.float64)))
            largest[name] = np.maximum(largest[name], np.where(moved > JUMP * limits[name], moved, 0.0))
    return largest


def _rounded_answers(graph: Graph, inputs: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
    """Answers to `inputs` with other rounding, `VARIATIONS` times; none where no layer of the graph sums."""
    for seed in range(VARIATIONS):
        other = with_rounding(graph, seed)
        if other is None:
            return
        yield other.run(inputs)


def with_rounding(graph: Graph, seed: int) -> Graph | None:
    """The graph with up to `SHARE` of its largest value added at random to each sum; None where there is no sum.

    Args:
        graph: The graph; its branches and loops stay as they are.
        seed: Seed of the random values.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    floats = {
        value.name
        for value in (*onnx.shape_inference.infer_shapes(model).graph.value_info, *model.graph.output)
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        nodes.append(copy)
        for place, name in enumerate(node.output):
            if node.op_type in SUMS and node.domain in ("", "ai.onnx") and name in floats:
                copy.output[place] = f"{name}.exact"
                nodes += _moved(name, seed=len(graph.nodes) * seed + len(nodes))
    if len(nodes) == len(graph.nodes):
        return None
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(SHARE), "rounding.share"))
    return Graph(model)


def _moved(name: str, seed: int) -> list[onnx.NodeProto]:
    """Nodes that make the tensor `name` of `name`.exact."""
    exact, size, largest, most, drawn, added = (
        f"{name}.{part}" for part in ("exact", "size", "largest", "most", "drawn", "added")
    )
    return [
        helper.make_node("Abs", [exact], [size]),
        helper.make_node("ReduceMax", [size], [largest], keepdims=0),
        helper.make_node("Mul", [largest, "rounding.share"], [most]),
        helper.make_node("RandomUniformLike", [exact], [drawn], low=-1.0, high=1.0, seed=float(seed)),
        helper.make_node("Mul", [drawn, most], [added]),
        helper.make_node("Add", [exact, added], [name]),
    ]
