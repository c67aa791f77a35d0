"""Messages of the gRPC service to values and back. A wrong length, shape or type raises DataError."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from edgekit.errors import DataError
from edgekit.serving.grpc.messages import message
from edgekit.serving.oip.codec import MAX_RANK, InferRequest, InferResponse, check_output_parameters, wanted_outputs
from edgekit.serving.oip.message import refuse_shared_memory
from edgekit.serving.oip.tensor_data import DATATYPES, bytes_tensor, datatype_of, from_binary, shaped, to_binary
from edgekit.tensors import Array, DType

# The field of InferTensorContents that holds the elements; FP16 has none.
_CONTENTS = {
    DType.BOOL: "bool_contents",
    **dict.fromkeys((DType.INT8, DType.INT16, DType.INT32), "int_contents"),
    DType.INT64: "int64_contents",
    **dict.fromkeys((DType.UINT8, DType.UINT16, DType.UINT32), "uint_contents"),
    DType.UINT64: "uint64_contents",
    DType.FLOAT32: "fp32_contents",
    DType.FLOAT64: "fp64_contents",
    DType.BYTES: "bytes_contents",
}


def parse(name: str, data: bytes) -> Any:
    """Parse `data` as the message called `name`.

    Raises:
        DataError: `data` is no such message.
    """
    try:
        return message(name).FromString(data)
    except DecodeError as error:
        raise DataError(f"{name} cannot be parsed: {error}") from error


def infer_request(received: Any) -> InferRequest:
    """The request in a ModelInferRequest, with raw or typed contents.

    Raises:
        DataError: the message does not follow the protocol.
    """
    raw = received.raw_input_contents
    if raw and len(raw) != len(received.inputs):
        raise DataError(f"raw_input_contents has {len(raw)} tensors, inputs has {len(received.inputs)}")
    inputs: dict[str, Array] = {}
    for i, tensor in enumerate(received.inputs):
        if tensor.name in inputs:
            raise DataError(f"tensor {tensor.name!r} appears twice")
        refuse_shared_memory(tensor.name, tensor.parameters)
        inputs[tensor.name] = _tensor(tensor, raw[i] if raw else None)
    outputs: dict[str, bool] = {}
    for output in received.outputs:
        if output.name in outputs:
            raise DataError(f"output {output.name!r} is requested twice")
        check_output_parameters(output.name, output.parameters)
        outputs[output.name] = True
    parameters = {name: _value(parameter) for name, parameter in received.parameters.items()}
    return InferRequest(inputs, received.id or None, parameters, outputs, binary_outputs=True)


def infer_response(response: InferResponse, request: InferRequest, received: Any) -> Any:
    """Make the ModelInferResponse.

    It has typed contents where the received message had them and no output is FP16, else raw contents.

    Args:
        response: The answer.
        request: The request, as `infer_request` returned it.
        received: The received ModelInferRequest.

    Raises:
        DataError: a requested output does not exist.
    """
    chosen = {name: response.outputs[name] for name in wanted_outputs(response, request)}
    answer = message("ModelInferResponse")(
        model_name=response.model,
        model_version=response.version,
        id=request.id or "",
        parameters=_parameters(response.parameters),
    )
    halves = any(value.dtype == np.float16 for value in chosen.values())
    typed = bool(received.inputs) and not received.raw_input_contents and not halves
    for name, value in chosen.items():
        tensor = answer.outputs.add(name=name, datatype=datatype_of(value.dtype), shape=value.shape)
        if typed:
            field = _CONTENTS[DType.of(value.dtype)]
            getattr(tensor.contents, field).extend(value.ravel().tolist())
        else:
            answer.raw_output_contents.append(to_binary(value))
    return answer


def _tensor(tensor: Any, raw: bytes | None) -> Array:
    name, shape = tensor.name, list(tensor.shape)
    dtype = DATATYPES.get(tensor.datatype)
    if dtype is None:
        raise DataError(f"{name}: datatype is {tensor.datatype!r}, expected one of {', '.join(DATATYPES)}")
    if len(shape) > MAX_RANK:
        raise DataError(f"{name}: {len(shape)} axes, the limit is {MAX_RANK}")
    if any(size < 0 for size in shape):
        raise DataError(f"{name}: shape is {shape}, expected sizes of 0 or more")
    if raw is None:
        return _from_contents(tensor, dtype, shape)
    if tensor.HasField("contents"):
        raise DataError(f"{name}: has both contents and raw_input_contents")
    return from_binary(name, tensor.datatype, shape, memoryview(raw))


def _from_contents(tensor: Any, dtype: DType, shape: list[int]) -> Array:
    name = tensor.name
    field = _CONTENTS.get(dtype)
    if field is None:
        raise DataError(f"{name}: FP16 has no typed contents, send it in raw_input_contents")
    items = getattr(tensor.contents, field)
    if len(items) != math.prod(shape):
        raise DataError(f"{name}: {field} has {len(items)} elements, its shape {shape} has {math.prod(shape)}")
    if dtype is DType.BYTES:
        return bytes_tensor(name, shape, items)
    if dtype.numpy.kind not in "iu":
        return shaped(name, shape, np.array(items, dtype.numpy))
    value = np.array(items, np.uint64 if dtype is DType.UINT64 else np.int64)
    limits = np.iinfo(dtype.numpy)
    if value.size and (value.min() < limits.min or value.max() > limits.max):
        raise DataError(f"{name}: a number is outside {tensor.datatype}")
    return shaped(name, shape, value.astype(dtype.numpy))


def _value(parameter: Any) -> Any:
    choice = parameter.WhichOneof("parameter_choice")
    return getattr(parameter, choice) if choice else None


def _parameters(values: Mapping[str, Any]) -> dict[str, Any]:
    kinds = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    make = message("InferParameter")
    return {name: make(**{kinds[type(value)]: value}) for name, value in values.items() if type(value) in kinds}
