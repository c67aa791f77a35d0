"""Operators that read an image at computed places."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from converters.lowering.registry import CannotLowerError, Inputs, lowers, required
from converters.lowering.values import Value, channels_last


@lowers("GridSample")
def grid_sample(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """GridSample of images, nearest or linear, with zeros or the border outside."""
    image, grid = required(inputs[0]), required(inputs[1])
    mode, outside = attrs.get("mode", "linear"), attrs.get("padding_mode", "zeros")
    if image.rank != 4 or mode not in ("linear", "bilinear", "nearest") or outside not in ("zeros", "border"):
        raise CannotLowerError(f"{image.rank} axes, mode {mode}, padding {outside}")
    rows, channels, height, width = image.shape
    if rows != 1:
        raise CannotLowerError(f"a batch of {rows}")
    pixels = tf.reshape(image.in_order(channels_last(4)), (height * width, channels))
    place = tf.reshape(grid.plain(), (-1, 2))
    x, y = (_pixel(place[:, axis], size, attrs) for axis, size in enumerate((width, height)))
    if outside == "border":
        x, y = tf.clip_by_value(x, 0.0, width - 1.0), tf.clip_by_value(y, 0.0, height - 1.0)
    if mode == "nearest":
        result = _read(pixels, tf.round(x), tf.round(y), (height, width))
    else:
        left, top = tf.floor(x), tf.floor(y)
        right, low = (tf.expand_dims(value, 1) for value in (x - left, y - top))
        upper = _read(pixels, left, top, (height, width)) * (1.0 - right)
        upper += _read(pixels, left + 1.0, top, (height, width)) * right
        lower = _read(pixels, left, top + 1.0, (height, width)) * (1.0 - right)
        lower += _read(pixels, left + 1.0, top + 1.0, (height, width)) * right
        result = upper * (1.0 - low) + lower * low
    return Value(tf.reshape(result, (1, *grid.shape[1:3], channels)), channels_last(4))


def _pixel(place: Any, size: int, attrs: dict[str, Any]) -> Any:
    """Places from -1 to 1 as row or column numbers."""
    if attrs.get("align_corners"):
        return (place + 1.0) * ((size - 1) / 2)
    return (place + 1.0) * (size / 2) - 0.5


def _read(pixels: Any, x: Any, y: Any, size: tuple[int, int]) -> Any:
    """The pixels at whole places, 0 outside of the image."""
    height, width = size
    inside_x, inside_y = tf.clip_by_value(x, 0.0, width - 1.0), tf.clip_by_value(y, 0.0, height - 1.0)
    index = tf.cast(inside_y * np.float32(width) + inside_x, tf.int32)
    inside = tf.cast(tf.logical_and(tf.equal(x, inside_x), tf.equal(y, inside_y)), tf.float32)
    return tf.gather(pixels, index) * tf.expand_dims(inside, 1)
