"""Normalizations that cannot be folded into a convolution."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from converters.lowering.registry import CannotLowerError, Inputs, constant, lowers, optional, required
from converters.lowering.values import Value, channels_last, of

EPSILON = 1e-5


@lowers("BatchNormalization")
def batch_normalization(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """BatchNormalization that could not be folded, as one multiply and one add."""
    source = required(inputs[0])
    gamma, beta, mean, variance = (constant(value, "statistics").astype(np.float64) for value in inputs[1:5])
    factor = gamma / np.sqrt(variance + attrs.get("epsilon", EPSILON))
    shape = _channel_shape(source)
    scaled = source.tensor * factor.astype(np.float32).reshape(shape)
    return source.with_tensor(scaled + (beta - mean * factor).astype(np.float32).reshape(shape))


@lowers("InstanceNormalization")
def instance_normalization(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """InstanceNormalization: over each channel of each row."""
    source = required(inputs[0])
    axes = [source.order[axis] for axis in range(2, source.rank)]
    shape = _channel_shape(source)
    scale, shift = (constant(value, "scale and shift").reshape(shape) for value in inputs[1:3])
    return source.with_tensor(_normal(source.tensor, axes, attrs) * scale + shift)


@lowers("GroupNormalization")
def group_normalization(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """GroupNormalization with factors per channel (opset 21 and later; onnx accepts no other)."""
    source = required(inputs[0])
    groups, channels = int(attrs["num_groups"]), source.shape[1]
    order = channels_last(source.rank)
    tensor = source.in_order(order)
    sizes = [int(size) for size in tensor.shape]
    parts = tf.reshape(tensor, (sizes[0], -1, groups, channels // groups))
    normal = tf.reshape(_normal(parts, [1, 3], attrs), sizes)
    scale, shift = (constant(value, "scale and shift") for value in inputs[1:3])
    return Value(normal * scale + shift, order)


@lowers("LayerNormalization")
def layer_normalization(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """LayerNormalization over the last axes."""
    source = required(inputs[0]).plain()
    axes = _last_axes(source, attrs)
    result = _normal(source, axes, attrs) * required(inputs[1]).plain()
    shift = optional(inputs, 2)
    return of(result if shift is None else result + shift.plain())


@lowers("RMSNormalization")
def rms_normalization(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """RMSNormalization over the last axes."""
    source = required(inputs[0]).plain()
    power = tf.reduce_mean(tf.square(source), axis=_last_axes(source, attrs), keepdims=True)
    return of(source * tf.math.rsqrt(power + attrs.get("epsilon", EPSILON)) * required(inputs[1]).plain())


@lowers("MeanVarianceNormalization")
def mean_variance_normalization(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """(x - mean) / (deviation + 1e-9), by ONNX's definition."""
    source = required(inputs[0])
    axes = [source.order[int(axis) % source.rank] for axis in attrs.get("axes") or (0, 2, 3)]
    centred = source.tensor - tf.reduce_mean(source.tensor, axis=axes, keepdims=True)
    deviation = tf.sqrt(tf.reduce_mean(tf.square(centred), axis=axes, keepdims=True))
    return source.with_tensor(centred / (deviation + 1e-9))


@lowers("LpNormalization")
def lp_normalization(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """LpNormalization with p = 1 or 2; a vector of zeros stays so."""
    source = required(inputs[0])
    axis = source.order[int(attrs.get("axis", -1)) % source.rank]
    if attrs.get("p", 2) == 1:
        length = tf.reduce_sum(tf.abs(source.tensor), axis=axis, keepdims=True)
    else:
        length = tf.sqrt(tf.reduce_sum(tf.square(source.tensor), axis=axis, keepdims=True))
    return source.with_tensor(source.tensor / tf.maximum(length, np.finfo(np.float32).tiny))


@lowers("LRN")
def local_response(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """LRN across channels."""
    source = required(inputs[0])
    size = int(attrs["size"])
    if source.rank != 4 or size % 2 == 0:
        raise CannotLowerError(f"size {size} with {source.rank} axes")
    alpha, beta, bias = attrs.get("alpha", 1e-4) / size, attrs.get("beta", 0.75), attrs.get("bias", 1.0)
    order = channels_last(4)
    return Value(tf.nn.local_response_normalization(source.in_order(order), size // 2, bias, alpha, beta), order)


def _normal(tensor: Any, axes: list[int], attrs: dict[str, Any]) -> Any:
    mean = tf.reduce_mean(tensor, axis=axes, keepdims=True)
    centred = tensor - mean
    variance = tf.reduce_mean(tf.square(centred), axis=axes, keepdims=True)
    return centred * tf.math.rsqrt(variance + attrs.get("epsilon", EPSILON))


def _last_axes(tensor: Any, attrs: dict[str, Any]) -> list[int]:
    rank = len(tensor.shape)
    return list(range(int(attrs.get("axis", -1)) % rank, rank))


def _channel_shape(source: Value) -> list[int]:
    shape = [1] * source.rank
    shape[source.order[1]] = -1
    return shape
