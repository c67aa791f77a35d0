"""The base of steps before the model: each step is data, checks its input type, and processes one sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from edgekit.errors import DataError
from edgekit.tensors import Array, DType

Shape = tuple[int | None, ...]


class SampleType(NamedTuple):
    """Dtype and shape of one sample between two steps; None is a size that depends on the bytes."""

    dtype: DType
    shape: Shape

    @property
    def text(self) -> str:
        """Dtype and shape as text."""
        return f"{self.dtype.value} [{', '.join('any' if size is None else str(size) for size in self.shape)}]"


class Tools(NamedTuple):
    """The image decoder (from an outside library) and the bundle's parsed files, for the steps.

    `decode_image(data, colour, max_pixels, exif)` returns uint8 (H, W, C) or raises DataError.
    """

    decode_image: Callable[[bytes, str, int, bool], Array]
    vocabularies: Mapping[str, Mapping[str, int]]
    anchors: Mapping[str, Array]


BYTES = SampleType(DType.BYTES, ())


class ProcessingStep(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="do"):
    """One step before the model: `output_type` checks the type of its input, and `apply` processes one sample."""

    def output_type(self, source: SampleType) -> SampleType:
        """The type of the output for an input of type `source`.

        Raises:
            DataError: The step does not support this input.
        """
        raise NotImplementedError

    def apply(self, value: Any, tools: Tools) -> Any:
        """Process one sample.

        Raises:
            DataError: The sample cannot be processed.
        """
        raise NotImplementedError

    def files(self) -> dict[str, str]:
        """Names of the bundle's files that the step reads, with their kind: ``vocabulary`` or ``anchors``."""
        return {}

    @property
    def name(self) -> str:
        """The step's name in documents."""
        return str(self.__struct_config__.tag)


def require(step: ProcessingStep, fits: bool, source: SampleType, expected: str) -> None:
    """Raise DataError if a step does not support its input."""
    if not fits:
        raise DataError(f"{step.name}: the input is {source.text}, expected {expected}")


def require_sizes(step: ProcessingStep, **sizes: int) -> None:
    """Raise DataError if a size is not from 1 to 65536; the message names all such sizes."""
    faults = [f"{name} is {size}" for name, size in sizes.items() if not 1 <= size <= 65_536]
    if faults:
        raise DataError(f"{step.name}: {', '.join(faults)}, expected 1 to 65536")
