"""Read float .tflite files as ONNX. Existing converters drop some biases silently; this one refuses unknown parts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from converters.backends.tflite.reader import TYPES, parse_tflite
from converters.frontends.onnx import CANONICAL_OPSET
from converters.frontends.tflite_builder import NUMPY_DTYPES, Builder, CannotReadError
from converters.frontends.tflite_operators import READERS
from edgekit.errors import ModelFormatError, RuntimeLoadError, UnsupportedOpError
from edgekit.runtimes.litert import LiteRTRuntime
from edgekit.tensors import Array

IR_VERSION = 10


def read_tflite(path: Path) -> onnx.ModelProto:
    """Read a float model as ONNX with the names of its signature; the batch is 1, as in the file.

    Raises:
        ModelFormatError: The file is damaged or quantized, or has several graphs.
        UnsupportedOpError: An operator, or a way of using it, is not supported.
    """
    names = _names(path)
    data = path.read_bytes()
    model = parse_tflite(data)
    _require_float(path, model)
    graph = model.subgraphs[0]
    inputs, outputs = _interface(model, names)
    builder = Builder(model, data, {index: name for name, index in inputs.items()})
    for number, op in enumerate(graph.operators):
        _read(builder, op, f"{_layer(graph, op)}_{number}")
    for name, index in outputs.items():
        builder.finish(index, name)
    made = helper.make_graph(
        builder.node_protos,
        path.stem,
        [_described(builder, index, name) for name, index in inputs.items()],
        [_described(builder, index, name) for name, index in outputs.items()],
        builder.initializers,
    )
    return helper.make_model(
        made, opset_imports=[helper.make_opsetid("", CANONICAL_OPSET)], ir_version=IR_VERSION, producer_name="edgekit"
    )


def tflite_answers(path: Path, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Run the file in LiteRT on `inputs` (N, ...), one row at a time, and return its outputs."""
    runtime = LiteRTRuntime(path)
    try:
        rows = range(len(next(iter(inputs.values()))))
        parts = [runtime.run({name: value[row : row + 1] for name, value in inputs.items()}) for row in rows]
    finally:
        runtime.close()
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def tflite_call(path: Path, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Run the file in LiteRT once, on inputs in its own layout."""
    runtime = LiteRTRuntime(path)
    try:
        return runtime.run(inputs)
    finally:
        runtime.close()


def interface(path: Path, model: Any) -> tuple[dict[str, int], dict[str, int]]:
    """Tensor indices of the inputs and outputs of `model`, the file at `path`, by name.

    Raises:
        ModelFormatError: LiteRT cannot load the file.
    """
    return _interface(model, _names(path))


def _names(path: Path) -> tuple[list[str], list[str]]:
    """Names of inputs and outputs in the runtime's order. Loading the file also verifies it."""
    try:
        runtime = LiteRTRuntime(path)
    except RuntimeLoadError as error:
        raise ModelFormatError(f"{path} begins as a .tflite file, but LiteRT cannot load it: {error}") from error
    runtime.close()
    return [spec.name for spec in runtime.inputs], [spec.name for spec in runtime.outputs]


def _interface(model: Any, names: tuple[list[str], list[str]]) -> tuple[dict[str, int], dict[str, int]]:
    """Tensor indices of the inputs and outputs by name."""
    graph = model.subgraphs[0]
    signatures = {signature.signatureKey: signature for signature in model.signatureDefs or ()}
    indices = {graph.tensors[index].name.decode(): int(index) for index in (*graph.inputs, *graph.outputs)}
    if signatures:
        chosen = signatures.get(b"serving_default", next(iter(signatures.values())))
        indices = {entry.name.decode(): int(entry.tensorIndex) for entry in (*chosen.inputs, *chosen.outputs)}
    inputs, outputs = ({name: indices[name] for name in side} for side in names)
    return inputs, outputs


def _require_float(path: Path, model: Any) -> None:
    if len(model.subgraphs) != 1:
        raise ModelFormatError(f"{path} holds {len(model.subgraphs)} graphs, expected one without control flow")
    for tensor in model.subgraphs[0].tensors:
        if TYPES[tensor.type] not in NUMPY_DTYPES:
            raise ModelFormatError(
                f"{path} is quantized or not numeric: {tensor.name.decode()} is {TYPES[tensor.type]}, expected float32",
                advice="Convert the float model that this file was made from; quantization cannot be undone.",
            )


def _read(builder: Builder, op: Any, layer: str) -> None:
    kind = builder.kind(op)
    if (
        kind == "DEQUANTIZE" and (weights := builder.value(op.inputs[0])) is not None
    ):  # weights stored in half precision
        builder.set_value(op.outputs[0], weights.astype(np.float32))
        return
    if kind not in READERS:
        known = ", ".join(sorted(READERS))
        raise UnsupportedOpError(kind, layer, backend="any target", advice=f"Operators that can be read: {known}.")
    builder.start_layer(layer)
    try:
        READERS[kind](builder, op)
    except (
        CannotReadError,
        AttributeError,
        IndexError,
        KeyError,
        ValueError,
    ) as error:  # missing options, odd shapes
        raise UnsupportedOpError(kind, layer, backend="any target", advice=f"Not supported: {error}.") from error


def _layer(graph: Any, op: Any) -> str:
    return str((graph.tensors[op.outputs[0]].name or b"layer").decode().split(";")[0])


def _described(builder: Builder, index: int, name: str) -> Any:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(builder.dtype(index)))
    return helper.make_tensor_value_info(name, kind, builder.shape(index))
