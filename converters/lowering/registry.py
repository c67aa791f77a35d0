"""Which function lowers which operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from converters.lowering.values import Value

Inputs = list["Value | None"]
Lowering = Callable[[Inputs, dict[str, Any]], "Value | tuple[Value, ...]"]
LOWERINGS: dict[str, Lowering] = {}


class CannotLowerError(Exception):
    """The way an operator is used has no TensorFlow form; the message says which part."""


def lowers(*operators: str) -> Callable[[Lowering], Lowering]:
    """Register a function for `operators`.

    It is given the node's inputs (None where an optional one is absent) and its attributes, with the number of its
    outputs as ``outputs`` among them, and returns its output, or all of them as a tuple.
    """

    def register(function: Lowering) -> Lowering:
        for operator in operators:
            LOWERINGS[operator] = function
        return function

    return register


def given(value: Value | None) -> Value:
    """An input that the operator cannot do without."""
    if value is None:
        raise CannotLowerError("a required input is absent")
    return value


def known(value: Value | None, what: str) -> Any:
    """The numpy value of an input that must be constant."""
    if value is None or not value.constant:
        raise CannotLowerError(f"its {what} must be constant")
    return value.plain()


def optional(inputs: Inputs, index: int) -> Value | None:
    """Input `index`, or None where the node has fewer."""
    return inputs[index] if index < len(inputs) else None


def axes_of(inputs: Inputs, attrs: dict[str, Any], rank: int, place: int = 1) -> list[int] | None:
    """Axes given as an attribute (older opsets) or as input `place`; None for none."""
    second = optional(inputs, place)
    found = attrs.get("axes") if second is None else known(second, "axes")
    return None if found is None or len(found) == 0 else [int(axis) % rank for axis in found]
