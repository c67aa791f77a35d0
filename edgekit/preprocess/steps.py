"""What a step before the model is: data that knows what it makes of what, and does it to one sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from edgekit.errors import DataError
from edgekit.tensors import Array, DType

Shape = tuple[int | None, ...]


class Flow(NamedTuple):
    """What passes between two steps: one sample's dtype and shape; None is a size that the bytes decide."""

    dtype: DType
    shape: Shape

    @property
    def text(self) -> str:
        """For people."""
        return f"{self.dtype.value} [{', '.join('any' if size is None else str(size) for size in self.shape)}]"


class Tools(NamedTuple):
    """What steps are given: the image decoder (an outside library's), and the bundle's files as they parsed them.

    `decode_image(data, colour, max_pixels, exif)` gives uint8 (H, W, C) or raises DataError.
    """

    decode_image: Callable[[bytes, str, int, bool], Array]
    vocabularies: Mapping[str, Mapping[str, int]]
    anchors: Mapping[str, Array]


BYTES = Flow(DType.BYTES, ())


class ProcessingStep(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="do"):
    """One step before the model.

    `flow` says what it makes of what, and raises DataError where it cannot; `apply` does it.
    """

    def flow(self, given: Flow) -> Flow:
        """What it makes of `given`.

        Raises:
            DataError: it cannot be done to that.
        """
        raise NotImplementedError

    def apply(self, value: Any, tools: Tools) -> Any:
        """Do it to one sample.

        Raises:
            DataError: the sample is not what can be worked on.
        """
        raise NotImplementedError

    def files(self) -> dict[str, str]:
        """Names of the bundle's files that it reads, with their kind: ``vocabulary`` or ``anchors``."""
        return {}

    @property
    def name(self) -> str:
        """As documents call it."""
        return str(self.__struct_config__.tag)


def need(step: ProcessingStep, fits: bool, given: Flow, expected: str) -> None:
    """Raise DataError where a step does not fit what it is given."""
    if not fits:
        raise DataError(f"{step.name}: is given {given.text}, expected {expected}")


def need_sizes(step: ProcessingStep, **sizes: int) -> None:
    """Raise DataError where a size is not from 1 to 65536; names all that are not."""
    faults = [f"{name} is {size}" for name, size in sizes.items() if not 1 <= size <= 65_536]
    if faults:
        raise DataError(f"{step.name}: {', '.join(faults)}, expected 1 to 65536")
