"""Trigonometric and hyperbolic functions, from the few that LiteRT has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from converters.lowering.registry import Inputs, lowers, required
from converters.lowering.values import Value


def _unary(operator: str, function: Callable[[Any], Any]) -> None:
    def lowering(inputs: Inputs, attrs: dict[str, Any]) -> Value:
        source = required(inputs[0])
        return source.with_tensor(function(source.tensor))

    lowers(operator)(lowering)


def _half_width(x: Any) -> Any:
    """sqrt(1 - x * x), without the cancellation of 1 - x * x near 1."""
    return tf.sqrt((1.0 - x) * (1.0 + x))


_unary("Tan", lambda x: tf.sin(x) / tf.cos(x))
_unary("Atan", lambda x: tf.atan2(x, tf.ones_like(x)))
_unary("Asin", lambda x: tf.atan2(x, _half_width(x)))
_unary("Acos", lambda x: tf.atan2(_half_width(x), x))
_unary("Sinh", lambda x: 0.5 * (tf.exp(x) - tf.exp(-x)))
_unary("Cosh", lambda x: 0.5 * (tf.exp(x) + tf.exp(-x)))
_unary("Asinh", lambda x: tf.sign(x) * tf.math.log(tf.abs(x) + tf.sqrt(x * x + 1.0)))
_unary("Acosh", lambda x: tf.math.log(x + tf.sqrt((x - 1.0) * (x + 1.0))))
_unary("Atanh", lambda x: 0.5 * tf.math.log((1.0 + x) / (1.0 - x)))
