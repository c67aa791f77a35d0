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


def text_input(source: str, name: str) -> ModelFormatError:
    """The refusal of an input that takes text.

    Args:
        source: The model file.
        name: The input.
    """
    return ModelFormatError(
        f"{source}: input {name} takes text, and runtimes on devices take numbers",
        advice="Save the model from the layer after the text on, and tokenize before the model: the step word-pieces "
        "of --preprocess does this for word pieces.",
    )


def changes_state(source: str, variables: str) -> ModelFormatError:
    """The refusal of a model that changes its own variables while it answers.

    Args:
        source: The model file.
        variables: Names of the operations that do it.
    """
    return ModelFormatError(
        f"{source} changes its own variables while it answers ({variables}), which a converted model cannot",
        advice="Make the state an input and an output of the model, export it to ONNX, and convert that with "
        "--state OUTPUT=INPUT; or export a function that changes nothing.",
    )
