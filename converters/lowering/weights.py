"""Large weights as variables: TensorFlow and its converter copy the constants of a graph many times."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

LARGE_BYTES = 1 << 16


class Weights:
    """Variables, made when the graph runs eagerly for the first time, and read in every trace after it.

    The converter makes them constants again, so the artifact is the same.
    """

    def __init__(self) -> None:
        self.variables: dict[str, Any] = {}

    def of(self, layer: str) -> Callable[[Any], Any]:
        """A function that gives a variable for each large array of `layer`, in the order of its calls.

        It returns other values as they are, and arrays too that the eager run did not meet.
        """
        count = itertools.count()

        def variable(values: Any) -> Any:
            if not isinstance(values, np.ndarray) or values.nbytes < LARGE_BYTES:
                return values
            key = f"{next(count)}/{layer}"
            if key not in self.variables and tf.executing_eagerly():
                self.variables[key] = tf.Variable(values, trainable=False)
            return self.variables.get(key, values)

        return variable
