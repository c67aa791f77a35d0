"""Shared parts of the ONNX backends: bindings, half precision, and explicit QDQ with edgekit's calibration."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import save_and_reload_model_with_shape_infer
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from converters import foreign_text
from converters.backends.bindings import bound, input_bindings
from converters.backends.contract import Artifact
from converters.backends.onnx_names import name_apart
from converters.backends.onnx_sharing import unshared
from converters.graph.graph import Graph, label, without_interface
from converters.trials import try_onnx
from edgekit.bundle.recipe import Recipe
from edgekit.errors import ConversionError, EdgekitError
from edgekit.runtimes import ONNXRUNTIME
from edgekit.runtimes.onnx import OnnxRuntime

NORMALIZATIONS = ("LayerNormalization", "GroupNormalization", "InstanceNormalization", "LpNormalization")

# The first ONNX Runtime version with each ONNX operator set.
RUNTIME_OF_OPSET = {17: "1.12", 18: "1.14", 19: "1.15", 20: "1.17", 21: "1.18", 22: "1.20", 23: "1.22"}


def artifact_of(graph: Graph, model: onnx.ModelProto, recipe: Recipe, *, calibration: bytes = b"") -> Artifact:
    """The artifact of `model`, whose tensors have the names of the canonical `graph`, with its calibration.

    The first run of every model but the float32 one is in a process of its own.

    Raises:
        RuntimeLoadError: ONNX Runtime cannot load it.
        ConversionError: it lacks tensors of the graph, or ends the process that runs it.
    """
    data = without_interface(unshared(model)).SerializeToString()
    if recipe.precision != "float32":
        try_onnx(f"candidate {recipe.id}", data)
    runtime = OnnxRuntime(data)
    try:
        tensors = {spec.name: spec for spec in (*runtime.inputs, *runtime.outputs)}
    finally:
        runtime.close()
    missing = [spec.name for spec in (*graph.inputs, *graph.outputs) if spec.name not in tensors]
    if missing:
        raise ConversionError(f"the ONNX artifact lacks the tensors {', '.join(missing)}")
    return Artifact(
        file="model.onnx",
        content=data,
        runtime=ONNXRUNTIME,
        inputs=input_bindings(graph, lambda spec: bound(spec, tensors[spec.name])),
        outputs=tuple(bound(spec, tensors[spec.name]) for spec in graph.logical_outputs),
        runtime_version=RUNTIME_OF_OPSET.get(Graph(model).opset, ""),
        calibration=calibration,
    )


def half(graph: Graph, *, keep: Collection[str] = ()) -> onnx.ModelProto:
    """`graph` in half precision, with float inputs and outputs, and float where squares could overflow.

    Args:
        graph: The graph, whose nodes have names.
        keep: Labels of nodes that stay float.

    Raises:
        ConversionError: the converter failed.
    """
    model = _copy(graph)
    name_apart(model)
    try:
        made = convert_float_to_float16(
            model,
            keep_io_types=True,
            op_block_list=[*DEFAULT_OP_BLOCK_LIST, *NORMALIZATIONS],
            node_block_list=[*keep, *_squares(graph)],
        )
    except Exception as error:  # ONNX Runtime's Python code asserts, and raises errors of any type
        raise foreign_text.failure("ONNX Runtime", "converting to float16", error) from error
    return _without_repeats(made)


def _without_repeats(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` without its repeated nodes: the converter casts a tensor once for each float node that reads it."""
    seen: set[bytes] = set()
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    del model.graph.node[:]
    for node in nodes:
        content = node.SerializeToString(deterministic=True)
        if content not in seen:
            seen.add(content)
            model.graph.node.append(node)
    return model


def _squares(graph: Graph) -> set[str]:
    """Labels of the nodes from squares to their roots, as in normalizations: 256 squared overflows half precision."""
    squares = [
        node
        for node in graph.nodes
        if node.op_type == "Pow" or (node.op_type == "Mul" and len(set(node.input)) == 1) or node.op_type == "ReduceL2"
    ]
    labels, queue = {label(node) for node in squares}, squares
    while queue:
        node = queue.pop()
        readers = [reader for name in node.output for reader in graph.consumers(name)]
        for reader in readers if node.op_type != "Sqrt" else ():
            if reader.op_type in ("ReduceMean", "ReduceSum", "Add", "Sqrt") and label(reader) not in labels:
                labels.add(label(reader))
                queue.append(reader)
    return labels


def named(graph: Graph) -> Graph:
    """The graph with every node named by its label, because quantizers exclude nodes by name.

    Raises:
        ConversionError: two nodes have the same name.
    """
    names = Counter(label(node) for node in graph.nodes)
    duplicates = [name for name, count in names.items() if count > 1]
    if duplicates:
        raise ConversionError(
            f"several nodes of the model have the names {', '.join(duplicates)}, expected one node per name"
        )
    model = _copy(graph)
    for node in model.graph.node:
        node.name = label(node)
    return Graph(model)


def qdq(
    graph: Graph,
    ranges: Mapping[str, tuple[float, float]],
    recipe: Recipe,
    *,
    excluded: Collection[str],
    operators: list[str],
    options: dict[str, Any],
) -> onnx.ModelProto:
    """`graph` with explicit QuantizeLinear and DequantizeLinear pairs, signed 8 bit for weights and activations.

    Args:
        graph: The graph, whose nodes have names.
        ranges: Smallest and largest value, by tensor.
        recipe: Whether scales are per channel and zero points are 0.
        excluded: Names of nodes that stay float.
        operators: Operators to quantize.
        options: More options of the quantizer.

    Raises:
        ConversionError: the quantizer failed.
    """
    known = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    with _quantizing("QDQ"):
        quantizer = QDQQuantizer(
            save_and_reload_model_with_shape_infer(_copy(graph)),
            recipe.per_channel,
            False,
            QuantType.QInt8,
            QuantType.QInt8,
            TensorsData(CalibrationMethod.MinMax, known),
            [],
            sorted(excluded),
            operators,
            {"WeightSymmetric": True, "ActivationSymmetric": recipe.symmetric, **options},
        )
        quantizer.quantize_model()
    return quantizer.model.model


def dynamic(
    graph: Graph, recipe: Recipe, *, excluded: Collection[str], operators: list[str], folder: Path
) -> onnx.ModelProto:
    """`graph` with signed 8-bit weights in `operators`, whose inputs are quantized at run time.

    Raises:
        ConversionError: the quantizer failed, or quantized a layer that should stay float.
    """
    path = folder / f"dynamic-{recipe.id}.onnx"
    # a Gemm first becomes a MatMul and an Add, with other names
    names = [name for layer in excluded for name in (layer, f"{layer}_MatMul")]
    with _quantizing("dynamic"):
        quantize_dynamic(
            _copy(graph),
            path,
            op_types_to_quantize=operators,
            per_channel=recipe.per_channel,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=names,
            extra_options={"MatMulConstBOnly": True, "WeightSymmetric": True},
        )
    return onnx.load(path)


@contextlib.contextmanager
def _quantizing(kind: str) -> Iterator[None]:
    """Hide the log messages of onnxruntime.quantization, and wrap its errors.

    Raises:
        ConversionError: onnxruntime.quantization raised an error.
    """
    level = logging.getLogger().level
    try:
        logging.getLogger().setLevel(logging.ERROR)
        yield
    except (EdgekitError, OSError):  # a full disk is no fault of the candidate
        raise
    except Exception as error:  # ONNX Runtime's Python code asserts, and raises errors of any type
        raise foreign_text.failure("ONNX Runtime", f"quantizing the file ({kind})", error) from error
    finally:
        logging.getLogger().setLevel(level)


def _copy(graph: Graph) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    return model
