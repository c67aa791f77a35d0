"""The canonical graph as TensorFlow, one function per operator: the way to LiteRT.

Everything below this package imports TensorFlow and runs in its own process (see ../child.py). This file does not, so
that what crosses between the processes can be read without it.
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
