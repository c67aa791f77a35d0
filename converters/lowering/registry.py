"""The registry of lowering functions by ONNX operator, and helpers to read a node's inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from converters.lowering.values import Value

Inputs = list["Value | None"]
Lowering = Callable[[Inputs, dict[str, Any]], "Value | tuple[Value, ...]"]
LOWERINGS: dict[str, Lowering] = {}


class CannotLowerError(Exception):
    """An operator is used in a way that has no TensorFlow form; the message names the option or input."""


def lowers(*operators: str) -> Callable[[Lowering], Lowering]:
    """Register a function for `operators`.

    The function takes the node's inputs (None for an absent optional one) and its attributes, which include the number
    of outputs as ``outputs``, ``never_negative``: True for each input that has no negative value, and ``variable``: a
    function that makes a large array of weights a variable. It returns the output, or a tuple of all outputs.
    """

    def register(function: Lowering) -> Lowering:
        for operator in operators:
            LOWERINGS[operator] = function
        return function

    return register


def required(value: Value | None) -> Value:
    """A required input."""
    if value is None:
        raise CannotLowerError("a required input is absent")
    return value


def constant(value: Value | None, what: str) -> Any:
    """The value of an input that must be constant: a numpy array, or a tensor where it is trained."""
    if value is None or not (value.constant or value.trained):
        raise CannotLowerError(f"{what} is not constant, and must be")
    return value.plain()


def optional(inputs: Inputs, index: int) -> Value | None:
    """Input `index`, or None if the node has fewer inputs."""
    return inputs[index] if index < len(inputs) else None


def axes_of(inputs: Inputs, attrs: dict[str, Any], rank: int, index: int = 1) -> list[int] | None:
    """Axes from the attribute (older opsets) or from input `index`; None if there are none."""
    second = optional(inputs, index)
    axes = attrs.get("axes") if second is None else constant(second, "axes")
    return None if axes is None or len(axes) == 0 else [int(axis) % rank for axis in axes]
