"""Refusals that every format shares, so that they read the same everywhere."""

from __future__ import annotations

from edgekit.errors import ModelFormatError


def quantized(source: str, what: str, layer: str) -> ModelFormatError:
    """The refusal of a model whose weights or activations are integers already.

    Args:
        source: The model file.
        what: The operator or the type that shows it, for example ``QuantizeLinear``.
        layer: The node, tensor or layer that has it.
    """
    return ModelFormatError(
        f"{source} is quantized already: {what} (layer {layer!r}); edgekit converts float models",
        advice="Export the float model that this file was made from, and convert that: quantization cannot be undone, "
        "and edgekit quantizes for each target itself.",
    )
