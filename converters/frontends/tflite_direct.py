"""Use a float .tflite source unchanged, with the artifact's names of inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from converters.backends.tflite.reader import TYPES, buffer_content, parse_tflite
from converters.backends.tflite.strip import packed
from converters.frontends.tflite import interface
from converters.lowering import Lowered
from edgekit.errors import ConversionError

SIGNATURE = b"serving_default"


def direct_tflite(path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> Lowered:
    """The file with a signature of ``input_0`` ... and ``output_0`` ..., otherwise unchanged.

    Args:
        path: A file that `read_tflite` accepts.
        inputs, outputs: The file's own names, in the order wanted in the signature.

    Raises:
        ConversionError: The batch is free, or the weights are in half precision.
    """
    data = path.read_bytes()
    model = parse_tflite(data)
    tensors = model.subgraphs[0].tensors
    if any(TYPES[tensor.type] == "float16" for tensor in tensors):
        raise ConversionError("the weights are in half precision, from which no other number format is made")
    if any(size < 0 for tensor in tensors if tensor.shapeSignature is not None for size in tensor.shapeSignature):
        raise ConversionError("the batch is free, which splits the XNNPACK delegate")
    input_indices, output_indices = interface(path, model)
    signature = schema.SignatureDefT()
    signature.signatureKey = SIGNATURE
    signature.subgraphIndex = 0
    signature.inputs = [_entry(f"input_{number}", input_indices[name]) for number, name in enumerate(inputs)]
    signature.outputs = [_entry(f"output_{number}", output_indices[name]) for number, name in enumerate(outputs)]
    model.signatureDefs = [signature]
    for buffer in model.buffers:
        content = buffer_content(buffer, data)
        buffer.offset = buffer.size = 0
        buffer.data = np.frombuffer(content, np.uint8) if content else None
    return Lowered(packed(model, len(data)), [() for _ in inputs], [() for _ in outputs])


def _entry(name: str, index: int) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name.encode(), index
    return entry
