"""Convolutions and pooling: the operators that need channel-last tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from converters.lowering.registry import CannotLowerError, given, known, lowers, optional
from converters.lowering.values import Value, channels_last

NHWC = channels_last(4)
Pads = list[tuple[int, int]]


@lowers("Conv")
def conv(inputs: list[Value | None], attrs: dict[str, Any]) -> Value:
    """Conv: ordinary, grouped and depthwise; weights (out, in / group, kh, kw)."""
    source = _image(inputs[0])
    weights = known(inputs[1], "weights")
    group = int(attrs.get("group", 1))
    strides, dilations = _pair(attrs, "strides"), _pair(attrs, "dilations")
    pads = _pads(attrs, source, weights.shape[2:], strides, dilations)
    tensor, padding = _padded(source.in_order(NHWC), pads, weights.shape[2:], strides, dilations, 0.0)
    channels, per_group = source.shape[1], weights.shape[1]
    depthwise = group == channels > 1 and per_group == 1
    if depthwise and strides[0] == strides[1] and (max(dilations) == 1 or max(strides) == 1):
        result = _depthwise(tensor, weights, channels, strides, dilations, padding)
    else:
        result = _grouped(tensor, weights, group, strides, dilations, padding)
    bias = optional(inputs, 2)
    if bias is not None:
        result = tf.nn.bias_add(result, known(bias, "bias"))
    return Value(result, NHWC)


def _depthwise(tensor: Any, weights: Any, channels: int, strides: Any, dilations: Any, padding: str) -> Any:
    multiplier = weights.shape[0] // channels
    kernel = weights.reshape(channels, multiplier, *weights.shape[2:]).transpose(2, 3, 0, 1)
    return tf.nn.depthwise_conv2d(tensor, kernel, (1, *strides, 1), padding, dilations=dilations)


def _grouped(tensor: Any, weights: Any, group: int, strides: Any, dilations: Any, padding: str) -> Any:
    kernels = np.split(weights.transpose(2, 3, 1, 0), group, axis=3)
    parts = tf.split(tensor, group, axis=3) if group > 1 else [tensor]
    results = [
        tf.nn.conv2d(part, np.ascontiguousarray(kernel), strides, padding, dilations=dilations)
        for part, kernel in zip(parts, kernels, strict=True)
    ]
    return tf.concat(results, axis=3) if group > 1 else results[0]


@lowers("MaxPool")
def max_pool(inputs: list[Value | None], attrs: dict[str, Any]) -> Value:
    """MaxPool; padding counts as minus infinity."""
    source, kernel, strides, pads = _pool(inputs, attrs)
    dilations = _pair(attrs, "dilations")
    if max(dilations) > 1:
        raise CannotLowerError("dilated pooling")
    lowest = float(np.finfo(np.float32).min)
    tensor, padding = _padded(source.in_order(NHWC), pads, kernel, strides, dilations, lowest)
    return Value(tf.nn.max_pool2d(tensor, kernel, strides, padding), NHWC)


@lowers("AveragePool")
def average_pool(inputs: list[Value | None], attrs: dict[str, Any]) -> Value:
    """AveragePool; a window over the whole image becomes a mean."""
    source, kernel, strides, pads = _pool(inputs, attrs)
    tensor = source.in_order(NHWC)
    if kernel == source.shape[2:] and not np.any(pads):
        return Value(tf.reduce_mean(tensor, axis=(1, 2), keepdims=True), NHWC)
    counted = bool(attrs.get("count_include_pad", 0))
    same = _same(source.shape[2:], kernel, strides, (1, 1))
    if not np.any(pads):
        return Value(tf.nn.avg_pool2d(tensor, kernel, strides, "VALID"), NHWC)
    if counted:
        tensor = tf.pad(tensor, [(0, 0), *pads, (0, 0)])
        return Value(tf.nn.avg_pool2d(tensor, kernel, strides, "VALID"), NHWC)
    if pads == same:  # TensorFlow's SAME leaves its padding out of the mean, as ONNX does by default
        return Value(tf.nn.avg_pool2d(tensor, kernel, strides, "SAME"), NHWC)
    raise CannotLowerError(f"pads {pads} that do not count")


@lowers("GlobalAveragePool")
def global_average_pool(inputs: list[Value | None], attrs: dict[str, Any]) -> Value:
    """GlobalAveragePool as a mean, which int8 delegates take without a break."""
    source = given(inputs[0])
    axes = [source.order[axis] for axis in range(2, source.rank)]
    return source.with_tensor(tf.reduce_mean(source.tensor, axis=axes, keepdims=True))


def _pool(inputs: list[Value | None], attrs: dict[str, Any]) -> tuple[Value, tuple[int, ...], tuple[int, int], Pads]:
    source = _image(inputs[0])
    kernel = tuple(int(size) for size in attrs["kernel_shape"])
    strides = _pair(attrs, "strides")
    if attrs.get("ceil_mode"):
        raise CannotLowerError("ceil_mode")
    return source, kernel, strides, _pads(attrs, source, kernel, strides, _pair(attrs, "dilations"))


def _image(value: Value | None) -> Value:
    found = given(value)
    if found.rank != 4:
        raise CannotLowerError(f"an input of {found.rank} axes (only images, with 4, are known)")
    return found


def _pair(attrs: dict[str, Any], name: str) -> tuple[int, int]:
    values = attrs.get(name) or (1, 1)
    return int(values[0]), int(values[1])


def _pads(attrs: dict[str, Any], source: Value, kernel: Any, strides: Any, dilations: Any) -> Pads:
    mode = attrs.get("auto_pad", "NOTSET")
    if mode == "VALID":
        return [(0, 0), (0, 0)]
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        upper = _same(source.shape[2:], kernel, strides, dilations)
        return upper if mode == "SAME_UPPER" else [(after, before) for before, after in upper]
    values = [int(pad) for pad in attrs.get("pads") or (0, 0, 0, 0)]
    return [(values[0], values[2]), (values[1], values[3])]


def _same(sizes: Any, kernel: Any, strides: Any, dilations: Any) -> Pads:
    """What TensorFlow pads under SAME: as much as keeps ceil(size / stride), the odd one behind."""
    pads = []
    for size, window, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        span = (int(window) - 1) * dilation + 1
        total = max((-(-size // stride) - 1) * stride + span - size, 0)
        pads.append((total // 2, total - total // 2))
    return pads


def _padded(tensor: Any, pads: Pads, kernel: Any, strides: Any, dilations: Any, value: float) -> tuple[Any, str]:
    if not np.any(pads):
        return tensor, "VALID"
    if pads == _same(tuple(int(size) for size in tensor.shape[1:3]), kernel, strides, dilations):
        return tensor, "SAME"
    return tf.pad(tensor, [(0, 0), *pads, (0, 0)], constant_values=value), "VALID"
