"""Operators on two or more values, which broadcast, and conversions between kinds of number."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import onnx
import tensorflow as tf

from converters.lowering.registry import CannotLowerError, Inputs, given, lowers
from converters.lowering.values import Value, aligned

KINDS = {
    onnx.TensorProto.FLOAT: tf.float32,
    onnx.TensorProto.INT8: tf.int8,
    onnx.TensorProto.UINT8: tf.uint8,
    onnx.TensorProto.INT16: tf.int16,
    onnx.TensorProto.INT32: tf.int32,
    onnx.TensorProto.INT64: tf.int64,
    onnx.TensorProto.BOOL: tf.bool,
}


def _joining(operator: str, function: Callable[..., Any]) -> None:
    """An operator on any number of values that broadcast."""

    def lowering(inputs: Inputs, attrs: dict[str, Any]) -> Value:
        tensors, order = aligned([given(value) for value in inputs])
        return Value(function(*tensors), order)

    lowers(operator)(lowering)


def _divide(left: Any, right: Any) -> Any:
    if not tf.as_dtype(left.dtype).is_floating:
        raise CannotLowerError("integers")
    return tf.divide(left, right)


def _power(base: Any, exponent: Any) -> Any:
    """The powers that networks use have operators of their own, which delegates take."""
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


_joining("Add", tf.add)
_joining("Sub", tf.subtract)
_joining("Mul", tf.multiply)
_joining("Div", _divide)
_joining("Pow", _power)
_joining("Sum", _total)
_joining("Mean", lambda *tensors: _total(*tensors) / float(len(tensors)))
_joining("Max", lambda *tensors: functools.reduce(tf.maximum, tensors))
_joining("Min", lambda *tensors: functools.reduce(tf.minimum, tensors))
_joining("Equal", tf.equal)
_joining("Greater", tf.greater)
_joining("GreaterOrEqual", tf.greater_equal)
_joining("Less", tf.less)
_joining("LessOrEqual", tf.less_equal)
_joining("And", tf.logical_and)
_joining("Or", tf.logical_or)
_joining("Xor", lambda left, right: tf.not_equal(left, right))


@lowers("Where")
def where(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """Where, of broadcast values."""
    (condition, yes, no), order = aligned([given(value) for value in inputs])
    return Value(tf.where(condition, yes, no), order)


@lowers("Mod")
def mod(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """Mod with the sign of the divisor, as for whole numbers."""
    if attrs.get("fmod"):
        raise CannotLowerError("fmod")
    tensors, order = aligned([given(value) for value in inputs])
    return Value(tf.math.floormod(*tensors), order)


@lowers("Cast")
def cast(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """Cast between the kinds of number that LiteRT has."""
    source = given(inputs[0])
    if attrs["to"] not in KINDS:
        raise CannotLowerError(f"a cast to {onnx.TensorProto.DataType.Name(attrs['to']).lower()}")
    return source.with_tensor(tf.cast(source.tensor, KINDS[attrs["to"]]))
