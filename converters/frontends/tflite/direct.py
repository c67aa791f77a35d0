"""Use a float .tflite source unchanged, with the artifact's names of inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from converters.backends.tflite.reader import buffer_content, parse_tflite
from converters.backends.tflite.strip import packed
from converters.frontends.tflite.read import interface
from converters.lowering import Lowered

SIGNATURE = b"serving_default"


def direct_tflite(data: bytes, inputs: Sequence[str], outputs: Sequence[str]) -> Lowered:
    """The file with a signature of ``input_0`` ... and ``output_0`` ..., otherwise unchanged.

    Args:
        data: The file, as `settled_tflite` gives it.
        inputs, outputs: The file's own names, in the order wanted in the signature.
    """
    model = parse_tflite(data)
    input_indices, output_indices = interface(model, (inputs, outputs))
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
