"""Read float .tflite files as ONNX. Existing converters drop some biases silently; this one refuses unknown parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from converters.backends.tflite.reader import operator_name, parse_tflite
from converters.foreign_text import SHOWN, named
from converters.frontends.onnx import CANONICAL_OPSET
from converters.frontends.tflite.builder import Builder, CannotReadError
from converters.frontends.tflite.operators import READERS
from edgekit.errors import ModelFormatError, RuntimeLoadError, UnsupportedOpError
from edgekit.runtimes.litert import LiteRTRuntime
from edgekit.runtimes.litert_messages import text_of

IR_VERSION = 10
LITERT_ONLY = "Choose a target that runs LiteRT on a CPU; the file is used there as it is."
CONTROL = ("WHILE", "IF", "CALL", "CALL_ONCE", "STABLEHLO_WHILE", "STABLEHLO_CASE")


def read_tflite(data: bytes, source: Path, names: tuple[Sequence[str], Sequence[str]]) -> onnx.ModelProto:
    """Read a float model as ONNX with the names of its signature; the batch is 1, as in the file.

    Args:
        data: The file, as `settled_tflite` gives it.
        source: Its path, for messages and the graph's name.
        names: Names of inputs and outputs, as `names_of` gives them.

    Raises:
        UnsupportedOpError: An operator, or a way of using it, is not supported.
    """
    model = parse_tflite(data)
    _refuse_graphs(model)
    graph = model.subgraphs[0]
    inputs, outputs = interface(model, names)
    builder = Builder(model, data, {index: name for name, index in inputs.items()})
    for number, op in enumerate(graph.operators):
        _read(builder, op, f"{_layer(graph, op)}_{number}")
    for name, index in outputs.items():
        builder.finish(index, name)
    made = helper.make_graph(
        builder.node_protos,
        source.stem,
        [_described(builder, index, name) for name, index in inputs.items()],
        [_described(builder, index, name) for name, index in outputs.items()],
        builder.initializers,
    )
    return helper.make_model(
        made, opset_imports=[helper.make_opsetid("", CANONICAL_OPSET)], ir_version=IR_VERSION, producer_name="edgekit"
    )


def names_of(file: Path, source: Path) -> tuple[list[str], list[str]]:
    """Names of inputs and outputs in the runtime's order. Loading the file also verifies it.

    Raises:
        ModelFormatError: LiteRT cannot load `file`, which was made of `source`.
    """
    try:
        runtime = LiteRTRuntime(file)
    except RuntimeLoadError as error:
        raise ModelFormatError(
            f"{source} begins as a .tflite file, but LiteRT cannot load it: {text_of(str(error.__cause__ or error))}",
            advice="Copy or convert the model again, with built-in operators only.",
        ) from error
    runtime.close()
    return [spec.name for spec in runtime.inputs], [spec.name for spec in runtime.outputs]


def interface(model: Any, names: tuple[Sequence[str], Sequence[str]]) -> tuple[dict[str, int], dict[str, int]]:
    """Tensor indices of the inputs and outputs of a parsed file by name."""
    graph = model.subgraphs[0]
    signatures = {signature.signatureKey: signature for signature in model.signatureDefs or ()}
    indices = {graph.tensors[index].name.decode(): int(index) for index in (*graph.inputs, *graph.outputs)}
    if signatures:
        chosen = signatures.get(b"serving_default", next(iter(signatures.values())))
        indices = {entry.name.decode(): int(entry.tensorIndex) for entry in (*chosen.inputs, *chosen.outputs)}
    inputs, outputs = ({name: indices[name] for name in side} for side in names)
    return inputs, outputs


def _refuse_graphs(model: Any) -> None:
    """Refuse control flow: loops and branches have graphs of their own."""
    main = model.subgraphs[0]
    if len(model.subgraphs) == 1:
        return
    for op in main.operators:
        kind = operator_name(model, op)
        if kind in CONTROL:
            raise UnsupportedOpError(kind, _layer(main, op), backend="targets that need ONNX")


def _read(builder: Builder, op: Any, layer: str) -> None:
    kind = builder.kind(op)
    if kind not in READERS:
        raise UnsupportedOpError(kind, layer, backend="targets that need ONNX", advice=LITERT_ONLY)
    builder.start_layer(layer)
    try:
        READERS[kind](builder, op)
    except CannotReadError as error:
        raise UnsupportedOpError(
            kind, layer, backend=f"targets that need ONNX ({error})", advice=LITERT_ONLY
        ) from error
    except (AttributeError, IndexError, KeyError, ValueError) as error:
        raise UnsupportedOpError(
            kind,
            layer,
            backend=f"targets that need ONNX (its options or shapes are not those of the operator; {SHOWN})",
            advice=LITERT_ONLY,
            foreign_text=named(error),
        ) from error


def _layer(graph: Any, op: Any) -> str:
    return str((graph.tensors[op.outputs[0]].name or b"layer").decode().split(";")[0])


def _described(builder: Builder, index: int, name: str) -> Any:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(builder.dtype(index)))
    return helper.make_tensor_value_info(name, kind, builder.shape(index))
