"""The canonical graph as TensorFlow, one function per operator: the way to LiteRT.

The other modules of this room import TensorFlow and run in a process of their own (see framework_process). This file
imports none of it, so that the main process can read what that process returns.
"""

from __future__ import annotations

import msgspec


class Lowered(msgspec.Struct, frozen=True):
    """A float .tflite and how its tensors hold the graph's.

    Attributes:
        data: The flatbuffer; batch 1, one signature whose inputs are ``input_0`` ... and outputs ``output_0`` ...
        input_permutes: Per graph input, the axis order that turns it into the artifact's; empty when they agree.
        output_permutes: The same per graph output.
    """

    data: bytes
    input_permutes: list[tuple[int, ...]]
    output_permutes: list[tuple[int, ...]]
