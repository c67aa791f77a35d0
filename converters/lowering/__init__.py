"""Lowering: the canonical graph as TensorFlow operations, the first step to LiteRT.

The modules of this room import TensorFlow and run only in the framework process (converters/framework_process.py). This
file imports none of it, so that the main process can read the result. Passes on the ONNX graph do not belong here.
"""

from __future__ import annotations

import msgspec


class Lowered(msgspec.Struct, frozen=True):
    """A float .tflite file, with the axis orders of its inputs and outputs.

    Attributes:
        data: The flatbuffer: batch 1, one signature with inputs ``input_0`` ... and outputs ``output_0`` ...
        input_permutes: For each graph input, the transposition to the artifact's axis order; empty if none is needed.
        output_permutes: The same for each graph output.
    """

    data: bytes
    input_permutes: list[tuple[int, ...]]
    output_permutes: list[tuple[int, ...]]
