"""Open Inference Protocol v2 with the binary tensor extension: bytes to values and back, for servers and clients.

A body is JSON, followed by the bytes of each binary tensor in order, little-endian and row-major. The HTTP header
``Inference-Header-Content-Length`` (`HEADER`) is the length of the JSON in bytes. A wrong length, shape or type raises
DataError and no other error.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import msgspec

from edgekit.errors import DataError
from edgekit.serving.oip.tensor_data import DATATYPES, NAMES, datatype_of, from_binary, from_json, to_binary, to_json
from edgekit.tensors import Array, DType, TensorSpec

HEADER = "Inference-Header-Content-Length"
JSON_TYPE, BINARY_TYPE = "application/json", "application/octet-stream"
MAX_RANK = 16
_CACHED, _SHORT = 64, 1024  # number and bytes of cached JSON headers: most clients send the same one each time


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


class InferRequest(msgspec.Struct, frozen=True):
    """An inference request.

    Attributes:
        inputs: Arrays by name, with the dtypes and shapes that the client stated.
        id: The client's id of the request, which the answer repeats; None where there is none.
        parameters: The request's parameters, unchecked. Do not change them.
        outputs: Wanted outputs by name, True for binary; empty for all outputs in the form of `binary_outputs`.
        binary_outputs: True where outputs are binary unless the request says otherwise.
    """

    inputs: dict[str, Array]
    id: str | None = None
    parameters: Mapping[str, Any] = {}
    outputs: Mapping[str, bool] = {}
    binary_outputs: bool = False


class InferResponse(msgspec.Struct, frozen=True):
    """The answer to an inference request."""

    model: str
    version: str
    outputs: dict[str, Array]
    parameters: dict[str, Any] = {}


class _Tensor(msgspec.Struct):
    name: str
    shape: list[Annotated[int, msgspec.Meta(ge=0)]]
    datatype: str
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    parameters: dict[str, Any] = {}


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class _Request(msgspec.Struct):
    inputs: list[_Tensor]
    id: str | None = None
    parameters: dict[str, Any] = {}
    outputs: list[_Output] = []


class _Response(msgspec.Struct):
    outputs: list[_Tensor]
    model_name: str = ""
    model_version: str = ""
    id: str | None = None
    parameters: dict[str, Any] = {}


class _IndexRequest(msgspec.Struct):
    ready: bool = False


_index_decoder = msgspec.json.Decoder(_IndexRequest)
_request_decoder = msgspec.json.Decoder(_Request)
_response_decoder = msgspec.json.Decoder(_Response)


def header_length(value: str | None) -> int | None:
    """Parse the value of `HEADER`; None where the header is absent, 0 for the raw form (`parse_raw`).

    Raises:
        DataError: the value is no length.
    """
    if value is None:
        return None
    if not (value.isascii() and value.isdigit()) or len(value) > 18:
        raise DataError(f"{HEADER} is {value[:40]!r}, expected the length of the JSON in bytes")
    return int(value)


def parse_request(body: bytes, length: int | None = None) -> InferRequest:
    """Parse an infer request.

    Args:
        body: The whole HTTP body.
        length: Length of the JSON at its start in bytes; None where the whole body is JSON.

    Raises:
        DataError: the request does not follow the protocol.
    """
    document, rest = _split(body, length)
    layout = _layout(document) if length is None or length > _SHORT else _cached_layout(document)
    arrays = _arrays(layout.tensors, rest)
    return InferRequest(arrays, layout.id, layout.parameters, layout.outputs, layout.binary_outputs)


def parse_raw(body: bytes, inputs: Sequence[TensorSpec]) -> InferRequest:
    """Parse a request in the raw form: the body is the bytes of one tensor. The answer is binary.

    The batch is 1. The length of one further free axis follows from the number of bytes. For BYTES, the body is the
    only element.

    Args:
        body: The whole HTTP body.
        inputs: The model's inputs.

    Raises:
        DataError: the model has more or less than one input, or more free axes, or the bytes do not fit it.
    """
    if len(inputs) != 1:
        raise DataError(f"the raw form is for models with one input, this model has {len(inputs)}")
    spec = inputs[0]
    shape = [1 if size is None and axis == 0 else size for axis, size in enumerate(spec.shape)]
    fixed = [size for size in shape if size is not None]
    if len(shape) - len(fixed) > 1:
        raise DataError(
            f"{spec.name}: the raw form allows one free axis beside the batch, the shape is {spec.shape_text}"
        )
    if spec.dtype is DType.BYTES:
        body = len(body).to_bytes(4, "little") + body
    row = math.prod(fixed) * (len(body) if spec.dtype is DType.BYTES else spec.dtype.numpy.itemsize)
    known = [len(body) // max(row, 1) if size is None else size for size in shape]
    value = from_binary(spec.name, NAMES[spec.dtype], known, memoryview(body))
    return InferRequest(inputs={spec.name: value}, binary_outputs=True)


def encode_response(response: InferResponse, request: InferRequest) -> Encoded:
    """Encode an answer in the form that `request` asked for. The request's id is repeated where it has one.

    NaN and infinity become null in JSON, which has no form for them; binary tensors carry them unchanged.

    Raises:
        DataError: a requested output does not exist, or has no JSON form (FP16, bytes that are not UTF-8).
    """
    wanted = wanted_outputs(response, request)
    head: dict[str, Any] = {"model_name": response.model, "model_version": response.version}
    if request.id is not None:
        head["id"] = request.id
    head["parameters"] = response.parameters
    return _encode(head, "outputs", response.outputs, wanted)


def wanted_outputs(response: InferResponse, request: InferRequest) -> Mapping[str, bool]:
    """The outputs to send by name, True for binary.

    Raises:
        DataError: a requested output does not exist.
    """
    if not request.outputs:
        return dict.fromkeys(response.outputs, request.binary_outputs)
    unknown = [name for name in request.outputs if name not in response.outputs]
    if unknown:
        raise DataError(f"output {unknown[0]!r} is unknown, expected {', '.join(response.outputs)}")
    return request.outputs


def json_elements(response: InferResponse, request: InferRequest) -> int:
    """The number of elements that the answer sends as JSON; requested outputs that do not exist count 0."""
    if request.binary_outputs and not request.outputs:
        return 0
    wanted = request.outputs or dict.fromkeys(response.outputs, False)
    return sum(
        response.outputs[name].size for name, binary in wanted.items() if not binary and name in response.outputs
    )


def encode_request(
    inputs: Mapping[str, Array], *, parameters: Mapping[str, Any] | None = None, binary: bool = True
) -> Encoded:
    """Encode a client's request for all outputs, in binary or JSON.

    Raises:
        DataError: an input has no JSON form and `binary` is False.
    """
    given = {**(parameters or {}), **({"binary_data_output": True} if binary else {})}
    return _encode({"parameters": given}, "inputs", inputs, dict.fromkeys(inputs, binary))


def parse_response(body: bytes, length: int | None = None) -> InferResponse:
    """Parse a server's answer.

    Raises:
        DataError: the answer does not follow the protocol.
    """
    document, rest = _split(body, length)
    response = _decode(_response_decoder, document, "response")
    outputs = _arrays(_sized(response.outputs), rest)
    return InferResponse(response.model_name, response.model_version, outputs, response.parameters)


def wants_ready_only(body: bytes) -> bool:
    """True where a request for the repository index (a JSON object, or an empty body) asks for ready models only.

    Raises:
        DataError: the body is not such an object.
    """
    return _decode(_index_decoder, body, "request").ready if body else False


def error_document(message: str) -> bytes:
    """The body of every HTTP answer with an error status."""
    return msgspec.json.encode({"error": message})


# --- requests and answers alike


def _split(body: bytes, length: int | None) -> tuple[bytes, memoryview]:
    if length is None:
        return body, memoryview(b"")
    if not 0 < length <= len(body):
        raise DataError(f"{HEADER} is {length}, but the body has {len(body)} bytes")
    return body[:length], memoryview(body)[length:]


def _decode(decoder: msgspec.json.Decoder[Any], document: bytes, what: str) -> Any:
    try:
        return decoder.decode(document)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{what} cannot be parsed: {error}") from error


def _flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise DataError(f"parameter {name} is {value!r}, expected true or false")
    return value


class _Layout(NamedTuple):
    """The checked content of a request's JSON; `tensors` as `_sized` returns them."""

    tensors: Sequence[tuple[_Tensor, int | None]]
    id: str | None
    parameters: Mapping[str, Any]
    outputs: Mapping[str, bool]
    binary_outputs: bool


def _layout(document: bytes) -> _Layout:
    request = _decode(_request_decoder, document, "request")
    all_binary = _flag(request.parameters, "binary_data_output", False)
    outputs: dict[str, bool] = {}
    for output in request.outputs:
        if output.name in outputs:
            raise DataError(f"output {output.name!r} is requested twice")
        outputs[output.name] = _flag(output.parameters, "binary_data", all_binary)
    tensors, parameters = _sized(request.inputs), MappingProxyType(request.parameters)
    return _Layout(tensors, request.id, parameters, MappingProxyType(outputs), all_binary)


# Equal bytes have an equal layout, and no caller can change one. Errors are not cached.
_cached_layout = functools.lru_cache(maxsize=_CACHED)(_layout)


def _sized(tensors: Sequence[_Tensor]) -> Sequence[tuple[_Tensor, int | None]]:
    """Each tensor with the size of its binary data in bytes, None where its elements are in the JSON."""
    sizes: dict[str, tuple[_Tensor, int | None]] = {}
    for tensor in tensors:
        if tensor.name in sizes:
            raise DataError(f"tensor {tensor.name!r} appears twice")
        if tensor.datatype not in DATATYPES:
            raise DataError(f"{tensor.name}: datatype is {tensor.datatype!r}, expected one of {', '.join(DATATYPES)}")
        if len(tensor.shape) > MAX_RANK:
            raise DataError(f"{tensor.name}: {len(tensor.shape)} axes, the limit is {MAX_RANK}")
        sizes[tensor.name] = tensor, _binary_size(tensor)
    return tuple(sizes.values())


def _arrays(tensors: Sequence[tuple[_Tensor, int | None]], rest: memoryview) -> dict[str, Array]:
    """The arrays of tensors; `rest` holds the binary data of one after the other."""
    arrays: dict[str, Array] = {}
    at = 0
    for tensor, size in tensors:
        if size is None:
            assert isinstance(tensor.data, msgspec.Raw)
            arrays[tensor.name] = from_json(tensor.name, tensor.datatype, tensor.shape, tensor.data)
            continue
        if size > len(rest) - at:
            raise DataError(f"{tensor.name}: binary_data_size is {size}, but {len(rest) - at} bytes are left")
        arrays[tensor.name] = from_binary(tensor.name, tensor.datatype, tensor.shape, rest[at : at + size])
        at += size
    if at != len(rest):
        raise DataError(f"{len(rest) - at} bytes follow the last tensor")
    return arrays


def _binary_size(tensor: _Tensor) -> int | None:
    if "binary_data_size" not in tensor.parameters:
        if tensor.data is msgspec.UNSET:
            raise DataError(f"{tensor.name}: has neither data nor binary_data_size")
        return None
    size = tensor.parameters["binary_data_size"]
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise DataError(f"{tensor.name}: binary_data_size is {size!r}, expected a number of bytes")
    if tensor.data is not msgspec.UNSET:
        raise DataError(f"{tensor.name}: has both data and binary_data_size")
    return size


def _encode(head: dict[str, Any], key: str, tensors: Mapping[str, Array], chosen: Mapping[str, bool]) -> Encoded:
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


@functools.lru_cache(maxsize=_CACHED)
def _binary_document(name: str, dtype: Any, shape: tuple[int, ...], size: int) -> msgspec.Raw:
    """The JSON of a tensor whose bytes follow the JSON."""
    document = {"name": name, "datatype": datatype_of(dtype), "shape": shape, "parameters": {"binary_data_size": size}}
    return msgspec.Raw(msgspec.json.encode(document))
