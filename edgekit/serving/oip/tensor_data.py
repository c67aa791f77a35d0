"""One tensor of the Open Inference Protocol: its elements as bytes or JSON, and back."""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np

from edgekit.errors import DataError
from edgekit.tensors import Array, DType

if TYPE_CHECKING:
    import numpy.typing as npt

DATATYPES = {
    "BOOL": DType.BOOL,
    "UINT8": DType.UINT8,
    "UINT16": DType.UINT16,
    "UINT32": DType.UINT32,
    "UINT64": DType.UINT64,
    "INT8": DType.INT8,
    "INT16": DType.INT16,
    "INT32": DType.INT32,
    "INT64": DType.INT64,
    "FP16": DType.FLOAT16,
    "FP32": DType.FLOAT32,
    "FP64": DType.FLOAT64,
    "BYTES": DType.BYTES,
}
# Bytes of JSON (or eight times the elements) from which on it is read and written in parts, so that other threads run.
LONG_JSON = 2**20
_PART = 2**17  # bytes of JSON in one part
_LITTLE = sys.byteorder == "little"  # the protocol's byte order
# The numpy dtype of a datatype's bytes; None for BYTES, whose elements differ in size. Every byte but 0 is a true BOOL.
_RAW_DTYPES = {name: None if dtype is DType.BYTES else dtype.numpy for name, dtype in DATATYPES.items()}
_RAW_DTYPES["BOOL"] = DType.UINT8.numpy
NAMES = {dtype: dtype.protocol for dtype in DATATYPES.values()}


def datatype_of(dtype: npt.DTypeLike) -> str:
    """The protocol's name of a numpy dtype."""
    return NAMES[DType.of(dtype)]


def from_binary(name: str, datatype: str, shape: Sequence[int], data: memoryview) -> Array:
    """The tensor with the row-major little-endian bytes `data`.

    An element of BOOL is one byte. An element of BYTES is its length in 4 bytes, then its content.

    Raises:
        DataError: `data` does not have the bytes that `shape` of `datatype` needs.
    """
    dtype = _RAW_DTYPES[datatype]
    if dtype is None:
        return shaped(name, shape, _split_bytes(name, math.prod(shape), data))
    needed = math.prod(shape) * dtype.itemsize
    if needed != len(data):
        stated = f"{list(shape)} of {datatype} needs {needed} bytes"
        raise DataError(f"{name}: {stated}, but {len(data)} bytes were sent")
    value = np.frombuffer(data, dtype)
    if datatype == "BOOL":
        return shaped(name, shape, value != 0)
    if not _LITTLE:
        value = value.byteswap()
    # The JSON before the data may have any length, so the data may start at an odd address, which runtimes cannot use.
    return shaped(name, shape, value if value.flags.aligned else value.copy())


def to_binary(value: Array) -> bytes:
    """Row-major little-endian bytes."""
    if value.dtype.hasobject:
        return b"".join(len(item).to_bytes(4, "little") + item for item in value.ravel())
    return (value if value.dtype.isnative is _LITTLE else value.byteswap()).tobytes()


def from_json(name: str, datatype: str, shape: Sequence[int], data: msgspec.Raw) -> Array:
    """The tensor with the elements of the JSON list `data`, which is flat or nested as `shape` is.

    Raises:
        DataError: `data` does not have the elements that `shape` of `datatype` needs, or a number is out of its range.
    """
    dtype = DATATYPES[datatype]
    if dtype is DType.FLOAT16:
        raise DataError(f"{name}: FP16 has no JSON form, send it with binary_data_size")
    items: Any = _decode_in_parts(dtype, data)
    if items is None:
        items = _json_items(name, dtype, shape, data)
    if len(items) != math.prod(shape):
        raise DataError(f"{name}: data has {len(items)} elements, its shape {list(shape)} has {math.prod(shape)}")
    if dtype is DType.BYTES:
        return bytes_tensor(name, shape, [item.encode() for item in items])
    try:
        value = items if isinstance(items, np.ndarray) else _numbers(dtype, items)
    except OverflowError as error:
        raise DataError(f"{name}: a number is outside {datatype}") from error
    if dtype is DType.FLOAT32 and np.count_nonzero(np.isfinite(value)) < value.size:
        raise DataError(f"{name}: a number is outside {datatype}")
    return shaped(name, shape, value)


def to_json(name: str, value: Array) -> list[Any] | msgspec.Raw:
    """The elements in row-major order, as a list, or as JSON text where they are many.

    Raises:
        DataError: the elements have no JSON form (FP16, bytes that are not UTF-8).
    """
    if value.dtype == np.float16:
        raise DataError(f"{name}: FP16 has no JSON form, ask for it with binary_data")
    if value.dtype != object:
        flat, step = value.ravel(), _PART // 8
        if flat.size <= LONG_JSON // 8:
            items: list[Any] = flat.tolist()
            return items
        parts = [msgspec.json.encode(flat[at : at + step].tolist())[1:-1] for at in range(0, flat.size, step)]
        return msgspec.Raw(b"[" + b",".join(parts) + b"]")
    try:
        return [item.decode() for item in value.ravel()]
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: has bytes that are not UTF-8, ask for it with binary_data") from error


# JSON lists are decoded directly into checked elements: 1.5 is no INT32, 300 is no UINT8, 1 is no BOOL.


def _element(dtype: DType) -> Any:
    if dtype is DType.BOOL:
        return bool
    if dtype is DType.BYTES:
        return str
    if dtype in (DType.FLOAT32, DType.FLOAT64):
        return float
    limits = np.iinfo(dtype.numpy)
    if dtype is DType.UINT64:
        return Annotated[int, msgspec.Meta(ge=0)]
    return Annotated[int, msgspec.Meta(ge=int(limits.min), le=int(limits.max))]


_LISTS: dict[DType, Any] = {dtype: list[_element(dtype)] for dtype in DType if dtype is not DType.FLOAT16}  # type: ignore[misc]
_DECODERS: dict[DType, msgspec.json.Decoder[Any]] = {
    dtype: msgspec.json.Decoder(kind) for dtype, kind in _LISTS.items()
}


def _decode_in_parts(dtype: DType, data: msgspec.Raw) -> Array | None:
    """Decode a long flat list of numbers; None where the list is short, nested, text or wrong: then read it at once."""
    size = len(memoryview(data))
    if size <= LONG_JSON or dtype is DType.BYTES:
        return None
    text = bytes(data).strip()
    if not (text.startswith(b"[") and text.endswith(b"]")) or text.find(b"[", 1) >= 0:
        return None
    parts, start, end = [], 1, len(text) - 1
    while start <= end:
        comma = text.find(b",", start + _PART, end)
        stop = end if comma < 0 else comma
        if not text[start:stop].strip():
            return None
        try:
            items = _DECODERS[dtype].decode(b"[" + text[start:stop] + b"]")
            parts.append(_numbers(dtype, items))
        except (msgspec.MsgspecError, UnicodeDecodeError, OverflowError):
            return None
        start = stop + 1
    return np.concatenate(parts)


def _numbers(dtype: DType, items: list[Any]) -> Array:
    """An array of decoded elements; a number that is too large for FP32 becomes infinite.

    Raises:
        OverflowError: a number is too large for an integer.
    """
    if (
        dtype is DType.FLOAT32
    ):  # numpy would warn of infinity; to suppress that costs as much as decoding a small tensor
        return np.frombuffer(array("f", items), np.float32)
    return np.array(items, dtype=dtype.numpy)


def _json_items(name: str, dtype: DType, shape: Sequence[int], data: msgspec.Raw) -> list[Any]:
    try:
        items: list[Any] = _DECODERS[dtype].decode(data)
        return items
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        nested = _decode_any(name, data)
        if not (isinstance(nested, list) and nested and isinstance(nested[0], list)):
            raise _not_of(name, dtype, error) from error
    try:
        items = msgspec.convert(_flatten(name, shape, nested), _LISTS[dtype])
        return items
    except msgspec.MsgspecError as error:
        raise _not_of(name, dtype, error) from error


def _not_of(name: str, dtype: DType, error: Exception) -> DataError:
    """The error of elements of another kind."""
    hint = "; null often stands for NaN, which has no form in JSON: send binary data" if "`null`" in str(error) else ""
    return DataError(f"{name}: data is not {NAMES[dtype]}: {error}{hint}")


def _decode_any(name: str, data: msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{name}: data cannot be parsed: {error}") from error


def _flatten(name: str, shape: Sequence[int], data: Any) -> list[Any]:
    items = [data]
    for size in shape:
        if not all(isinstance(item, list) and len(item) == size for item in items):
            raise DataError(f"{name}: data is neither flat nor nested as its shape {list(shape)}")
        items = [element for item in items for element in item]
    return items


def _split_bytes(name: str, count: int, data: memoryview) -> Array:
    items: list[bytes] = []
    at = 0
    while at < len(data) and len(items) <= count:
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        if at + 4 > len(data) or end > len(data):
            raise DataError(f"{name}: element {len(items)} of BYTES runs past the end of its data")
        items.append(bytes(data[at + 4 : end]))
        at = end
    if len(items) != count:
        actual = f"more than {count}" if len(items) > count else len(items)
        raise DataError(f"{name}: has {actual} elements of BYTES, but its shape has {count}")
    return _objects(items)


def _objects(items: Sequence[bytes]) -> Array:
    value = np.empty(len(items), dtype=object)
    value[:] = items
    return value


def bytes_tensor(name: str, shape: Sequence[int], items: Sequence[bytes]) -> Array:
    """The tensor of BYTES with these elements; `shape` must have the same number."""
    return shaped(name, shape, _objects(items))


def shaped(name: str, shape: Sequence[int], flat: Array) -> Array:
    """`flat` reshaped to `shape`.

    Raises:
        DataError: no array can have that shape, or not with these elements.
    """
    try:
        return flat.reshape(shape)
    except (ValueError, OverflowError) as error:  # the product of the sizes is right, but numpy cannot hold the shape
        raise DataError(f"{name}: an array cannot have shape {list(shape)}: {error}") from error
