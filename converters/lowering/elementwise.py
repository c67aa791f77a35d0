"""Operators on each element, and dense layers: they keep whatever order their input has, where they can."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from converters.lowering.registry import CannotLowerError, given, known, lowers, optional
from converters.lowering.values import Value, aligned, of


def _unary(operator: str, function: Callable[[Any], Any]) -> None:
    def lowering(inputs: list[Value | None], attrs: dict[str, Any]) -> Value:
        source = given(inputs[0])
        return source.with_tensor(function(source.tensor))

    lowers(operator)(lowering)


def _binary(operator: str, function: Callable[[Any, Any], Any]) -> None:
    def lowering(inputs: list[Value | None], attrs: dict[str, Any]) -> Value:
        (left, right), order = aligned([given(inputs[0]), given(inputs[1])])
        return Value(function(left, right), order)

    lowers(operator)(lowering)


_unary("Relu", tf.nn.relu)
_unary("Sigmoid", tf.nn.sigmoid)
_unary("Tanh", tf.nn.tanh)
_unary("Identity", lambda tensor: tensor)
_binary("Add", tf.add)
_binary("Sub", tf.subtract)
_binary("Mul", tf.multiply)
_binary("Div", tf.divide)


@lowers("Clip")
def clip(inputs: list[Value | None], attrs: dict[str, Any]) -> Value:
    """Clip; the usual limits become RELU and RELU6."""
    source = given(inputs[0])
    low, high = optional(inputs, 1), optional(inputs, 2)
    least = float(known(low, "minimum")) if low is not None else -np.inf
    most = float(known(high, "maximum")) if high is not None else np.inf
    if least == 0.0 and most == 6.0:
        return source.with_tensor(tf.nn.relu6(source.tensor))
    if least == 0.0 and most == np.inf:
        return source.with_tensor(tf.nn.relu(source.tensor))
    tensor = source.tensor
    if least != -np.inf:
        tensor = tf.maximum(tensor, np.float32(least))
    if most != np.inf:
        tensor = tf.minimum(tensor, np.float32(most))
    return source.with_tensor(tensor)


@lowers("Softmax")
def softmax(inputs: list[Value | None], attrs: dict[str, Any]) -> Value:
    """Softmax over one axis."""
    source = given(inputs[0])
    axis = int(attrs.get("axis", -1)) % source.rank
    if source.order[axis] != source.rank - 1:
        source = _axis_last(source, axis)
    return source.with_tensor(tf.nn.softmax(source.tensor, axis=-1))


def _axis_last(source: Value, axis: int) -> Value:
    others = [a for a in range(source.rank) if a != axis]
    order = [0] * source.rank
    for place, logical in enumerate([*others, axis]):
        order[logical] = place
    return Value(source.in_order(tuple(order)), tuple(order))


@lowers("BatchNormalization")
def batch_normalization(inputs: list[Value | None], attrs: dict[str, Any]) -> Value:
    """BatchNormalization that could not be folded, as one multiply and one add."""
    source = given(inputs[0])
    gamma, beta, mean, variance = (known(value, "statistics").astype(np.float64) for value in inputs[1:5])
    factor = gamma / np.sqrt(variance + attrs.get("epsilon", 1e-5))
    shape = [1] * source.rank
    shape[source.order[1]] = -1
    scaled = source.tensor * factor.astype(np.float32).reshape(shape)
    return source.with_tensor(scaled + (beta - mean * factor).astype(np.float32).reshape(shape))


@lowers("Gemm")
def gemm(inputs: list[Value | None], attrs: dict[str, Any]) -> Value:
    """Gemm with constant weights: a dense layer."""
    source = given(inputs[0]).plain()
    weights = known(inputs[1], "weights") * np.float32(attrs.get("alpha", 1.0))
    if attrs.get("transA"):
        raise CannotLowerError("transA")
    result = tf.matmul(source, weights.T.copy() if attrs.get("transB") else weights)
    bias = optional(inputs, 2)
    if bias is None:
        return of(result)
    values = known(bias, "bias") * np.float32(attrs.get("beta", 1.0))
    return of(tf.nn.bias_add(result, np.broadcast_to(values.reshape(-1), (int(result.shape[-1]),)).copy()))


@lowers("MatMul")
def matmul(inputs: list[Value | None], attrs: dict[str, Any]) -> Value:
    """MatMul of two values."""
    return of(tf.matmul(given(inputs[0]).plain(), given(inputs[1]).plain()))
