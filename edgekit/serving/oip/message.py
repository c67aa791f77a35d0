"""The form of requests and answers of the Open Inference Protocol: JSON, followed by the bytes of binary tensors."""

# No `from __future__ import annotations`: msgspec would compile each annotation, in every start of a process.

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec

from edgekit.errors import DataError
from edgekit.serving.oip.tensor_data import DATATYPES, datatype_of, from_binary, from_json, to_binary, to_json
from edgekit.tensors import Array

HEADER = "Inference-Header-Content-Length"
JSON_TYPE, BINARY_TYPE = "application/json", "application/octet-stream"
MAX_RANK = 16
CACHED = 64  # number of cached JSON headers: most clients send the same one each time


Shape = list[Annotated[int, msgspec.Meta(ge=0)]]
_shape_decoder = msgspec.json.Decoder(Shape)


class Encoded(NamedTuple):
    """A message as bytes. `header_length` is the length of the JSON in bytes, None where the whole body is JSON."""

    body: bytes
    header_length: int | None

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers that go with the body."""
        if self.header_length is None:
            return {"Content-Type": JSON_TYPE}
        return {"Content-Type": BINARY_TYPE, HEADER: str(self.header_length)}


class Tensor(msgspec.Struct):
    """One tensor of a request, as its JSON states it. Some clients send null for members that they leave out."""

    name: str
    shape: Shape
    datatype: str
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    parameters: dict[str, Any] | None = None


class AnsweredTensor(msgspec.Struct):
    """One tensor of an answer. Only its name and its size are read before it is known whether anybody needs it."""

    name: Any = None
    shape: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    datatype: Any = None
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    parameters: Any = None


def split(body: bytes, length: int | None) -> tuple[bytes, memoryview]:
    """The JSON of a body, and the bytes after it. Raises DataError for a wrong length."""
    if length is None:
        return body, memoryview(b"")
    if not 0 < length <= len(body):
        raise DataError(f"{HEADER} is {length}, but the body has {len(body)} bytes")
    return body[:length], memoryview(body)[length:]


def decode(decoder: msgspec.json.Decoder[Any], document: bytes | msgspec.Raw, what: str) -> Any:
    """The decoded `document`. Raises DataError, which names `what`."""
    try:
        return decoder.decode(document)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{what} cannot be parsed: {error}") from error


def sized(tensors: Sequence[Tensor]) -> Sequence[tuple[Tensor, int | None]]:
    """Each tensor with the size of its binary data in bytes, None where its elements are in the JSON."""
    sizes: dict[str, tuple[Tensor, int | None]] = {}
    for tensor in tensors:
        if tensor.name in sizes:
            raise DataError(f"tensor {tensor.name!r} appears twice")
        _check_form(tensor)
        sizes[tensor.name] = tensor, binary_size(tensor)
    return tuple(sizes.values())


def needed(tensors: Sequence[AnsweredTensor], rest: memoryview, wanted: Collection[str] | None) -> dict[str, Array]:
    """The arrays of an answer that somebody needs; `rest` holds the binary data of all tensors, one after the other.

    Args:
        tensors: All tensors of the answer.
        rest: Binary data.
        wanted: Names of the needed outputs; None for every output of a datatype that can be read.

    Raises:
        DataError: a needed tensor is malformed, or sizes do not add up. Other tensors may have any datatype and shape.
    """
    kept: list[tuple[Tensor, int | None]] = []
    parts: list[memoryview] = []
    at = 0
    for tensor in tensors:
        is_needed = isinstance(tensor.name, str) and (
            _is_known(tensor.datatype) if wanted is None else tensor.name in wanted
        )
        size = binary_size(tensor) if is_needed or _states_size(tensor) else None
        if size is not None and size > len(rest) - at:
            raise DataError(f"{tensor.name}: binary_data_size is {size}, but {len(rest) - at} bytes are left")
        if is_needed:
            kept.append((_as_stated(tensor), size))
            parts.append(rest[at : at + (size or 0)])
        at += size or 0
    if at != len(rest):
        raise DataError(f"{len(rest) - at} bytes follow the last tensor")
    found: dict[str, Array] = {}
    for (tensor_, size), part in zip(kept, parts, strict=True):
        if tensor_.name in found:
            raise DataError(f"tensor {tensor_.name!r} appears twice")
        found |= arrays([(tensor_, size)], part)
    return found


def _is_known(datatype: Any) -> bool:
    return isinstance(datatype, str) and datatype in DATATYPES


def _states_size(tensor: AnsweredTensor) -> bool:
    return isinstance(tensor.parameters, dict) and tensor.parameters.get("binary_data_size") is not None


def _as_stated(tensor: AnsweredTensor) -> Tensor:
    shape = b"" if isinstance(tensor.shape, msgspec.UnsetType) else tensor.shape
    stated = Tensor(
        tensor.name,
        decode(_shape_decoder, shape, f"the shape of {tensor.name}"),
        tensor.datatype,
        tensor.data,
    )
    _check_form(stated)
    return stated


def _check_form(tensor: Tensor) -> None:
    if not _is_known(tensor.datatype):
        raise DataError(f"{tensor.name}: datatype is {tensor.datatype!r}, expected one of {', '.join(DATATYPES)}")
    if len(tensor.shape) > MAX_RANK:
        raise DataError(f"{tensor.name}: {len(tensor.shape)} axes, the limit is {MAX_RANK}")


def arrays(tensors: Sequence[tuple[Tensor, int | None]], rest: memoryview) -> dict[str, Array]:
    """The arrays of tensors; `rest` holds the binary data of one after the other."""
    found: dict[str, Array] = {}
    at = 0
    for tensor, size in tensors:
        if size is None:
            assert isinstance(tensor.data, msgspec.Raw)
            found[tensor.name] = from_json(tensor.name, tensor.datatype, tensor.shape, tensor.data)
            continue
        if size > len(rest) - at:
            raise DataError(f"{tensor.name}: binary_data_size is {size}, but {len(rest) - at} bytes are left")
        found[tensor.name] = from_binary(tensor.name, tensor.datatype, tensor.shape, rest[at : at + size])
        at += size
    if at != len(rest):
        raise DataError(f"{len(rest) - at} bytes follow the last tensor")
    return found


def binary_size(tensor: Tensor | AnsweredTensor) -> int | None:
    """Size of a tensor's binary data in bytes; None where its elements are in the JSON. Raises DataError."""
    is_absent = isinstance(tensor.data, msgspec.UnsetType) or bytes(tensor.data) == b"null"
    parameters = tensor.parameters if isinstance(tensor.parameters, dict) else {}
    refuse_shared_memory(tensor.name, parameters)
    size = parameters.get("binary_data_size")
    if size is None:
        if is_absent:
            raise DataError(f"{tensor.name}: has neither data nor binary_data_size")
        return None
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise DataError(f"{tensor.name}: binary_data_size is {size!r}, expected a number of bytes")
    if not is_absent:
        raise DataError(f"{tensor.name}: has both data and binary_data_size")
    return size


def refuse_shared_memory(name: str, parameters: Collection[str]) -> None:
    """Raises DataError where the parameters of an input name a region of shared memory."""
    if "shared_memory_region" in parameters:
        raise DataError(f"{name}: shared memory is not served here; send the data in the request")


def encode(head: dict[str, Any], key: str, tensors: Mapping[str, Array], chosen: Mapping[str, bool]) -> Encoded:
    """A message with the members of `head`, and under `key` the `chosen` tensors, True for binary."""
    documents: list[Any] = []
    parts: list[bytes] = []
    for name, binary in chosen.items():
        value = tensors[name]
        if binary:
            parts.append(to_binary(value))
            documents.append(_binary_document(name, value.dtype, value.shape, len(parts[-1])))
        else:
            kind, data = datatype_of(value.dtype), to_json(name, value)
            documents.append({"name": name, "datatype": kind, "shape": value.shape, "data": data})
    head[key] = documents
    text = msgspec.json.encode(head)
    return Encoded(b"".join([text, *parts]), len(text)) if parts else Encoded(text, None)


@functools.lru_cache(maxsize=CACHED)
def _binary_document(name: str, dtype: Any, shape: tuple[int, ...], size: int) -> msgspec.Raw:
    """The JSON of a tensor whose bytes follow the JSON."""
    document = {"name": name, "datatype": datatype_of(dtype), "shape": shape, "parameters": {"binary_data_size": size}}
    return msgspec.Raw(msgspec.json.encode(document))
