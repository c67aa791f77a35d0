"""Operators on two or more values with broadcasting, and conversions of dtypes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import tensorflow as tf

from converters.lowering.operators.activations import FLOAT_LIMIT
from converters.lowering.operators.bits import wrapped
from converters.lowering.registry import CannotLowerError, Inputs, lowers, required
from converters.lowering.values import Value, aligned

TENSORFLOW_DTYPES = {
    onnx.TensorProto.FLOAT: tf.float32,
    onnx.TensorProto.INT8: tf.int8,
    onnx.TensorProto.UINT8: tf.uint8,
    onnx.TensorProto.INT16: tf.int16,
    onnx.TensorProto.INT32: tf.int32,
    onnx.TensorProto.INT64: tf.int64,
    onnx.TensorProto.BOOL: tf.bool,
}
UNSIGNED_BITS = {onnx.TensorProto.UINT16: 16, onnx.TensorProto.UINT32: 32, onnx.TensorProto.UINT64: 64}


def _broadcasting(operator: str, function: Callable[..., Any]) -> None:
    """Register an operator on any number of values with broadcasting."""

    def lowering(inputs: Inputs, attrs: dict[str, Any]) -> Value:
        tensors, order = aligned([required(value) for value in inputs])
        return Value(function(*tensors), order)

    lowers(operator)(lowering)


def _never_zero(divisor: Any) -> Any:
    """The divisor of whole numbers, with 1 for 0 in the eager run: its inputs are zeros, and it only makes weights."""
    if not (tf.executing_eagerly() and tf.is_tensor(divisor)):
        return divisor
    return tf.where(tf.equal(divisor, 0), tf.ones_like(divisor), divisor)


def _unfolded(left: Any, right: Any) -> Any:
    """The divisor of floats; where it has constant zeros, as the result of an operator.

    LiteRT's converter multiplies by the reciprocal of a constant, and writes an infinite one as the largest float.
    """
    if tf.is_tensor(right) or not tf.is_tensor(left) or np.all(right):
        return right
    return right - tf.minimum(tf.abs(left), np.float32(0))


def _equal(left: Any, right: Any) -> Any:
    """Equality; with an infinite constant, the largest float counts as infinite: the converter writes it so."""
    for constant, other in ((left, right), (right, left)):
        infinite = not tf.is_tensor(constant) and constant.dtype.kind == "f" and np.isinf(constant)
        if tf.is_tensor(other) and np.any(infinite):
            beyond = tf.where(constant > 0, tf.greater_equal(other, FLOAT_LIMIT), tf.less_equal(other, -FLOAT_LIMIT))
            return beyond if np.all(infinite) else tf.where(infinite, beyond, tf.equal(left, right))
    return tf.equal(left, right)


def _divide(left: Any, right: Any) -> Any:
    if tf.as_dtype(left.dtype).is_floating:
        return tf.divide(left, _unfolded(left, right))
    right = _never_zero(right)
    if tf.as_dtype(left.dtype) == tf.int32:
        return tf.truncatediv(left, right)
    return tf.cast(tf.truncatediv(tf.cast(left, tf.int32), tf.cast(right, tf.int32)), left.dtype)


def _power(base: Any, exponent: Any) -> Any:
    """Common exponents become operators of their own, which delegates support."""
    if tf.as_dtype(exponent.dtype) != tf.as_dtype(base.dtype):
        exponent = (
            tf.cast(exponent, base.dtype) if tf.is_tensor(exponent) else exponent.astype(base.dtype.as_numpy_dtype)
        )
    fixed = float(exponent.ravel()[0]) if not tf.is_tensor(exponent) and exponent.size == 1 else None
    if fixed == 2.0:
        return tf.square(base)
    if fixed == 0.5:
        return tf.sqrt(base)
    if fixed == 3.0:
        return tf.square(base) * base
    if fixed == -0.5:
        return tf.math.rsqrt(base)
    return tf.pow(base, exponent)


def _total(*tensors: Any) -> Any:
    return functools.reduce(tf.add, tensors)


_broadcasting("Add", tf.add)
_broadcasting("Sub", tf.subtract)
_broadcasting("Mul", tf.multiply)
_broadcasting("Div", _divide)
_broadcasting("Pow", _power)
_broadcasting("Sum", _total)
_broadcasting("Mean", lambda *tensors: _total(*tensors) / float(len(tensors)))
_broadcasting("Max", lambda *tensors: functools.reduce(tf.maximum, tensors))
_broadcasting("Min", lambda *tensors: functools.reduce(tf.minimum, tensors))
_broadcasting("Equal", _equal)
_broadcasting("Greater", tf.greater)
_broadcasting("GreaterOrEqual", tf.greater_equal)
_broadcasting("Less", tf.less)
_broadcasting("LessOrEqual", tf.less_equal)
_broadcasting("And", tf.logical_and)
_broadcasting("Or", tf.logical_or)
_broadcasting("Xor", lambda left, right: tf.not_equal(left, right))


@lowers("Where")
def where(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """Where, with broadcasting."""
    (condition, yes, no), order = aligned([required(value) for value in inputs])
    return Value(tf.where(condition, yes, no), order)


@lowers("Mod")
def mod(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """Mod with the sign of the divisor, or with fmod the sign of the dividend."""
    (left, right), order = aligned([required(value) for value in inputs])
    if not tf.as_dtype(right.dtype).is_floating:
        right = _never_zero(right)
    if not attrs.get("fmod"):
        return Value(tf.math.floormod(left, right), order)
    return Value(tf.sign(left) * tf.math.floormod(tf.abs(left), tf.abs(right)), order)


@lowers("Cast")
def cast(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """Cast between the dtypes of LiteRT."""
    source = required(inputs[0])
    whole = tf.as_dtype(source.tensor.dtype).is_integer
    if attrs["to"] in UNSIGNED_BITS and whole and source.unsigned in (0, UNSIGNED_BITS[attrs["to"]]):
        bits = UNSIGNED_BITS[attrs["to"]]
        return Value(wrapped(source, bits), source.order, unsigned=bits)
    if source.unsigned == 64 and attrs["to"] != onnx.TensorProto.INT64:
        raise CannotLowerError("a cast of uint64 to another type than int64")
    if attrs["to"] not in TENSORFLOW_DTYPES:
        raise CannotLowerError(f"a cast to {onnx.TensorProto.DataType.Name(attrs['to']).lower()}")
    return source.with_tensor(tf.cast(source.tensor, TENSORFLOW_DTYPES[attrs["to"]]))
