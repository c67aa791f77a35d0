"""Makes the opaque graph of a float .tflite whose operators have no ONNX form."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from converters.backends.tflite.reader import TYPES, buffer_content, operator_name, parse_tflite
from converters.graph.graph import Graph
from converters.graph.opaque import Opaque, opaque_model
from converters.graph.stated import Stated
from edgekit.errors import ModelFormatError, RuntimeLoadError, SettingsError, UnsupportedOpError
from edgekit.runtimes.litert import LiteRTRuntime
from edgekit.tensors import TensorSpec


def opaque_graph(
    data: bytes,
    inputs: Sequence[str],
    outputs: Sequence[str],
    why: UnsupportedOpError,
    source: str,
    stated: Stated,
) -> Graph:
    """The graph of a file of the direct route.

    Args:
        data: The file, with inputs ``input_0`` ... and outputs ``output_0`` ...
        inputs, outputs: The source's names, in the file's order.
        why: The operator that has no ONNX form.
        source: The source model, for messages.
        stated: What the user stated of the inputs.

    Raises:
        SettingsError: An input is fixed or is state, which needs an ONNX form.
        ModelFormatError: LiteRT cannot load the file, or a tensor has no batch of 1 as its first axis.
    """
    for option, values in (("--fix", stated.fixed), ("--state", stated.state)):
        if values:
            raise SettingsError(
                f"{source}: {option} needs an ONNX form, and operator {why.op} (layer {why.layer!r}) has none",
                advice=f"Leave out {option}, or replace the layer.",
            )
    taken, given = _specs(data, source)
    opaque = Opaque(data, why.op, why.layer, *_facts(data, outputs))
    renamed = (_renamed(taken, "input", inputs), _renamed(given, "output", outputs))
    for spec in (*renamed[0], *renamed[1]):
        if spec.shape[:1] != (1,):
            raise ModelFormatError(
                f"{source}: {spec.name} has the shape {spec.shape_text}, expected a batch of 1 as its first axis, "
                f"since operator {why.op} (layer {why.layer!r}) leaves only the direct route to LiteRT",
                advice="Export the model with a batch as the first axis of every input and output.",
            )
    return Graph(opaque_model(opaque, *renamed))


def _specs(data: bytes, source: str) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    with tempfile.TemporaryDirectory(prefix="edgekit-opaque-") as folder:
        path = Path(folder) / "model.tflite"
        path.write_bytes(data)
        try:
            runtime = LiteRTRuntime(path)
        except RuntimeLoadError as error:
            raise ModelFormatError(
                f"{source} cannot be loaded by LiteRT", advice="Convert the model again with built-in operators only."
            ) from error
        runtime.close()
        return tuple(runtime.inputs), tuple(runtime.outputs)


def _renamed(specs: Sequence[TensorSpec], side: str, names: Sequence[str]) -> list[TensorSpec]:
    by_name = {spec.name: spec for spec in specs}
    found = [by_name[f"{side}_{index}"] for index in range(len(names))]
    return [TensorSpec(name, spec.dtype, spec.shape) for name, spec in zip(names, found, strict=True)]


def _facts(data: bytes, outputs: Sequence[str]) -> tuple[dict[str, int], int, int, tuple[str, ...]]:
    """Counts of operators, multiply-adds, parameters, and the outputs that a SOFTMAX makes."""
    model = parse_tflite(data)
    counts = Counter(operator_name(model, op) for graph in model.subgraphs for op in graph.operators)
    main = model.subgraphs[0]
    makers = {int(index): operator_name(model, op) for op in main.operators for index in op.outputs}
    entries = {entry.name.decode(): int(entry.tensorIndex) for entry in model.signatureDefs[0].outputs}
    soft = tuple(name for index, name in enumerate(outputs) if makers.get(entries[f"output_{index}"]) == "SOFTMAX")
    macs = sum(_macs(operator_name(model, op), main, op) for op in main.operators)
    floats = {
        int(tensor.buffer) for graph in model.subgraphs for tensor in graph.tensors if TYPES[tensor.type] == "float32"
    }
    parameters = sum(len(buffer_content(model.buffers[index], data)) // 4 for index in floats)
    return dict(counts.most_common()), macs, parameters, soft


def _macs(kind: str, graph: Any, op: Any) -> int:
    """Multiply-adds of one operator with weights, from the sizes of its weights and its output."""
    if kind not in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL"):
        return 0
    weights, result = (_sizes(graph.tensors[index]) for index in (op.inputs[1], op.outputs[0]))
    if kind == "DEPTHWISE_CONV_2D":
        return math.prod(result) * math.prod(weights[1:3])
    if kind == "BATCH_MATMUL":
        return math.prod(result) * (weights[-1] if op.builtinOptions.adjY else weights[-2])
    return math.prod(result) * math.prod(weights[1:])


def _sizes(tensor: Any) -> list[int]:
    return [] if tensor.shape is None else [int(size) for size in tensor.shape]
