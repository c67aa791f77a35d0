"""Pooling over images and signals."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import tensorflow as tf

from converters.lowering.registry import CannotLowerError, Inputs, lowers, required
from converters.lowering.values import Value
from converters.lowering.volumes import VOLUME, Box, as_volume, box_of, largest_over, mean_over, volume_of
from converters.lowering.windows import Image, Pads, Window, image_of, padded, same_pads, window_of, with_edges


@lowers("MaxPool")
def max_pool(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """MaxPool. Padding never wins: it is 0 where no value is negative, and otherwise a copy of the edge.

    The lowest float32, the usual padding, would take the whole range of an 8-bit scale.
    """
    if required(inputs[0]).rank == VOLUME:
        planes, box = _pool_of_volume(inputs, attrs)
        return as_volume(largest_over(planes, box))
    image, window, extra = _pool(inputs, attrs)
    whole = Window(window.kernel, window.strides, window.dilations, _added(window.pads, extra))
    if max(window.dilations) > 1:
        return image.value(_dilated_maximum(image, whole, attrs))
    if attrs["never_negative"][0] or whole.pads == same_pads(image, whole):
        tensor, padding = padded(image, whole, 0.0)
    else:  # every window with padding also covers the edge, since pads are smaller than the window
        tensor, padding = with_edges(image.tensor, {1: whole.pads[0], 2: whole.pads[1]}), "VALID"
    return image.value(tf.nn.max_pool2d(tensor, window.kernel, window.strides, padding))


def _dilated_maximum(image: Image, window: Window, attrs: dict[str, Any]) -> Any:
    """The largest of the window's elements, each taken from all places of the window at once."""
    lowest = 0.0 if attrs["never_negative"][0] else float(np.finfo(np.float32).min)
    tensor = tf.pad(image.tensor, [(0, 0), *window.pads, (0, 0)], constant_values=lowest)
    last = [int(size) - span for size, span in zip(tensor.shape[1:3], window.spans, strict=True)]
    parts = []
    for row, column in np.ndindex(window.kernel):
        top, left = row * window.dilations[0], column * window.dilations[1]
        parts.append(
            tensor[:, top : top + last[0] + 1 : window.strides[0], left : left + last[1] + 1 : window.strides[1]]
        )
    return functools.reduce(tf.maximum, parts)


@lowers("AveragePool")
def average_pool(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """AveragePool; a window over the whole image becomes a mean, which does not split int8 delegates."""
    if required(inputs[0]).rank == VOLUME:
        planes, box = _pool_of_volume(inputs, attrs)
        return as_volume(mean_over(planes, box, counted=bool(attrs.get("count_include_pad", 0))))
    image, window, extra = _pool(inputs, attrs)
    if max(window.dilations) > 1:
        raise CannotLowerError("dilated pooling")
    if window.kernel == image.sizes and not np.any(window.pads):
        return image.value(tf.reduce_mean(image.tensor, axis=(1, 2), keepdims=True))
    counted = bool(attrs.get("count_include_pad", 0))
    if not np.any(window.pads) and not any(extra):
        return image.value(tf.nn.avg_pool2d(image.tensor, window.kernel, window.strides, "VALID"))
    same = window.pads == same_pads(image, window)
    if same and not counted and not any(extra):  # the mean under SAME excludes the padding
        return image.value(tf.nn.avg_pool2d(image.tensor, window.kernel, window.strides, "SAME"))
    pads = _added(window.pads, extra)
    zeros = tf.pad(image.tensor, [(0, 0), *pads, (0, 0)])
    mean = tf.nn.avg_pool2d(zeros, window.kernel, window.strides, "VALID")
    factor = _factor(image, window, counted, [int(size) for size in mean.shape[1:3]])
    return image.value(mean if np.all(factor == 1) else mean * factor)


@lowers("GlobalAveragePool")
def global_average_pool(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """GlobalAveragePool as a mean."""
    source = required(inputs[0])
    axes = [source.order[axis] for axis in range(2, source.rank)]
    return source.with_tensor(tf.reduce_mean(source.tensor, axis=axes, keepdims=True))


@lowers("GlobalMaxPool")
def global_max_pool(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """GlobalMaxPool as a maximum."""
    source = required(inputs[0])
    axes = [source.order[axis] for axis in range(2, source.rank)]
    return source.with_tensor(tf.reduce_max(source.tensor, axis=axes, keepdims=True))


@lowers("LpPool")
def lp_pool(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """The p-norm of each window, as the root of a mean of powers; padding is 0."""
    image, window, extra = _pool(inputs, attrs)
    if max(window.dilations) > 1 or any(extra):
        raise CannotLowerError("dilated pooling, or ceil_mode")
    padded_powers = tf.pad(_powers(image.tensor, attrs), [(0, 0), *window.pads, (0, 0)])
    means = tf.nn.avg_pool2d(padded_powers, window.kernel, window.strides, "VALID")
    return image.value(_root(means * float(np.prod(window.kernel)), attrs))


@lowers("GlobalLpPool")
def global_lp_pool(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """The p-norm over all places."""
    source = required(inputs[0])
    axes = [source.order[axis] for axis in range(2, source.rank)]
    return source.with_tensor(_root(tf.reduce_sum(_powers(source.tensor, attrs), axis=axes, keepdims=True), attrs))


def _powers(tensor: Any, attrs: dict[str, Any]) -> Any:
    p = int(attrs.get("p", 2))
    return tf.square(tensor) if p == 2 else tf.abs(tensor) if p == 1 else tf.pow(tf.abs(tensor), float(p))


def _root(sums: Any, attrs: dict[str, Any]) -> Any:
    p = int(attrs.get("p", 2))
    return tf.sqrt(sums) if p == 2 else sums if p == 1 else tf.pow(sums, 1.0 / p)


def _pool_of_volume(inputs: Inputs, attrs: dict[str, Any]) -> tuple[Any, Box]:
    if attrs["outputs"] > 1:
        raise CannotLowerError("the second output (indices)")
    if attrs.get("ceil_mode"):
        raise CannotLowerError("ceil_mode over volumes")
    planes = volume_of(required(inputs[0]))
    return planes, box_of(planes, attrs["kernel_shape"], attrs)


def _pool(inputs: Inputs, attrs: dict[str, Any]) -> tuple[Image, Window, tuple[int, int]]:
    """The image, the window, and the rows and columns that ceil_mode adds at the end."""
    if attrs["outputs"] > 1:
        raise CannotLowerError("the second output (indices)")
    image = image_of(inputs[0])
    window = window_of(image, attrs["kernel_shape"], attrs)
    if not attrs.get("ceil_mode"):
        return image, window, (0, 0)
    first, second = (
        _ceil_extra(size, span, stride, pads)
        for size, span, stride, pads in zip(image.sizes, window.spans, window.strides, window.pads, strict=True)
    )
    return image, window, (first, second)


def _ceil_extra(size: int, span: int, stride: int, pads: tuple[int, int]) -> int:
    """Padding for a last window that reaches past the end, unless that window would begin in the padding."""
    whole = size + sum(pads)
    count = -(-(whole - span) // stride) + 1
    if (count - 1) * stride >= size + pads[0]:
        count -= 1
    return max((count - 1) * stride + span - whole, 0)


def _added(pads: Pads, extra: tuple[int, int]) -> Pads:
    return [(before, behind + pad) for (before, behind), pad in zip(pads, extra, strict=True)]


def _factor(image: Image, window: Window, counted: bool, results: list[int]) -> Any:
    """Factors from the mean over whole windows to the mean over counted elements: (1, height, width, 1)."""
    shares = []
    for size, kernel, stride, (before, behind), count in zip(
        image.sizes, window.kernel, window.strides, window.pads, results, strict=True
    ):
        starts = np.arange(count) * stride
        low, high = (0, size + before + behind) if counted else (before, before + size)
        inside = np.minimum(starts + kernel, high) - np.maximum(starts, low)
        shares.append(kernel / np.maximum(inside, 1))
    return np.outer(*shares)[None, :, :, None].astype(np.float32)
