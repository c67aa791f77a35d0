"""Which function lowers which operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from converters.lowering.values import Value

Lowering = Callable[[list["Value | None"], dict[str, Any]], Value]
LOWERINGS: dict[str, Lowering] = {}


class CannotLowerError(Exception):
    """The way an operator is used has no TensorFlow form; the message says which part."""


def lowers(*operators: str) -> Callable[[Lowering], Lowering]:
    """Register a function for `operators`.

    It is given the node's inputs (None where an optional one is absent) and its attributes, and returns its output.
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


def optional(inputs: list[Value | None], index: int) -> Value | None:
    """Input `index`, or None where the node has fewer."""
    return inputs[index] if index < len(inputs) else None
