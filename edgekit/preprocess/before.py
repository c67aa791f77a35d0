"""Steps before the model for any numbers, and the union of all steps."""

# No `from __future__ import annotations`: msgspec would compile each annotation, in every start of a process.

import math
from typing import Literal

import numpy as np

from edgekit.errors import DataError
from edgekit.preprocess.image_steps import CenterCrop, DecodeImage, Layout, Resize, ResizeShorter
from edgekit.preprocess.sound_steps import Cepstra, DecodeWav, FitLength, LogMel
from edgekit.preprocess.steps import BYTES, ProcessingStep, SampleType, Tools, require
from edgekit.preprocess.text_steps import WordPieces
from edgekit.tensors import Array, DType

_DTYPES = Literal["uint8", "int8", "int16", "int32", "int64", "float16", "float32"]


class Scale(ProcessingStep, frozen=True, tag="scale"):
    """value * by + offset, in float32."""

    by: float
    offset: float = 0.0

    def output_type(self, source: SampleType) -> SampleType:
        """float32 of the same shape."""
        require(self, source != BYTES, source, "numbers")
        return SampleType(DType.FLOAT32, source.shape)

    def apply(self, value: Array, tools: Tools) -> Array:
        """Scale."""
        scaled: Array = value.astype(np.float32) * np.float32(self.by) + np.float32(self.offset)
        return scaled


class Normalize(ProcessingStep, frozen=True, tag="normalize"):
    """(value - mean) / std of each channel (the last axis), in float32; a single number is for all channels."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def output_type(self, source: SampleType) -> SampleType:
        """float32 of the same shape."""
        require(self, source != BYTES and len(source.shape) > 0, source, "numbers")
        for field, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, source.shape[-1]):
                raise DataError(f"{self.name}: {field} has {len(values)} numbers for {source.shape[-1]} channels")
        if not all(value > 0 for value in self.std):
            raise DataError(f"{self.name}: std is {list(self.std)}, expected numbers above 0")
        return SampleType(DType.FLOAT32, source.shape)

    def apply(self, value: Array, tools: Tools) -> Array:
        """Normalize."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        normal: Array = (value.astype(np.float32) - mean) / std
        return normal


class ExpandAxis(ProcessingStep, frozen=True, tag="expand-axis"):
    """Insert an axis of size 1 at position `axis`; -1 is the end."""

    axis: int = -1

    def output_type(self, source: SampleType) -> SampleType:
        """One more axis of size 1."""
        require(self, source != BYTES, source, "numbers")
        rank = len(source.shape)
        if not -rank - 1 <= self.axis <= rank:
            raise DataError(f"{self.name}: axis is {self.axis}, expected {-rank - 1} to {rank}")
        axis_index = self.axis if self.axis >= 0 else rank + 1 + self.axis
        return SampleType(source.dtype, (*source.shape[:axis_index], 1, *source.shape[axis_index:]))

    def apply(self, value: Array, tools: Tools) -> Array:
        """Add the axis."""
        return np.expand_dims(value, self.axis)


class Flatten(ProcessingStep, frozen=True, tag="flatten"):
    """All axes of a sample as one, in row-major order."""

    def output_type(self, source: SampleType) -> SampleType:
        """One axis; its size is known if all sizes were."""
        require(self, source != BYTES, source, "numbers")
        known = [size for size in source.shape if size is not None]
        return SampleType(source.dtype, (math.prod(known) if len(known) == len(source.shape) else None,))

    def apply(self, value: Array, tools: Tools) -> Array:
        """Flatten."""
        return value.reshape(-1)


class Cast(ProcessingStep, frozen=True, tag="cast"):
    """Cast to another dtype; to integers by rounding to the nearest (half to even) and clipping to their range."""

    dtype: _DTYPES

    def output_type(self, source: SampleType) -> SampleType:
        """The same shape with the new dtype."""
        require(self, source != BYTES, source, "numbers")
        return SampleType(DType(self.dtype), source.shape)

    def apply(self, value: Array, tools: Tools) -> Array:
        """Cast."""
        dtype = np.dtype(self.dtype)
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            if value.dtype.kind == "f":
                value = np.rint(value.astype(np.float64))
            value = np.clip(value, limits.min, limits.max)
        return value.astype(dtype)


BeforeStep = (
    DecodeImage
    | Resize
    | ResizeShorter
    | CenterCrop
    | Scale
    | Normalize
    | Layout
    | ExpandAxis
    | Flatten
    | Cast
    | DecodeWav
    | FitLength
    | LogMel
    | Cepstra
    | WordPieces
)
