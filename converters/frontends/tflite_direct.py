"""A float .tflite source as it came, with the names of inputs and outputs that artifacts have."""

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
    """The file with a signature of ``input_0`` ... and ``output_0`` ..., and otherwise as it is.

    Args:
        path: A file that `read_tflite` reads.
        inputs, outputs: Its own names, in the order in which they shall stand.

    Raises:
        ConversionError: its batch is free, or its weights are in half precision, of which no other kinds are made.
    """
    data = path.read_bytes()
    model = parse_tflite(data)
    tensors = model.subgraphs[0].tensors
    if any(TYPES[tensor.type] == "float16" for tensor in tensors):
        raise ConversionError("its weights are in half precision, of which no other kinds are made")
    if any(size < 0 for tensor in tensors if tensor.shapeSignature is not None for size in tensor.shapeSignature):
        raise ConversionError("its batch is free, which splits what XNNPACK takes")
    given, made = interface(path, model)
    signature = schema.SignatureDefT()
    signature.signatureKey = SIGNATURE
    signature.subgraphIndex = 0
    signature.inputs = [_entry(f"input_{place}", given[name]) for place, name in enumerate(inputs)]
    signature.outputs = [_entry(f"output_{place}", made[name]) for place, name in enumerate(outputs)]
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
