"""Steps before the model for images."""

# No `from __future__ import annotations`: msgspec would compile each annotation, in every start of a process.

from typing import Literal

from edgekit.errors import DataError
from edgekit.preprocess import pixels
from edgekit.preprocess.steps import BYTES, ProcessingStep, SampleType, Tools, require, require_sizes
from edgekit.tensors import Array, DType

MAX_PIXELS = 2**26  # the largest limit that a bundle may set: 67 megapixels

Method = Literal["nearest", "bilinear", "bicubic", "pillow-box", "pillow-bilinear", "pillow-bicubic", "pillow-lanczos"]
_FLOATS = ("bilinear", "bicubic")


class DecodeImage(ProcessingStep, frozen=True, tag="decode-image"):
    """Decode JPEG or PNG bytes to uint8 (H, W, C).

    Attributes:
        colour: ``rgb``, ``bgr`` or ``grey`` (one channel: 0.299 R + 0.587 G + 0.114 B); transparency is dropped.
        max_pixels: Larger images are refused before decoding.
        exif: Rotate the picture by its EXIF orientation; off by default, as in tf.io, Keras and torchvision.
    """

    colour: Literal["rgb", "bgr", "grey"] = "rgb"
    max_pixels: int = 2**24
    exif: bool = False

    def output_type(self, source: SampleType) -> SampleType:
        """One channel for grey, otherwise three."""
        require(self, source == BYTES, source, "bytes")
        if not 1 <= self.max_pixels <= MAX_PIXELS:
            raise DataError(f"{self.name}: max_pixels is {self.max_pixels}, expected 1 to {MAX_PIXELS}")
        return SampleType(DType.UINT8, (None, None, 1 if self.colour == "grey" else 3))

    def apply(self, value: bytes, tools: Tools) -> Array:
        """Decode."""
        return tools.decode_image(value, self.colour, self.max_pixels, self.exif)


class Resize(ProcessingStep, frozen=True, tag="resize"):
    """Resize an image to `height` by `width` pixels.

    Attributes:
        method: A method of `edgekit.preprocess.pixels`.
        fit: ``stretch``; ``crop``: the largest central part with the target's aspect ratio, as Keras' smart_resize; or
            ``letterbox``: the whole image, as large as possible, in the middle of the target.
        fill: Value around a letterboxed image, in the image's own unit.
    """

    height: int
    width: int
    method: Method = "bilinear"
    fit: Literal["stretch", "crop", "letterbox"] = "stretch"
    fill: float = 0.0

    def output_type(self, source: SampleType) -> SampleType:
        """The new size with the same channels; `bilinear` and `bicubic` give float32."""
        dtype = _resized(self, source, self.method)
        require_sizes(self, height=self.height, width=self.width)
        return SampleType(dtype, (self.height, self.width, source.shape[2]))

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
        # Crop first: an image of 1 by 65,000 must not become 224 by 14 million in between.
        height = max(1, min(have[0], have[1] * self.height // self.width))
        width = max(1, min(have[1], have[0] * self.width // self.height))
        return pixels.resize(pixels.center_crop(value, height, width), self.height, self.width, self.method)


class ResizeShorter(ProcessingStep, frozen=True, tag="resize-shorter"):
    """Resize the shorter side to `size` and the longer one in proportion, as torchvision's Resize(size)."""

    size: int
    method: Method = "pillow-bilinear"
    max_ratio: float = 16.0

    def output_type(self, source: SampleType) -> SampleType:
        """The same channels; the sizes depend on the image."""
        dtype = _resized(self, source, self.method)
        require_sizes(self, size=self.size)
        return SampleType(dtype, (None, None, source.shape[2]))

    def apply(self, value: Array, tools: Tools) -> Array:
        """Resize; refuses images with an extreme aspect ratio, which would become very large."""
        height, width = value.shape[:2]
        if max(height, width) > self.max_ratio * min(height, width):
            raise DataError(
                f"the image is {width} by {height}, one side may be at most {self.max_ratio:g} times the other"
            )
        return pixels.resize(value, *pixels.shorter_size(height, width, self.size), self.method)


class CenterCrop(ProcessingStep, frozen=True, tag="center-crop"):
    """The central part of an image."""

    height: int
    width: int

    def output_type(self, source: SampleType) -> SampleType:
        """The new size with the same dtype and channels."""
        require(self, len(source.shape) == 3, source, "an image")
        require_sizes(self, height=self.height, width=self.width)
        return SampleType(source.dtype, (self.height, self.width, source.shape[2]))

    def apply(self, value: Array, tools: Tools) -> Array:
        """Crop."""
        if value.shape[0] < self.height or value.shape[1] < self.width:
            raise DataError(
                f"the image is {value.shape[1]} by {value.shape[0]}, "
                f"which is smaller than the crop of {self.width} by {self.height}"
            )
        return pixels.center_crop(value, self.height, self.width)


class Layout(ProcessingStep, frozen=True, tag="layout"):
    """Transpose HWC (height, width, channels), the layout of decoded images, to CHW."""

    to: Literal["CHW"] = "CHW"

    def output_type(self, source: SampleType) -> SampleType:
        """The same sizes with the channels first."""
        require(self, len(source.shape) == 3, source, "an image")
        return SampleType(source.dtype, (source.shape[2], source.shape[0], source.shape[1]))

    def apply(self, value: Array, tools: Tools) -> Array:
        """Transpose."""
        moved: Array = value.transpose(2, 0, 1)
        return moved


def _resized(step: ProcessingStep, source: SampleType, method: str) -> DType:
    require(step, source != BYTES and len(source.shape) == 3, source, "an image")
    if method.startswith("pillow-"):
        require(step, source.dtype is DType.UINT8, source, f"uint8, which {method} is defined for")
    return DType.FLOAT32 if method in _FLOATS else source.dtype
