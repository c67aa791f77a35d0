"""Steps that make a row of numbers of an image."""

from __future__ import annotations

from typing import Literal

from edgekit.errors import DataError
from edgekit.preprocess import pixels
from edgekit.preprocess.steps import BYTES, Flow, ProcessingStep, Tools, need, need_sizes
from edgekit.tensors import Array, DType

MAX_PIXELS = 2**26  # no bundle may ask a device to decode more than 67 megapixels

Method = Literal["nearest", "bilinear", "bicubic", "pillow-box", "pillow-bilinear", "pillow-bicubic", "pillow-lanczos"]
_FLOATS = ("bilinear", "bicubic")


class DecodeImage(ProcessingStep, frozen=True, tag="decode-image"):
    """JPEG or PNG bytes to uint8 (H, W, C).

    Attributes:
        colour: ``rgb``, ``bgr`` or ``grey`` (one channel: 0.299 R + 0.587 G + 0.114 B); transparency is dropped.
        max_pixels: Larger images are refused before they are decoded.
        exif: Turn the picture as its camera said; off, as tf.io, Keras and torchvision leave it.
    """

    colour: Literal["rgb", "bgr", "grey"] = "rgb"
    max_pixels: int = 2**24
    exif: bool = False

    def flow(self, given: Flow) -> Flow:
        """One channel for grey, else three."""
        need(self, given == BYTES, given, "bytes")
        if not 1 <= self.max_pixels <= MAX_PIXELS:
            raise DataError(f"{self.name}: max_pixels is {self.max_pixels}, expected 1 to {MAX_PIXELS}")
        return Flow(DType.UINT8, (None, None, 1 if self.colour == "grey" else 3))

    def apply(self, value: bytes, tools: Tools) -> Array:
        """Decode."""
        return tools.decode_image(value, self.colour, self.max_pixels, self.exif)


class Resize(ProcessingStep, frozen=True, tag="resize"):
    """To height by width.

    Attributes:
        method: As `edgekit.preprocess.pixels` names them.
        fit: ``stretch``; ``crop``: the largest middle part of the frame's proportions, as Keras' smart_resize; or
            ``letterbox``: the whole image, as large as fits, in the middle of the frame.
        fill: Value around a letterboxed image, in the image's own unit.
    """

    height: int
    width: int
    method: Method = "bilinear"
    fit: Literal["stretch", "crop", "letterbox"] = "stretch"
    fill: float = 0.0

    def flow(self, given: Flow) -> Flow:
        """The same channels; `bilinear` and `bicubic` give float32."""
        dtype = _resized(self, given, self.method)
        need_sizes(self, height=self.height, width=self.width)
        return Flow(dtype, (self.height, self.width, given.shape[2]))

    def apply(self, value: Array, tools: Tools) -> Array:
        """Resize."""
        have = value.shape[:2]
        if self.fit == "stretch":
            return pixels.resize(value, self.height, self.width, self.method)
        if self.fit == "letterbox":
            ratio = min(self.height / have[0], self.width / have[1])
            height, width = pixels.scaled_size(have[0], have[1], ratio)
            height, width = min(height, self.height), min(width, self.width)
            return pixels.letterbox(
                pixels.resize(value, height, width, self.method), self.height, self.width, self.fill
            )
        # Cut first: an image of 1 by 65,000 must not become 224 by 14 million on its way.
        height = max(1, min(have[0], have[1] * self.height // self.width))
        width = max(1, min(have[1], have[0] * self.width // self.height))
        return pixels.resize(pixels.center_crop(value, height, width), self.height, self.width, self.method)


class ResizeShorter(ProcessingStep, frozen=True, tag="resize-shorter"):
    """The shorter side to `size`, the longer one in proportion, as torchvision's Resize(size)."""

    size: int
    method: Method = "pillow-bilinear"
    max_ratio: float = 16.0

    def flow(self, given: Flow) -> Flow:
        """The same channels, sizes unknown."""
        dtype = _resized(self, given, self.method)
        need_sizes(self, size=self.size)
        return Flow(dtype, (None, None, given.shape[2]))

    def apply(self, value: Array, tools: Tools) -> Array:
        """Resize; an image that is too long for its width would grow without bound."""
        height, width = value.shape[:2]
        if max(height, width) > self.max_ratio * min(height, width):
            raise DataError(f"the image is {width} by {height}, one side may be {self.max_ratio:g} times the other")
        return pixels.resize(value, *pixels.shorter_size(height, width, self.size), self.method)


class CenterCrop(ProcessingStep, frozen=True, tag="center-crop"):
    """The middle of an image."""

    height: int
    width: int

    def flow(self, given: Flow) -> Flow:
        """The same dtype and channels."""
        need(self, len(given.shape) == 3, given, "an image")
        need_sizes(self, height=self.height, width=self.width)
        return Flow(given.dtype, (self.height, self.width, given.shape[2]))

    def apply(self, value: Array, tools: Tools) -> Array:
        """Crop."""
        if value.shape[0] < self.height or value.shape[1] < self.width:
            raise DataError(
                f"the image is {value.shape[1]} by {value.shape[0]}, "
                f"from which {self.width} by {self.height} cannot be cut"
            )
        return pixels.center_crop(value, self.height, self.width)


class Layout(ProcessingStep, frozen=True, tag="layout"):
    """Height, width, channels (HWC, as images are decoded) to channels first (CHW)."""

    to: Literal["CHW"] = "CHW"

    def flow(self, given: Flow) -> Flow:
        """Axes moved."""
        need(self, len(given.shape) == 3, given, "an image")
        return Flow(given.dtype, (given.shape[2], given.shape[0], given.shape[1]))

    def apply(self, value: Array, tools: Tools) -> Array:
        """Move the axes."""
        moved: Array = value.transpose(2, 0, 1)
        return moved


def _resized(step: ProcessingStep, given: Flow, method: str) -> DType:
    need(step, given != BYTES and len(given.shape) == 3, given, "an image")
    if method.startswith("pillow-"):
        need(step, given.dtype is DType.UINT8, given, f"uint8, which {method} is defined for")
    return DType.FLOAT32 if method in _FLOATS else given.dtype
