"""Images and sliding windows, for convolutions and pooling.

A signal with one axis is handled as an image of one row: every function here takes (1, height, width, channels).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from converters.lowering.registry import CannotLowerError, required
from converters.lowering.values import Value, channels_last

Pair = tuple[int, int]
Pads = list[Pair]


@dataclass(frozen=True)
class Image:
    """A channel-last tensor (N, H, W, C); `flat` is True for a signal with an added axis of height 1."""

    tensor: Any
    flat: bool

    @property
    def sizes(self) -> Pair:
        """Height and width."""
        return int(self.tensor.shape[1]), int(self.tensor.shape[2])

    @property
    def channels(self) -> int:
        """Number of channels."""
        return int(self.tensor.shape[3])

    def value(self, tensor: Any) -> Value:
        """The value of `tensor`, a result of the same kind (image or signal)."""
        return Value(tf.squeeze(tensor, [1]), channels_last(3)) if self.flat else Value(tensor, channels_last(4))

    def pair(self, values: Any, default: int) -> Pair:
        """An attribute with one number per axis, as (height, width)."""
        numbers = [int(value) for value in values] if values else [default] * (1 if self.flat else 2)
        return (default, numbers[0]) if self.flat else (numbers[0], numbers[1])


@dataclass(frozen=True)
class Window:
    """A window that slides over an image; every field has one entry for height and one for width."""

    kernel: Pair
    strides: Pair
    dilations: Pair
    pads: Pads

    @property
    def spans(self) -> Pair:
        """Rows and columns of the image that the window covers, dilation included."""
        first, second = ((size - 1) * dilation + 1 for size, dilation in zip(self.kernel, self.dilations, strict=True))
        return first, second


def image_of(value: Value | None) -> Image:
    """The input as an image."""
    source = required(value)
    if source.rank == 3:
        return Image(tf.expand_dims(source.in_order(channels_last(3)), 1), True)
    if source.rank != 4:
        raise CannotLowerError(f"an input of {source.rank} axes (supported here: 4 for images, 3 for signals)")
    return Image(source.in_order(channels_last(4)), False)


def window_of(image: Image, kernel: Any, attrs: dict[str, Any]) -> Window:
    """The window of a node's attributes, with explicit padding for `image`."""
    size, strides = image.pair(kernel, 1), image.pair(attrs.get("strides"), 1)
    plain = Window(size, strides, image.pair(attrs.get("dilations"), 1), [(0, 0), (0, 0)])
    mode = attrs.get("auto_pad", "NOTSET")
    if mode == "VALID":
        return plain
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        upper = same_pads(image, plain)
        pads = upper if mode == "SAME_UPPER" else [(behind, before) for before, behind in upper]
    else:
        pads = explicit_pads(image, attrs)
    return Window(size, strides, plain.dilations, pads)


def explicit_pads(image: Image, attrs: dict[str, Any]) -> Pads:
    """The ``pads`` attribute as (before, behind) for height and width."""
    values = [int(pad) for pad in attrs.get("pads") or ()]
    half = len(values) // 2
    pairs = list(zip(values[:half], values[half:], strict=True))
    if image.flat:
        return [(0, 0), *(pairs or [(0, 0)])]
    return pairs or [(0, 0), (0, 0)]


def same_pads(image: Image, window: Window) -> Pads:
    """TensorFlow's SAME padding: the output size is ceil(size / stride), and an odd pad goes to the end."""
    pads = []
    for size, span, stride in zip(image.sizes, window.spans, window.strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + span - size, 0)
        pads.append((total // 2, total - total // 2))
    return pads


def padded(image: Image, window: Window, value: float) -> tuple[Any, str]:
    """The image, padded unless TensorFlow's SAME does it, and TensorFlow's padding mode."""
    if not np.any(window.pads):
        return image.tensor, "VALID"
    if window.pads == same_pads(image, window):
        return image.tensor, "SAME"
    if min(min(pair) for pair in window.pads) < 0:
        raise CannotLowerError(f"negative pads {window.pads}")
    return tf.pad(image.tensor, [(0, 0), *window.pads, (0, 0)], constant_values=value), "VALID"


def with_edges(tensor: Any, pads: Mapping[int, Pair]) -> Any:
    """`tensor` with copies of its first and last rows; `pads` gives their numbers by axis."""
    for axis, (before, behind) in pads.items():
        size = int(tensor.shape[axis])
        first, last = ([slice(None)] * axis + [slice(at, at + 1)] for at in (0, size - 1))
        parts = [tensor[tuple(first)]] * before + [tensor] + [tensor[tuple(last)]] * behind
        tensor = tf.concat(parts, axis=axis) if len(parts) > 1 else tensor
    return tensor
