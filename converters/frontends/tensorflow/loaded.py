"""The source model as TensorFlow loaded it. Only the TensorFlow process (framework_process.py) imports this module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from converters.frontends.refusals import text_input
from edgekit.errors import ModelFormatError
from edgekit.tensors import Array

FLOATS = (tf.float16, tf.bfloat16, tf.float64)


class Loaded:
    """A source model as a function of its input tensors in order.

    Args:
        function: Takes a tensor for each input and returns a list with a tensor for each output.
        inputs: Specs of the inputs, with the source's names; None for free sizes.
        outputs: Names of the outputs.
    """

    def __init__(self, function: Callable[..., list[Any]], inputs: list[Any], outputs: list[str]) -> None:
        self.function, self.inputs = function, inputs
        self.outputs = _apart(outputs, {spec.name for spec in inputs})

    def answers(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """The outputs for `inputs` (N, ...); row by row where the batch is fixed to 1. Other floats become float32."""
        count = len(next(iter(inputs.values()))) if inputs else 1
        one = any(spec.shape.rank and spec.shape[0] == 1 for spec in self.inputs)
        parts = []
        for start in range(count) if one else (0,):
            rows = slice(start, start + 1) if one else slice(None)
            tensors = [tf.cast(tf.constant(inputs[spec.name][rows]), spec.dtype) for spec in self.inputs]
            parts.append([_array(value) for value in self.function(*tensors)])
        joined = zip(*parts, strict=True) if one else ((value,) for value in parts[0])
        values = (part[0] if len(part) == 1 else np.concatenate(part) for part in joined)
        return dict(zip(self.outputs, values, strict=True))


def input_spec(name: str, shape: Any, dtype: Any, path: str) -> Any:
    """The spec of one input.

    Raises:
        ModelFormatError: It takes text, its number of axes is not known, or it is no dense tensor.
    """
    shape = tf.TensorShape(shape)
    if dtype == tf.string:
        raise text_input(path, name)
    if dtype in (tf.resource, tf.variant):
        raise ModelFormatError(
            f"{path}: input {name} is no tensor of numbers",
            advice="Export a function that takes and returns dense tensors.",
        )
    if shape.rank is None:
        raise ModelFormatError(
            f"{path}: input {name} has no known number of axes",
            advice="Export the model with an input signature that gives its shape, for example (None, 224, 224, 3).",
        )
    return tf.TensorSpec(shape, dtype, name=name)


def unique(names: list[str]) -> list[str]:
    """`names`, where a repeated name gets a number."""
    made: list[str] = []
    for name in names:
        number, candidate = len(made), name
        while candidate in made:
            candidate, number = f"{name}_{number}", number + 1
        made.append(candidate)
    return made


def _apart(outputs: list[str], taken: set[str]) -> list[str]:
    """The names of the outputs, changed where an input has the same name: a graph cannot have a name twice."""
    return unique([f"{name}_output" if name in taken else name for name in outputs])


def _array(value: Any) -> Array:
    return np.asarray(tf.cast(value, tf.float32) if value.dtype in FLOATS else value)
