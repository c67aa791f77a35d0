"""Runs the canonical graph in float64, to see how far float32 arithmetic is from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from converters.graph.graph import Graph
from edgekit.errors import ConversionError, RuntimeLoadError
from edgekit.runtimes.onnx import OnnxRuntime
from edgekit.tensors import Array

FLOAT, DOUBLE = TensorProto.FLOAT, TensorProto.DOUBLE
FLOAT32_ONLY = {("Resize", 2), ("Upsample", 1)}  # inputs by operator and place that are never float64
# Float inputs of the operators whose float32 kernels in ONNX Runtime are rough: transforms of lengths that are no power
# of two have 200 times the error of a usual float32 transform.
ROUGH = {"DFT": (0,), "STFT": (0, 2)}


def answers_in_float64(graph: Graph, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Run `inputs` (N, ...) in float64: in ONNX Runtime, or in ONNX's reference where that lacks an operator.

    Raises:
        ConversionError: the graph has branches or loops, or neither can run it.
    """
    model = in_float64(graph)
    rows = {name: value.astype(np.float64) if value.dtype == np.float32 else value for name, value in inputs.items()}
    names = [spec.name for spec in graph.outputs]
    try:
        runs = _run(model, graph.chunks(rows))
    except RuntimeLoadError:  # ONNX Runtime lacks some operators in float64, and says so only when they run
        try:
            reference = ReferenceEvaluator(model)
            runs = [dict(zip(names, reference.run(names, chunk), strict=True)) for chunk in graph.chunks(rows)]
        except Exception as error:  # the reference raises any numpy error
            raise ConversionError(f"the model cannot be run in float64: {error}") from error
    return {name: np.concatenate([one[name] for one in runs]) for name in names}


def _run(model: onnx.ModelProto, chunks: Iterable[dict[str, Array]]) -> list[dict[str, Array]]:
    """The answers of ONNX Runtime. Raises RuntimeLoadError where it cannot run the model."""
    runtime = OnnxRuntime(model.SerializeToString(), quiet=True)
    try:
        return [runtime.run(chunk) for chunk in chunks]
    finally:
        runtime.close()


def in_float64(graph: Graph) -> onnx.ModelProto:
    """A copy of the model with float64 in place of float32.

    Raises:
        ConversionError: the graph has branches or loops.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.value_info[:]
    single = {
        node.input[place]
        for node in model.graph.node
        for kind, place in FLOAT32_ONLY
        if node.op_type == kind and place < len(node.input)
    }
    for tensor in model.graph.initializer:
        if tensor.data_type == FLOAT and tensor.name not in single:
            tensor.CopyFrom(_double(tensor))
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
                raise ConversionError(f"the model cannot be run in float64: {node.op_type} has a branch or a loop")
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == FLOAT:
                if not set(node.output) & single:
                    attribute.t.CopyFrom(_double(attribute.t))
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == FLOAT:
                attribute.i = DOUBLE
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == FLOAT:
            value.type.tensor_type.elem_type = DOUBLE
    return model


def with_exact_transforms(graph: Graph) -> Graph | None:
    """The graph in float32, except for Fourier transforms, which run in float64; None if it has none."""
    if not any(node.op_type in ROUGH for node in graph.nodes):
        return None
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    nodes = []
    for node in graph.nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if node.op_type in ROUGH:
            for place in ROUGH[node.op_type]:
                if place < len(copy.input) and copy.input[place]:
                    wide = f"{copy.output[0]}.wide.{place}"
                    nodes.append(helper.make_node("Cast", [copy.input[place]], [wide], to=DOUBLE))
                    copy.input[place] = wide
            nodes += [copy, helper.make_node("Cast", [f"{copy.output[0]}.wide"], [copy.output[0]], to=FLOAT)]
            copy.output[0] = f"{copy.output[0]}.wide"
        else:
            nodes.append(copy)
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    return Graph(model)


def _double(tensor: TensorProto) -> TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name)
