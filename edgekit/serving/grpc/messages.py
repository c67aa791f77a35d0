"""Messages of the Open Inference Protocol's gRPC service, built from the table below on first use.

Names and numbers are those of the public specification (``inference.GRPCInferenceService``); the repository index and
the statistics have Triton's numbers. The messages are in a descriptor pool of their own, so that a program can also
use a client's generated messages.
"""

from __future__ import annotations

import functools
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"
METHODS = (
    *("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer"),
    *("ModelStatistics", "RepositoryIndex"),
)

# Fields by message, each as name:kind:number. `*` is a repeated field, `map` a map from string to InferParameter.
_TABLE = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live:bool:1",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready:bool:1",
    "ModelReadyRequest": "name:string:1 version:string:2",
    "ModelReadyResponse": "ready:bool:1",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "name:string:1 version:string:2 extensions:*string:3",
    "ModelMetadataRequest": "name:string:1 version:string:2",
    "ModelMetadataResponse.TensorMetadata": "name:string:1 datatype:string:2 shape:*int64:3",
    "ModelMetadataResponse": (
        "name:string:1 versions:*string:2 platform:string:3"
        " inputs:*ModelMetadataResponse.TensorMetadata:4 outputs:*ModelMetadataResponse.TensorMetadata:5"
    ),
    "InferParameter": (
        "bool_param:bool:1 int64_param:int64:2 string_param:string:3 double_param:double:4 uint64_param:uint64:5"
    ),
    "InferTensorContents": (
        "bool_contents:*bool:1 int_contents:*int32:2 int64_contents:*int64:3 uint_contents:*uint32:4"
        " uint64_contents:*uint64:5 fp32_contents:*float:6 fp64_contents:*double:7 bytes_contents:*bytes:8"
    ),
    "ModelInferRequest.InferInputTensor": (
        "name:string:1 datatype:string:2 shape:*int64:3 parameters:map:4 contents:InferTensorContents:5"
    ),
    "ModelInferRequest.InferRequestedOutputTensor": "name:string:1 parameters:map:2",
    "ModelInferRequest": (
        "model_name:string:1 model_version:string:2 id:string:3 parameters:map:4"
        " inputs:*ModelInferRequest.InferInputTensor:5 outputs:*ModelInferRequest.InferRequestedOutputTensor:6"
        " raw_input_contents:*bytes:7"
    ),
    "ModelInferResponse.InferOutputTensor": (
        "name:string:1 datatype:string:2 shape:*int64:3 parameters:map:4 contents:InferTensorContents:5"
    ),
    "ModelInferResponse": (
        "model_name:string:1 model_version:string:2 id:string:3 parameters:map:4"
        " outputs:*ModelInferResponse.InferOutputTensor:5 raw_output_contents:*bytes:6"
    ),
    "ModelStatisticsRequest": "name:string:1 version:string:2",
    "StatisticDuration": "count:uint64:1 ns:uint64:2",
    "InferStatistics": (
        "success:StatisticDuration:1 fail:StatisticDuration:2 queue:StatisticDuration:3"
        " compute_input:StatisticDuration:4 compute_infer:StatisticDuration:5 compute_output:StatisticDuration:6"
    ),
    "InferBatchStatistics": (
        "batch_size:uint64:1 compute_input:StatisticDuration:2 compute_infer:StatisticDuration:3"
        " compute_output:StatisticDuration:4"
    ),
    "ModelStatistics": (
        "name:string:1 version:string:2 last_inference:uint64:3 inference_count:uint64:4 execution_count:uint64:5"
        " inference_stats:InferStatistics:6 batch_stats:*InferBatchStatistics:7"
    ),
    "ModelStatisticsResponse": "model_stats:*ModelStatistics:1",
    "RepositoryIndexRequest": "repository_name:string:1 ready:bool:2",
    "RepositoryIndexResponse.ModelIndex": "name:string:1 version:string:2 state:string:3 reason:string:4",
    "RepositoryIndexResponse": "models:*RepositoryIndexResponse.ModelIndex:1",
}
_ONE_OF = {"InferParameter": "parameter_choice"}

_FIELD = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    kind: getattr(_FIELD, f"TYPE_{kind.upper()}")
    for kind in ("bool", "string", "bytes", "int32", "int64", "uint32", "uint64", "float", "double")
}


def message(name: str) -> Any:
    """The class of a message, for example ``ModelInferRequest``.

    Raises:
        KeyError: there is no message of that name.
    """
    return _classes()[f"{PACKAGE}.{name}"]


@functools.lru_cache(maxsize=1)
def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="edgekit/open_inference.proto", package=PACKAGE, syntax="proto3")
    descriptors: dict[str, Any] = {}
    for path in sorted(_TABLE, key=lambda path: path.count(".")):  # outer messages before nested ones
        outer, _, name = path.rpartition(".")
        descriptors[path] = (descriptors[outer].nested_type if outer else file.message_type).add(name=name)
    for path, fields in _TABLE.items():
        if path in _ONE_OF:
            descriptors[path].oneof_decl.add(name=_ONE_OF[path])
        for field in fields.split():
            _add(descriptors[path], path, *field.split(":"))
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {
        f"{PACKAGE}.{path}": message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{path}"))
        for path in _TABLE
    }


def _add(owner: Any, path: str, name: str, kind: str, number: str) -> None:
    repeated = kind.startswith("*") or kind == "map"
    label = _FIELD.LABEL_REPEATED if repeated else _FIELD.LABEL_OPTIONAL
    field = owner.field.add(name=name, number=int(number), label=label)
    kind = kind.removeprefix("*")
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type = _FIELD.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{kind}"
    if path in _ONE_OF:
        field.oneof_index = 0
    if kind == "map":  # protobuf sends a map as repeated pairs
        entry = owner.nested_type.add(name="ParametersEntry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, label=_FIELD.LABEL_OPTIONAL, type=_FIELD.TYPE_STRING)
        value = entry.field.add(name="value", number=2, label=_FIELD.LABEL_OPTIONAL, type=_FIELD.TYPE_MESSAGE)
        value.type_name = f".{PACKAGE}.InferParameter"
        field.type_name = f".{PACKAGE}.{path}.ParametersEntry"
