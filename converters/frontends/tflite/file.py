"""Prepares a .tflite source for reading: it must be a float file; its sizes become fixed, and half weights float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from converters.backends.tflite.reader import TYPES, buffer_content, operator_name, parse_tflite
from converters.backends.tflite.strip import packed
from converters.frontends.refusals import changes_state, quantized, text_input
from converters.frontends.row_sizes import rows_of
from converters.graph.stated import Stated
from edgekit.errors import ConversionError, ModelFormatError, UnsupportedOpError
from edgekit.runtimes.litert_messages import text_of

INTEGERS = ("int8", "uint8", "int16", "uint16", "int4", "int2", "uint4")
QUANTIZERS = ("QUANTIZE", "FAKE_QUANT")
STATEFUL = ("VAR_HANDLE", "ASSIGN_VARIABLE", "CALL_ONCE")
BUILT_IN = ("TFLite_Detection_PostProcess",)  # LiteRT itself has these custom operators


def settled_tflite(path: Path, stated: Stated) -> tuple[bytes, tuple[str, ...]]:
    """The file with a batch of 1 and fixed sizes, without operators that only widen weights; and notes.

    Args:
        path: The file.
        stated: Sizes of inputs with free axes, or the shapes of the data.

    Raises:
        ModelFormatError: It is quantized, damaged, takes text, keeps state, or has a free axis without a size.
        UnsupportedOpError: It has a custom operator.
    """
    data = path.read_bytes()
    try:
        model = parse_tflite(data)
    except ConversionError:
        raise
    except Exception as error:  # the generated parser raises errors of any type on damaged files
        raise ModelFormatError(f"{path} is damaged or truncated", advice="Copy or convert it again.") from error
    if not model.subgraphs or any(graph.tensors is None or graph.operators is None for graph in model.subgraphs):
        raise ModelFormatError(f"{path} is a .tflite file without a graph", advice="Copy or convert it again.")
    changed = _name_tensors(model)
    _require_float(path, model)
    _refuse_operators(path, model)
    _own_buffers(model, data)
    changed |= _widen_halves(model, data)
    notes: tuple[str, ...] = ()
    if _is_free(model):
        notes, changed = _fix_sizes(path, model, data, stated), True
    return packed(model, len(data)) if changed else data, notes


def _name_tensors(model: Any) -> bool:
    """Name tensors of stripped files, for messages and quantizers. True if one had no name."""
    changed = False
    for graph in model.subgraphs:
        for index, tensor in enumerate(graph.tensors):
            if not tensor.name:
                tensor.name, changed = f"tensor_{index}".encode(), True
    return changed


def _require_float(path: Path, model: Any) -> None:
    """Refuse quantized tensors and text; integers and complex numbers without a scale are no quantization."""
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            name, kind = (tensor.name or b"").decode(), TYPES[tensor.type]
            scale = tensor.quantization.scale if tensor.quantization is not None else None
            if kind in INTEGERS and scale is not None and len(scale):
                raise quantized(str(path), f"a tensor of type {kind}", name)
        for operator in graph.operators:
            if operator_name(model, operator) in QUANTIZERS:
                layer = (graph.tensors[operator.outputs[0]].name or b"").decode()
                raise quantized(str(path), operator_name(model, operator), layer)
    main = model.subgraphs[0]
    for index in main.inputs:
        if TYPES[main.tensors[index].type] == "string":
            raise text_input(str(path), main.tensors[index].name.decode())


def _refuse_operators(path: Path, model: Any) -> None:
    for graph in model.subgraphs:
        for operator in graph.operators:
            kind = operator_name(model, operator)
            if kind in STATEFUL:
                raise changes_state(str(path), kind)
            code = model.operatorCodes[operator.opcodeIndex].customCode
            name = code.decode() if isinstance(code, bytes) else str(code or "")
            if kind == "CUSTOM" and name not in BUILT_IN:
                raise UnsupportedOpError(
                    name.removeprefix("Flex"),
                    (graph.tensors[operator.outputs[0]].name or b"").decode(),
                    backend="any target: it is a custom operator, which LiteRT on devices does not have",
                    advice="Convert the model again with TFLITE_BUILTINS only, without SELECT_TF_OPS.",
                )


def _own_buffers(model: Any, data: bytes) -> None:
    """Give every buffer its bytes, also those that lie after the flatbuffer."""
    for buffer in model.buffers:
        content = buffer_content(buffer, data)
        buffer.offset = buffer.size = 0
        buffer.data = np.frombuffer(content, np.uint8) if content else None


def _widen_halves(model: Any, data: bytes) -> bool:
    """Replace each DEQUANTIZE of weights in half precision by weights in float32. True if there was one."""
    changed = False
    for graph in model.subgraphs:
        kept = []
        for operator in graph.operators:
            source = graph.tensors[operator.inputs[0]] if len(operator.inputs) else None
            content = b"" if source is None else buffer_content(model.buffers[source.buffer], data)
            half = operator_name(model, operator) == "DEQUANTIZE" and source is not None
            if not (half and source is not None and TYPES[source.type] == "float16" and content):
                kept.append(operator)
                continue
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(content, np.float16).astype(np.float32).view(np.uint8)
            buffer.offset = buffer.size = 0
            graph.tensors[operator.outputs[0]].buffer = len(model.buffers)
            model.buffers.append(buffer)
            changed = True
        graph.operators = kept
    return changed


def _is_free(model: Any) -> bool:
    return any(
        tensor.shapeSignature is not None and any(size < 0 for size in tensor.shapeSignature)
        for graph in model.subgraphs
        for tensor in graph.tensors
    )


def _fix_sizes(path: Path, model: Any, data: bytes, stated: Stated) -> tuple[str, ...]:
    """Give every tensor the sizes that it has for a batch of 1 and the sizes in `stated`. Returns notes."""
    main = model.subgraphs[0]
    interpreter = Interpreter(
        model_content=data, experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    places = _input_names(model)
    inputs = {name: _axes(main.tensors[index]) for name, index in places.items()}
    floats = {name: TYPES[main.tensors[index].type].startswith("float") for name, index in places.items()}

    def run(rows: dict[str, list[int]]) -> None:
        for name, sizes in rows.items():
            interpreter.resize_tensor_input(places[name], sizes)
        interpreter.allocate_tensors()
        interpreter.invoke()  # sizes that are computed are known only after a run

    def runs(rows: dict[str, list[int]]) -> bool:
        try:
            run(rows)
        except (RuntimeError, ValueError):
            return False
        return True

    maps = any(len(_axes(main.tensors[index])) > 2 for index in main.outputs)
    rows, notes = rows_of(str(path), inputs, stated, floats, runs, maps=maps)
    try:
        run(rows)
    except (RuntimeError, ValueError) as error:
        raise ModelFormatError(
            f"{path} does not run with these sizes of its inputs: {_named(rows)}: {text_of(error)}",
            advice="Give other sizes with --input-shape NAME=SIZE,SIZE,...",
        ) from error
    for detail in interpreter.get_tensor_details():
        index = int(detail["index"])
        if index < len(main.tensors):
            main.tensors[index].shape = np.asarray(detail["shape"], np.int32)
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.shapeSignature = None
    return notes


def _named(rows: dict[str, list[int]]) -> str:
    return ", ".join(f"{name} {sizes}" for name, sizes in rows.items())


def _input_names(model: Any) -> dict[str, int]:
    main = model.subgraphs[0]
    signatures = {signature.signatureKey: signature for signature in model.signatureDefs or ()}
    if not signatures:
        return {main.tensors[index].name.decode(): int(index) for index in main.inputs}
    chosen = signatures.get(b"serving_default", next(iter(signatures.values())))
    return {entry.name.decode(): int(entry.tensorIndex) for entry in chosen.inputs}


def _axes(tensor: Any) -> list[int | None]:
    """The sizes of a tensor, None for a free one."""
    own = tensor.shape if tensor.shapeSignature is None else tensor.shapeSignature
    return [None if size < 0 else int(size) for size in (own if own is not None else ())]
