"""DType and TensorSpec: dtype, name and shape of a tensor; and whether values hold NaN."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edgekit.errors import DataError

if TYPE_CHECKING:
    import numpy.typing as npt

Array = np.ndarray[tuple[Any, ...], np.dtype[Any]]  # as numpy.typing.NDArray[Any], which every start would import


class DType(str, enum.Enum):
    """Element types with numpy's names; ``BYTES`` are byte strings of variable length (numpy object)."""

    BOOL = "bool"
    UINT8 = "uint8"
    UINT16 = "uint16"
    UINT32 = "uint32"
    UINT64 = "uint64"
    INT8 = "int8"
    INT16 = "int16"
    INT32 = "int32"
    INT64 = "int64"
    FLOAT16 = "float16"
    FLOAT32 = "float32"
    FLOAT64 = "float64"
    BYTES = "bytes"

    @property
    def numpy(self) -> np.dtype[Any]:
        """The numpy dtype of this element type."""
        return _NUMPY[self]

    @property
    def protocol(self) -> str:
        """The name of this element type in the Open Inference Protocol, for example ``FP32``."""
        return "BYTES" if self is DType.BYTES else self.value.replace("float", "FP").upper()

    @classmethod
    def of(cls, dtype: npt.DTypeLike) -> DType:
        """The DType of a numpy dtype.

        Raises:
            DataError: There is no DType for it.
        """
        numpy_dtype = np.dtype(dtype)
        known = _BY_NUMPY.get(numpy_dtype)
        if known is not None:
            return known
        if numpy_dtype.kind in "OSU":
            return cls.BYTES
        try:
            return cls(numpy_dtype.name)
        except ValueError:
            raise DataError(f"dtype {numpy_dtype.name} cannot be used in a tensor") from None


# tables, because these are looked up several times per request
_NUMPY = {dtype: np.dtype(object) if dtype is DType.BYTES else np.dtype(dtype.value) for dtype in DType}
_BY_NUMPY = {dtype: name for name, dtype in _NUMPY.items()}


class TensorSpec(msgspec.Struct, frozen=True):
    """One input or output.

    Attributes:
        name: The name for clients and reports.
        dtype: The element type.
        shape: Sizes in order; None is a free axis (the batch).
    """

    name: str
    dtype: DType
    shape: tuple[int | None, ...]

    @property
    def batch_axis(self) -> int | None:
        """The index of the free batch in the shape; None for a tensor without one."""
        return self.shape.index(None) if None in self.shape else None

    def fits(self, value: Array) -> bool:
        """True for an array of exactly this numpy dtype and shape; `faults` also accepts other forms of BYTES."""
        return bool(value.dtype == _NUMPY[self.dtype]) and self._holds(value.shape)

    def faults(self, value: Array) -> list[str]:
        """Every reason why `value` does not fit, with found and expected values; empty if it fits."""
        if self.fits(value):
            return []
        faults = []
        found = DType.of(value.dtype)
        if found is not self.dtype:
            protocol = f"{found.protocol}, not {self.dtype.protocol}"
            faults.append(f"{self.name}: dtype is {value.dtype}, expected {self.dtype.value} ({protocol})")
        if not self._holds(value.shape):
            faults.append(f"{self.name}: shape is {list(value.shape)}, expected {self.shape_text}")
        return faults

    def _holds(self, shape: tuple[int, ...]) -> bool:
        if len(shape) != len(self.shape):
            return False
        for want, have in zip(self.shape, shape):  # noqa: B905, SIM110 - twice as fast as all(), and runs in each request
            if want != have and want is not None:
                return False
        return True

    @property
    def shape_text(self) -> str:
        """The shape as text; a free axis is ``any``."""
        return "[" + ", ".join("any" if size is None else str(size) for size in self.shape) + "]"


def usable(outputs: Mapping[str, Array]) -> bool:
    """False when an output holds NaN."""
    for value in outputs.values():  # noqa: SIM110 - runs per request: the loop is twice as fast as all(), and so are bytes
        if value.dtype.kind == "f" and 1 in np.isnan(value).tobytes():
            return False
    return True


def finite(inputs: Mapping[str, Array]) -> bool:
    """False when an input holds NaN or infinity; then NaN in the answer is no fault of the model."""
    return all(value.dtype.kind != "f" or bool(np.isfinite(value).all()) for value in inputs.values())
