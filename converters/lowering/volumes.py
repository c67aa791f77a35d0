"""Convolutions and pooling over volumes (time or depth, height, width), as sums of those over images.

LiteRT's own CONV_3D has no delegate and no 8-bit form, and it has no pooling over volumes. A convolution over D planes
is the sum of D convolutions over images, each of which runs on all places at once.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from converters.lowering.registry import CannotLowerError
from converters.lowering.values import Value, channels_last
from converters.lowering.windows import Pads, with_edges

VOLUME = 5  # axes


@dataclass(frozen=True)
class Box:
    """A window over a volume; every field has an entry for depth, height and width."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: Pads


def volume_of(value: Value) -> Any:
    """The planes (D, H, W, C) of a volume with a batch of 1."""
    return tf.squeeze(value.in_order(channels_last(VOLUME)), [0])


def as_volume(planes: Any) -> Value:
    """The volume of `planes` (D, H, W, C)."""
    return Value(tf.expand_dims(planes, 0), channels_last(VOLUME))


def box_of(planes: Any, kernel: Any, attrs: dict[str, Any]) -> Box:
    """The window of a node's attributes, with explicit padding for `planes`."""
    size = tuple(int(one) for one in kernel)
    strides = tuple(int(one) for one in attrs.get("strides") or (1, 1, 1))
    dilations = tuple(int(one) for one in attrs.get("dilations") or (1, 1, 1))
    mode = attrs.get("auto_pad", "NOTSET")
    given = [int(pad) for pad in attrs.get("pads") or (0,) * 6]
    pads = list(zip(given[:3], given[3:], strict=True))
    if mode == "VALID":
        pads = [(0, 0)] * 3
    elif mode != "NOTSET":
        pads = []
        for length, k, stride, dilation in zip(planes.shape[:3], size, strides, dilations, strict=True):
            total = max((-(-int(length) // stride) - 1) * stride + (k - 1) * dilation + 1 - int(length), 0)
            small = (total // 2, total - total // 2)
            pads.append(small if mode == "SAME_UPPER" else small[::-1])
    if min(min(pair) for pair in pads) < 0:
        raise CannotLowerError(f"negative pads {pads}")
    return Box(size, strides, dilations, pads)


def _taps(planes: Any, box: Box) -> Iterator[Any]:
    """The padded planes that each plane of the window meets, one tensor for each."""
    stride, dilation = box.strides[0], box.dilations[0]
    count = (int(planes.shape[0]) - (box.kernel[0] - 1) * dilation - 1) // stride + 1
    for tap in range(box.kernel[0]):
        start = tap * dilation
        yield planes[start : start + (count - 1) * stride + 1 : stride]


def convolved(planes: Any, weights: Any, box: Box, group: int, variable: Any) -> Any:
    """The convolution of `planes` with weights (out, in / group, D, H, W), without a bias."""
    if not isinstance(weights, np.ndarray):
        raise CannotLowerError("weights that are trained, in a convolution over volumes")
    padded = tf.pad(planes, [*box.pads, (0, 0)]) if np.any(box.pads) else planes
    results = []
    for tap, part in enumerate(_taps(padded, box)):
        kernels = np.split(weights[:, :, tap].transpose(2, 3, 1, 0), group, axis=3)
        parts = tf.split(part, group, axis=3) if group > 1 else [part]
        made = [
            tf.nn.conv2d(one, variable(np.ascontiguousarray(k)), box.strides[1:], "VALID", dilations=box.dilations[1:])
            for one, k in zip(parts, kernels, strict=True)
        ]
        results.append(tf.concat(made, axis=3) if group > 1 else made[0])
    return functools.reduce(tf.add, results)


def largest_over(planes: Any, box: Box) -> Any:
    """The largest value of each window; padding is a copy of the edge, so that it never wins."""
    _require_plain(box)
    padded = with_edges(planes, dict(enumerate(box.pads)))
    over = functools.reduce(tf.maximum, _taps(padded, box))
    return tf.nn.max_pool2d(over, box.kernel[1:], box.strides[1:], "VALID")


def mean_over(planes: Any, box: Box, *, counted: bool) -> Any:
    """The mean of each window; `counted` includes padding."""
    _require_plain(box)
    if np.any(box.pads) and not counted:
        raise CannotLowerError("a mean over volumes that leaves padding out")
    padded = tf.pad(planes, [*box.pads, (0, 0)]) if np.any(box.pads) else planes
    over = functools.reduce(tf.add, _taps(padded, box)) * (1.0 / box.kernel[0])
    return tf.nn.avg_pool2d(over, box.kernel[1:], box.strides[1:], "VALID")


def _require_plain(box: Box) -> None:
    if max(box.dilations) > 1:
        raise CannotLowerError("dilated pooling over volumes")
