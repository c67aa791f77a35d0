"""Elementwise functions; their output keeps the axis order of the input."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from converters.lowering.registry import CannotLowerError, Inputs, constant, lowers, optional, required
from converters.lowering.values import Value, aligned

# Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: |error| <= 1.5e-7.
ERF_P, ERF_A = 0.3275911, (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
# ONNX's defaults for Selu.
SELU_ALPHA, SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875

FLOAT_LIMIT = float(np.finfo(np.float32).max)  # exporters write it for a limit that is absent


def _unary(operator: str, function: Callable[[Any], Any]) -> None:
    def lowering(inputs: Inputs, attrs: dict[str, Any]) -> Value:
        source = required(inputs[0])
        return source.with_tensor(function(source.tensor))

    lowers(operator)(lowering)


def _with_attributes(operator: str, function: Callable[[Any, dict[str, Any]], Any]) -> None:
    def lowering(inputs: Inputs, attrs: dict[str, Any]) -> Value:
        source = required(inputs[0])
        return source.with_tensor(function(source.tensor, attrs))

    lowers(operator)(lowering)


def erf(x: Any) -> Any:
    """The error function from exponentials; LiteRT has no operator for it."""
    size = tf.abs(x)
    t = 1.0 / (1.0 + ERF_P * size)
    poly = ERF_A[0] * t + ERF_A[1]
    for factor in ERF_A[2:]:
        poly = poly * t + factor
    return tf.sign(x) * (1.0 - poly * t * tf.exp(-size * size))


def softplus(x: Any) -> Any:
    """log(1 + exp(x)) without overflow."""
    return tf.nn.relu(x) + tf.math.log(1.0 + tf.exp(-tf.abs(x)))


def _elu(x: Any, alpha: float) -> Any:
    return tf.nn.elu(x) if alpha == 1.0 else tf.nn.relu(x) + alpha * (tf.exp(tf.minimum(x, 0.0)) - 1.0)


def _celu(x: Any, alpha: float) -> Any:
    return tf.nn.relu(x) + alpha * (tf.exp(tf.minimum(x, 0.0) / alpha) - 1.0)


def _shrink(x: Any, limit: float, bias: float) -> Any:
    moved = x - tf.sign(x) * bias if bias else x
    return tf.where(tf.abs(x) > limit, moved, tf.zeros_like(x))


def _is_infinite(x: Any, attrs: dict[str, Any]) -> Any:
    """LiteRT's converter writes an infinite constant as the largest float, so that counts as infinite too."""
    sides = [tf.greater_equal(x, FLOAT_LIMIT)] * bool(attrs.get("detect_positive", 1))
    sides += [tf.less_equal(x, -FLOAT_LIMIT)] * bool(attrs.get("detect_negative", 1))
    found = sides or [tf.not_equal(tf.abs(x), tf.abs(x))]
    return functools.reduce(tf.logical_or, found)


def _hard_sigmoid(x: Any, alpha: float, beta: float) -> Any:
    """The factor stands behind the limits.

    TensorFlow's converter would multiply one in front into a layer's weights.
    """
    if alpha <= 0.0:
        return tf.minimum(tf.nn.relu(x * alpha + beta), 1.0)
    moved = x + beta / alpha
    return (tf.nn.relu6(moved) if abs(6.0 * alpha - 1.0) < 1e-6 else tf.minimum(tf.nn.relu(moved), 1.0 / alpha)) * alpha


_unary("Relu", tf.nn.relu)
_unary("Sigmoid", tf.nn.sigmoid)
_unary("Tanh", tf.nn.tanh)
_unary("Identity", lambda x: x)
_unary("Neg", tf.negative)
_unary("Abs", tf.abs)
_unary("Exp", tf.exp)
_unary("Log", tf.math.log)
_unary("Sqrt", tf.sqrt)
_unary("Reciprocal", lambda x: 1.0 / x)
_unary("Floor", tf.floor)
_unary("Ceil", tf.math.ceil)
_unary("Round", tf.round)
_unary("Sin", tf.sin)
_unary("Cos", tf.cos)
_unary("Sign", tf.sign)
_unary("Not", tf.logical_not)
_unary("Erf", erf)
_unary("IsNaN", lambda x: tf.not_equal(x, x))
_with_attributes("IsInf", lambda x, attrs: _is_infinite(x, attrs))
_unary("Softplus", softplus)
_unary("Softsign", lambda x: x / (1.0 + tf.abs(x)))
_unary("Mish", lambda x: x * tf.tanh(softplus(x)))
_unary("HardSwish", lambda x: x * tf.nn.relu6(x + 3.0) * (1.0 / 6.0))  # LiteRT's converter knows this form
_with_attributes("Gelu", lambda x, attrs: tf.nn.gelu(x, approximate=attrs.get("approximate", "none") == "tanh"))
_with_attributes("LeakyRelu", lambda x, attrs: tf.nn.leaky_relu(x, attrs.get("alpha", 0.01)))
_with_attributes("Elu", lambda x, attrs: _elu(x, attrs.get("alpha", 1.0)))
_with_attributes("Celu", lambda x, attrs: _celu(x, attrs.get("alpha", 1.0)))
_with_attributes("HardSigmoid", lambda x, attrs: _hard_sigmoid(x, attrs.get("alpha", 0.2), attrs.get("beta", 0.5)))
_with_attributes("Selu", lambda x, attrs: attrs.get("gamma", SELU_GAMMA) * _elu(x, attrs.get("alpha", SELU_ALPHA)))
_with_attributes("Swish", lambda x, attrs: x * tf.sigmoid(x * attrs.get("alpha", 1.0)))
_with_attributes("Shrink", lambda x, attrs: _shrink(x, attrs.get("lambd", 0.5), attrs.get("bias", 0.0)))
_with_attributes("ThresholdedRelu", lambda x, attrs: tf.where(x > attrs.get("alpha", 1.0), x, tf.zeros_like(x)))


@lowers("Dropout")
def dropout(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """Dropout, which has no effect in inference."""
    if optional(inputs, 2) is not None and constant(inputs[2], "training mode"):
        raise CannotLowerError("training mode")
    return required(inputs[0])


@lowers("PRelu")
def prelu(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """PRelu, in the form that the converter turns into one operator: the slope has no axis for the batch."""
    (x, slope), order = aligned([required(inputs[0]), required(inputs[1])])
    if len(slope.shape) == len(x.shape) > 1 and slope.shape[0] == 1:
        slope = slope[0]
    return Value(tf.nn.relu(x) + (-slope) * tf.nn.relu(-x), order)


@lowers("Clip")
def clip(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """Clip; common limits become RELU and RELU6."""
    source = required(inputs[0])
    low, high = optional(inputs, 1), optional(inputs, 2)
    least = constant(low, "minimum").item() if low is not None else -np.inf
    most = constant(high, "maximum").item() if high is not None else np.inf
    floating = source.tensor.dtype.is_floating
    if floating and least == 0.0 and most == 6.0:
        return source.with_tensor(tf.nn.relu6(source.tensor))
    if floating and least == 0.0 and most >= FLOAT_LIMIT:
        return source.with_tensor(tf.nn.relu(source.tensor))
    tensor = source.tensor
    kind = tensor.dtype.as_numpy_dtype
    lowest, highest = (-FLOAT_LIMIT, FLOAT_LIMIT) if tensor.dtype.is_floating else (-np.inf, np.inf)
    if least > lowest:
        tensor = tf.maximum(tensor, kind(least))
    if most < highest:
        tensor = tf.minimum(tensor, kind(most))
    return source.with_tensor(tensor)


def _axis_last(source: Value, axis: int) -> Value:
    if source.order[axis] == source.rank - 1:
        return source
    others = [a for a in range(source.rank) if a != axis]
    order = [0] * source.rank
    for physical, logical in enumerate([*others, axis]):
        order[logical] = physical
    return Value(source.in_order(tuple(order)), tuple(order))


def _along_last(operator: str, function: Callable[[Any], Any]) -> None:
    def lowering(inputs: Inputs, attrs: dict[str, Any]) -> Value:
        source = required(inputs[0])
        source = _axis_last(source, int(attrs.get("axis", -1)) % source.rank)
        return source.with_tensor(function(source.tensor))

    lowers(operator)(lowering)


_along_last("Softmax", lambda x: tf.nn.softmax(x, axis=-1))
_along_last("LogSoftmax", lambda x: tf.nn.log_softmax(x, axis=-1))
