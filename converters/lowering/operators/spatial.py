"""Convolutions and transposed convolutions over images and signals."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from converters.lowering.registry import Inputs, constant, lowers, optional, required
from converters.lowering.values import Value
from converters.lowering.volumes import VOLUME, as_volume, box_of, convolved, volume_of
from converters.lowering.windows import Image, Pads, Window, image_of, padded, window_of


@lowers("Conv")
def conv(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """Conv: ordinary, grouped and depthwise; weights (out, in / group, ...). Of images, another layer may make them."""
    volume = required(inputs[0]).rank == VOLUME
    given = constant(inputs[1], "weights") if volume else required(inputs[1]).plain()
    if volume:
        planes = volume_of(required(inputs[0]))
        box = box_of(planes, given.shape[2:], attrs)
        return as_volume(_biased(convolved(planes, given, box, int(attrs.get("group", 1)), attrs["variable"]), inputs))
    image = image_of(inputs[0])
    weights = _as_image_weights(given)
    window = window_of(image, given.shape[2:], attrs)
    tensor, padding = padded(image, window, 0.0)
    group = int(attrs.get("group", 1))
    strides, dilations = window.strides, window.dilations
    depthwise = group == image.channels > 1 and weights.shape[1] == 1
    if depthwise and strides[0] == strides[1] and (max(dilations) == 1 or max(strides) == 1):
        result = _depthwise(tensor, weights, image.channels, window, padding)
    else:
        result = _grouped(tensor, weights, group, window, padding, attrs["variable"])
    return image.value(_biased(result, inputs))


def _as_image_weights(weights: Any) -> Any:
    return weights[:, :, None] if len(weights.shape) == 3 else weights


def _turned(weights: Any, axes: tuple[int, ...]) -> Any:
    """Weights with their axes in another order; an array stays an array, so that the converter sees a constant."""
    return weights.transpose(axes) if isinstance(weights, np.ndarray) else tf.transpose(weights, axes)


def _biased(result: Any, inputs: Inputs) -> Any:
    bias = optional(inputs, 2)
    return result if bias is None else tf.nn.bias_add(result, bias.plain())


def _depthwise(tensor: Any, weights: Any, channels: int, window: Window, padding: str) -> Any:
    multiplier = weights.shape[0] // channels
    shape = (channels, multiplier, *weights.shape[2:])
    split = weights.reshape(shape) if isinstance(weights, np.ndarray) else tf.reshape(weights, shape)
    kernel = _turned(split, (2, 3, 0, 1))
    return tf.nn.depthwise_conv2d(tensor, kernel, (1, *window.strides, 1), padding, dilations=window.dilations)


def _grouped(tensor: Any, weights: Any, group: int, window: Window, padding: str, variable: Any) -> Any:
    turned = _turned(weights, (2, 3, 1, 0))
    constants = isinstance(turned, np.ndarray)
    kernels = map(np.ascontiguousarray, np.split(turned, group, axis=3)) if constants else tf.split(turned, group, 3)
    parts = tf.split(tensor, group, axis=3) if group > 1 else [tensor]
    results = [
        tf.nn.conv2d(part, variable(kernel), window.strides, padding, dilations=window.dilations)
        for part, kernel in zip(parts, kernels, strict=True)
    ]
    return tf.concat(results, axis=3) if group > 1 else results[0]


@lowers("ConvTranspose")
def conv_transpose(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """ConvTranspose; weights (in, out / group, ...). Surplus rows and columns of TensorFlow's result are cut off."""
    image = image_of(inputs[0])
    weights = _as_image_weights(constant(inputs[1], "weights"))
    window = window_of(image, constant(inputs[1], "weights").shape[2:], {**attrs, "auto_pad": "NOTSET"})
    sizes, pads = _transposed(image, window, attrs)
    group = int(attrs.get("group", 1))
    kernels = np.split(_dilated(weights, window).transpose(2, 3, 1, 0), group, axis=3)
    parts = tf.split(image.tensor, group, axis=3) if group > 1 else [image.tensor]
    results = [
        _one_transposed(p, attrs["variable"](np.ascontiguousarray(k)), window, sizes, pads)
        for p, k in zip(parts, kernels, strict=True)
    ]
    result = tf.concat(results, axis=3) if group > 1 else results[0]
    return image.value(_biased(result, inputs))


def _dilated(weights: Any, window: Window) -> Any:
    """Put zeros between the weights instead of a dilation, which LiteRT's transposed convolution lacks."""
    if max(window.dilations) == 1:
        return weights
    wide = np.zeros((*weights.shape[:2], *window.spans), weights.dtype)
    wide[:, :, :: window.dilations[0], :: window.dilations[1]] = weights
    return wide


def _transposed(image: Image, window: Window, attrs: dict[str, Any]) -> tuple[tuple[int, ...], Pads]:
    """Height and width of the result, and how much to cut at the start and the end of the full result."""
    extra = image.pair(attrs.get("output_padding"), 0)
    full = [(n - 1) * s + span for n, s, span in zip(image.sizes, window.strides, window.spans, strict=True)]
    mode, wanted = attrs.get("auto_pad", "NOTSET"), attrs.get("output_shape")
    if mode == "NOTSET" and not wanted:
        pads = window.pads
        return tuple(f + e - b - a for f, e, (b, a) in zip(full, extra, pads, strict=True)), pads
    if wanted:
        sizes = image.pair(list(wanted)[-(1 if image.flat else 2) :], 1)
    elif mode == "VALID":
        sizes = (full[0] + extra[0], full[1] + extra[1])
    else:
        sizes = (image.sizes[0] * window.strides[0], image.sizes[1] * window.strides[1])
    totals = [max(f + e - size, 0) for f, e, size in zip(full, extra, sizes, strict=True)]
    small = [total // 2 for total in totals]
    if mode == "SAME_UPPER":
        return sizes, [(s, t - s) for s, t in zip(small, totals, strict=True)]
    return sizes, [(t - s, s) for s, t in zip(small, totals, strict=True)]


def _one_transposed(tensor: Any, kernel: Any, window: Window, sizes: Any, pads: Pads) -> Any:
    rows, height, width, _ = (int(size) for size in tensor.shape)
    channels = kernel.shape[2]
    strides = window.strides
    full = [(n - 1) * s + k for n, s, k in zip((height, width), strides, kernel.shape[:2], strict=True)]
    fits = all(-(-size // s) == n for size, s, n in zip(sizes, strides, (height, width), strict=True))
    if fits and all(b == max(f - size, 0) // 2 for f, size, (b, _) in zip(full, sizes, pads, strict=True)):
        return tf.nn.conv2d_transpose(tensor, kernel, (rows, *sizes, channels), strides, "SAME")
    whole = tf.nn.conv2d_transpose(tensor, kernel, (rows, *full, channels), strides, "VALID")
    missing = [max(b + size - f, 0) for f, size, (b, _) in zip(full, sizes, pads, strict=True)]
    if any(missing):
        whole = tf.pad(whole, [(0, 0), (0, missing[0]), (0, missing[1]), (0, 0)])
    (top, _), (left, _) = pads
    return whole[:, top : top + sizes[0], left : left + sizes[1], :]
