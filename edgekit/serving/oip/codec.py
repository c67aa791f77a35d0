"""Open Inference Protocol v2 with the binary tensor extension: bytes to values and back, for servers and clients.

A body is JSON, followed by the bytes of each binary tensor in order, little-endian and row-major. The HTTP header
``Inference-Header-Content-Length`` (`HEADER`) is the length of the JSON in bytes. A wrong length, shape or type raises
DataError and no other error.
"""

# No `from __future__ import annotations`: msgspec would compile each annotation, in every start of a process.

import functools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from edgekit.errors import DataError
from edgekit.serving.oip.message import (
    BINARY_TYPE,
    CACHED,
    HEADER,
    JSON_TYPE,
    MAX_RANK,
    AnsweredTensor,
    Encoded,
    Tensor,
    arrays,
    decode,
    encode,
    needed,
    sized,
    split,
)
from edgekit.serving.oip.tensor_data import NAMES, from_binary
from edgekit.tensors import Array, DType, TensorSpec

__all__ = [
    "BINARY_TYPE",
    "HEADER",
    "JSON_TYPE",
    "MAX_RANK",
    "Encoded",
    "InferRequest",
    "InferResponse",
    "check_output_parameters",
    "encode_request",
    "encode_response",
    "error_document",
    "header_length",
    "json_elements",
    "parse_raw",
    "parse_request",
    "parse_response",
    "wanted_outputs",
    "wants_ready_only",
]

_OUTPUT_PARAMETERS = ("binary_data", "content_type")  # the second is a hint of MLServer's clients
_SHORT = 1024  # bytes of a JSON header that is cached


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


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] | None = None


class _Request(msgspec.Struct):
    inputs: list[Tensor]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[_Output] | None = None


class _Response(msgspec.Struct):
    """Only the outputs must have the protocol's form: nobody needs the other members."""

    outputs: list[AnsweredTensor]
    model_name: Any = None
    model_version: Any = None
    parameters: Any = None


class _IndexRequest(msgspec.Struct):
    ready: bool | None = False


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
    document, rest = split(body, length)
    layout = _layout(document) if length is None or length > _SHORT else _cached_layout(document)
    return InferRequest(
        arrays(layout.tensors, rest), layout.id, layout.parameters, layout.outputs, layout.binary_outputs
    )


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
    return encode(head, "outputs", response.outputs, wanted)


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
    inputs: Mapping[str, Array],
    *,
    parameters: Mapping[str, Any] | None = None,
    binary: bool = True,
    request_id: str = "",
) -> Encoded:
    """Encode a client's request for all outputs, in binary or JSON; without an id where `request_id` is empty.

    Raises:
        DataError: an input has no JSON form and `binary` is False.
    """
    given = {**(parameters or {}), **({"binary_data_output": True} if binary else {})}
    head = {"id": request_id, "parameters": given} if request_id else {"parameters": given}
    return encode(head, "inputs", inputs, dict.fromkeys(inputs, binary))


def parse_response(body: bytes, length: int | None = None, *, wanted: Collection[str] | None = None) -> InferResponse:
    """Parse a server's answer. Members that servers leave out, send as null or in another form are empty.

    Args:
        body: The whole HTTP body.
        length: Length of the JSON at its start in bytes; None where the whole body is JSON.
        wanted: Outputs that somebody needs; others are dropped unread. None for all outputs of a known datatype.

    Raises:
        DataError: the answer does not follow the protocol.
    """
    document, rest = split(body, length)
    response = decode(_response_decoder, document, "response")
    outputs = needed(response.outputs, rest, wanted)
    parameters = response.parameters if isinstance(response.parameters, dict) else {}
    return InferResponse(_text(response.model_name), _text(response.model_version), outputs, parameters)


def _text(value: object) -> str:
    """Some servers send a version as a number."""
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def wants_ready_only(body: bytes) -> bool:
    """True where a request for the repository index (a JSON object, or an empty body) asks for ready models only.

    Raises:
        DataError: the body is not such an object.
    """
    return decode(_index_decoder, body, "request").ready or False if body else False


def error_document(message: str) -> bytes:
    """The body of every HTTP answer with an error status."""
    return msgspec.json.encode({"error": message})


# --- the JSON of requests


def _flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise DataError(f"parameter {name} is {value!r}, expected true or false")
    return value


def check_output_parameters(name: str, parameters: Iterable[str]) -> None:
    """Check that a requested output has no parameter that would change the answer and is not served.

    Raises:
        DataError: it has one, for example ``classification`` or ``shared_memory_region``.
    """
    unknown = [one for one in parameters if one not in _OUTPUT_PARAMETERS]
    if unknown:
        raise DataError(f"output {name!r} has the parameter {unknown[0]!r}, which is not served here; leave it out")


class _Layout(NamedTuple):
    """The checked content of a request's JSON; `tensors` as `sized` returns them."""

    tensors: Sequence[tuple[Tensor, int | None]]
    id: str | None
    parameters: Mapping[str, Any]
    outputs: Mapping[str, bool]
    binary_outputs: bool


def _layout(document: bytes) -> _Layout:
    request = decode(_request_decoder, document, "request")
    given = request.parameters or {}
    all_binary = _flag(given, "binary_data_output", False)
    outputs: dict[str, bool] = {}
    for output in request.outputs or ():
        if output.name in outputs:
            raise DataError(f"output {output.name!r} is requested twice")
        check_output_parameters(output.name, output.parameters or {})
        outputs[output.name] = _flag(output.parameters or {}, "binary_data", all_binary)
    tensors, parameters = sized(request.inputs), MappingProxyType(given)
    return _Layout(tensors, request.id, parameters, MappingProxyType(outputs), all_binary)


# Equal bytes have an equal layout, and no caller can change one. Errors are not cached.
_cached_layout = functools.lru_cache(maxsize=CACHED)(_layout)
