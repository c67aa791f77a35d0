"""Strips a .tflite file: removes parts that the runtime does not read, and stores equal parts once.

Names of tensors, metadata, empty quantization records and repeated vectors are a quarter of a small quantized file. The
answers stay equal bit by bit; the first run of the file checks this. Stripping is the last step, because quantizers
find layers by the names of tensors.
"""

from __future__ import annotations

from typing import Any

import flatbuffers  # type: ignore[import-untyped]
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from converters.backends.tflite.reader import IDENTIFIER, buffer_content, parse_tflite
from edgekit.tensors import Array

ALIGNMENT = 16  # bytes, required by the schema for weights; the Python writer does not set it


def strip(data: bytes) -> bytes:
    """The same model in fewer bytes; `data` itself where nothing is saved.

    Raises:
        ConversionError: `data` is not a .tflite file.
    """
    model = parse_tflite(data)
    model.description = None
    model.metadata = model.metadataBuffer = None
    for graph in model.subgraphs:
        graph.name = None
        # Without a signature, only the tensors' names name the inputs and outputs.
        named = set() if model.signatureDefs else {*graph.inputs, *graph.outputs}
        for index, tensor in enumerate(graph.tensors):
            _strip_tensor(tensor, keep_name=index in named)
        _as_arrays(graph, inputs=np.int32, outputs=np.int32)
        for operator in graph.operators:
            _as_arrays(operator, inputs=np.int32, outputs=np.int32, intermediates=np.int32)
            operator.mutatingVariableInputs = None
    _pack_buffers(model, data)
    result = packed(model, len(data))
    return result if len(result) < len(data) else data


def packed(model: Any, size: int) -> bytes:
    """Serialize the schema's objects with all buffers inside the flatbuffer; `size` is the expected size in bytes."""
    builder = _SharingBuilder(size)
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def _strip_tensor(tensor: Any, *, keep_name: bool) -> None:
    if not keep_name:
        tensor.name = None
    _as_arrays(tensor, shape=np.int32, shapeSignature=np.int32)
    if tensor.shapeSignature is not None and np.array_equal(tensor.shapeSignature, tensor.shape):
        tensor.shapeSignature = None
    quantization = tensor.quantization
    if quantization is None:
        return
    if quantization.scale is None and quantization.details is None:
        tensor.quantization = None
        return
    quantization.min = quantization.max = None
    _as_arrays(quantization, scale=np.float32, zeroPoint=np.int64)


def _as_arrays(record: Any, **kinds: Any) -> None:
    """Turn lists into arrays, which the builder can compare, and remove empty lists."""
    for field, kind in kinds.items():
        values = getattr(record, field)
        if values is not None:
            setattr(record, field, np.asarray(values, dtype=kind) if len(values) or field == "shape" else None)


def _pack_buffers(model: Any, data: bytes) -> None:
    """Store each content once, inside the flatbuffer. Buffer 0 is empty, for tensors without data."""
    numbers: dict[bytes, int] = {b"": 0}
    buffers = [schema.BufferT()]
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            content = buffer_content(model.buffers[tensor.buffer], data)
            if content not in numbers:
                numbers[content] = len(buffers)
                buffer = schema.BufferT()
                buffer.data = np.frombuffer(content, dtype=np.uint8)
                buffers.append(buffer)
            tensor.buffer = numbers[content]
    model.buffers = buffers


class _SharingBuilder(flatbuffers.Builder):  # type: ignore[misc]  # it has no types
    """A builder that writes equal vectors once, and aligns bytes as kernels need."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._written: dict[tuple[str, bytes], int] = {}

    def CreateNumpyVector(self, x: Array) -> int:  # noqa: N802 - the parent's name
        """Offset of a vector with the elements of `x` (n,)."""
        key = (x.dtype.str, x.tobytes())
        if key not in self._written:
            if x.dtype == np.uint8:
                self.Prep(ALIGNMENT, x.nbytes)
            self._written[key] = int(super().CreateNumpyVector(x))
        return self._written[key]
