"""Resizing and cropping of images in numpy; methods have the name of the library that they agree with.

All methods use half-pixel centres: output pixel i is at (i + 0.5) * in / out - 0.5 of the input.

* ``nearest``: the pixel that contains the centre, as tf.image.resize (Pillow differs for a centre between two pixels).
  The dtype stays.
* ``bilinear``, ``bicubic``: as tf.image.resize without antialias, and so as Keras' image_dataset_from_directory: always
  2 or 4 neighbours per axis; cubic by Keys with a = -0.5. The result is float32.
* ``pillow-box``, ``pillow-bilinear``, ``pillow-bicubic``, ``pillow-lanczos``: as Pillow's Image.resize, and so as
  torchvision on images: the filter covers all input pixels of an output pixel, so shrinking averages them. uint8 only;
  equal to Pillow bit for bit, because coefficients are rounded to the same 22 bits and each pass to uint8.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from edgekit.tensors import Array

NEAREST, BILINEAR, BICUBIC = "nearest", "bilinear", "bicubic"
_PRECISION_BITS = 22  # of Pillow's coefficients: 32, minus 8 for the pixel, minus 2 for sums above one


def resize(image: Array, height: int, width: int, method: str) -> Array:
    """Resize `image` (H, W, C) to (height, width, C); see the module for methods and dtypes."""
    if method == NEAREST:
        rows, columns = _nearest(image.shape[0], height), _nearest(image.shape[1], width)
        picked: Array = image[rows[:, None], columns[None, :]]
        return picked
    if method == BILINEAR:
        return _bilinear(image.astype(np.float32), height, width)
    if method == BICUBIC:
        return _cubic_pass(_cubic_pass(image.astype(np.float32), 0, height), 1, width)
    return _pillow_pass(_pillow_pass(image, 1, width, method), 0, height, method)


def scaled_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Both sides times `scale`, rounded to the nearest (half up) and at least 1."""
    return max(1, math.floor(height * scale + 0.5)), max(1, math.floor(width * scale + 0.5))


def shorter_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Size with the shorter side `size`; the longer side in proportion, rounded down, as torchvision's Resize."""
    if height <= width:
        return size, max(1, int(size * width / height))
    return max(1, int(size * height / width)), size


def center_crop(image: Array, height: int, width: int) -> Array:
    """The central `height` by `width` of `image` (H, W, C); an odd pixel is cut at the end, smaller sides stay."""
    top, left = max(0, (image.shape[0] - height) // 2), max(0, (image.shape[1] - width) // 2)
    return image[top : top + height, left : left + width]


def letterbox(image: Array, height: int, width: int, value: float) -> Array:
    """Place `image` (H, W, C), which must fit, in the middle of (height, width, C) filled with `value`."""
    framed = np.full((height, width, image.shape[2]), value, image.dtype)
    top, left = (height - image.shape[0]) // 2, (width - image.shape[1]) // 2
    framed[top : top + image.shape[0], left : left + image.shape[1]] = image
    return framed


def _nearest(size: int, wanted: int) -> Array:
    indices = np.floor((np.arange(wanted) + 0.5) * (size / wanted)).astype(np.int64)
    clipped: Array = np.minimum(indices, size - 1)
    return clipped


def _bilinear(image: Array, height: int, width: int) -> Array:
    """Interpolate along rows and then between rows, each time low + (high - low) * fraction in float32."""
    top, bottom, down = _neighbours(image.shape[0], height)
    left, right, across = _neighbours(image.shape[1], width)
    down, across = down[:, None, None], across[None, :, None]

    def blend(rows: Array) -> Array:
        low, high = image[rows[:, None], left[None, :]], image[rows[:, None], right[None, :]]
        mixed: Array = low + (high - low) * across
        return mixed

    upper, lower = blend(top), blend(bottom)
    mixed: Array = upper + (lower - upper) * down
    return mixed


def _neighbours(size: int, wanted: int) -> tuple[Array, Array, Array]:
    at = (np.arange(wanted, dtype=np.float32) + np.float32(0.5)) * np.float32(size / wanted) - np.float32(0.5)
    below = np.floor(at)
    low = np.clip(below, 0, size - 1).astype(np.int64)
    high = np.clip(np.ceil(at), 0, size - 1).astype(np.int64)
    return low, high, (at - below).astype(np.float32)


def _cubic_pass(image: Array, axis: int, wanted: int) -> Array:
    """Cubic interpolation along one axis; taps outside the image are dropped, and the others normalized to sum 1."""
    size = image.shape[axis]
    at = (np.arange(wanted) + 0.5) * (size / wanted) - 0.5
    first = np.floor(at).astype(np.int64) - 1
    taps = first[:, None] + np.arange(4)
    weights = _cubic(taps - at[:, None]) * ((taps >= 0) & (taps < size))
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    shape = [1] * image.ndim
    shape[axis] = wanted
    total = np.zeros([wanted if i == axis else n for i, n in enumerate(image.shape)], np.float32)
    for tap in range(4):
        total += image.take(np.clip(taps[:, tap], 0, size - 1), axis=axis) * weights[:, tap].reshape(shape)
    return total


def _pillow_pass(image: Array, axis: int, wanted: int, method: str) -> Array:
    """One pass of Pillow's resampling along `axis` of a uint8 image."""
    if image.shape[axis] == wanted:
        return image
    starts, weights = _coefficients(image.shape[axis], wanted, method)
    shape = [1] * image.ndim
    shape[axis] = wanted
    total = np.full(
        [wanted if i == axis else n for i, n in enumerate(image.shape)], 1 << (_PRECISION_BITS - 1), np.int32
    )
    last = image.shape[axis] - 1
    for tap in range(weights.shape[1]):  # taps past the end have weight 0
        total += image.take(np.minimum(starts + tap, last), axis=axis) * weights[:, tap].reshape(shape)
    clipped: Array = np.clip(total >> _PRECISION_BITS, 0, 255).astype(np.uint8)
    return clipped


@functools.lru_cache(maxsize=32)
def _coefficients(size: int, wanted: int, method: str) -> tuple[Array, Array]:
    """First input pixel (wanted,) and integer weights (wanted, taps) of each output pixel."""
    kernel, reach = _KERNELS[method]
    scale = size / wanted
    widening = max(scale, 1.0)
    support = reach * widening
    starts, rows = np.zeros(wanted, np.int64), []
    for i in range(wanted):
        center = (i + 0.5) * scale
        low, high = max(0, int(center - support + 0.5)), min(size, int(center + support + 0.5))
        weights = kernel((np.arange(low, high) - center + 0.5) / widening)
        starts[i] = low
        rows.append(weights / weights.sum())
    weight_rows = np.zeros((wanted, max(len(row) for row in rows)))
    for i, row in enumerate(rows):
        weight_rows[i, : len(row)] = row
    scaled = weight_rows * (1 << _PRECISION_BITS)
    return starts, np.where(scaled < 0, np.trunc(scaled - 0.5), np.trunc(scaled + 0.5)).astype(np.int32)


def _box(x: Array) -> Array:
    return ((x > -0.5) & (x <= 0.5)).astype(np.float64)


def _triangle(x: Array) -> Array:
    weights: Array = np.maximum(0.0, 1.0 - np.abs(x))
    return weights


def _cubic(x: Array) -> Array:
    """R. Keys, Cubic convolution interpolation for digital image processing (1981), with a = -0.5."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _lanczos(x: Array) -> Array:
    """A sinc with a window of a sinc three times as wide."""
    return np.where((x >= -3) & (x < 3), np.sinc(x) * np.sinc(x / 3), 0.0)


_KERNELS: dict[str, tuple[Callable[[Array], Array], float]] = {
    "pillow-box": (_box, 0.5),
    "pillow-bilinear": (_triangle, 1.0),
    "pillow-bicubic": (_cubic, 2.0),
    "pillow-lanczos": (_lanczos, 3.0),
}
RESIZE_METHODS = (NEAREST, BILINEAR, BICUBIC, *_KERNELS)
