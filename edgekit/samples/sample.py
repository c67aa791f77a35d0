"""The content of a sample: one row of a model's inputs, and the answers of the device and of the cloud tier. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from edgekit.errors import DataError
from edgekit.mqtt.sample_reasons import SampleReason
from edgekit.tensors import Array, DType

MAX_TENSORS, MAX_AXES = 64, 16


class TensorBytes(msgspec.Struct, frozen=True, array_like=True):
    """A tensor without its sample axis: element type as `DType`, shape, and little-endian bytes in C order."""

    dtype: DType
    shape: Annotated[tuple[Annotated[int, Meta(ge=0)], ...], Meta(max_length=MAX_AXES)]
    data: bytes


Tensors = Annotated[dict[str, TensorBytes], Meta(max_length=MAX_TENSORS)]


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One sample, before it is sealed.

    Attributes:
        id: Its id, unique in the fleet.
        device: Name of the device that kept it.
        model, version, digest: The bundle that answered.
        at: Wall clock seconds of the device.
        reason: Why it was kept.
        score: Score of the local answer, 0 to 1; None where the task has none.
        inputs: The model's inputs.
        local: The model's own outputs, before postprocessing.
        cloud: Outputs of the cloud tier; empty where it was not asked.
        cloud_model: Digest of the bundle that answered there; empty where that is not known.
    """

    id: str
    device: str
    model: str
    version: str
    digest: str
    at: float
    reason: SampleReason
    score: float | None
    inputs: Tensors
    local: Tensors
    cloud: Tensors = {}
    cloud_model: str = ""


_DECODER = msgspec.msgpack.Decoder(Sample)


def encode_sample(sample: Sample) -> bytes:
    """MessagePack bytes of a sample."""
    return msgspec.msgpack.encode(sample)


def decode_sample(data: bytes) -> Sample:
    """Parse a sample, tensors included.

    Raises:
        DataError: it is no sample, or a tensor's bytes do not have the size of its shape.
    """
    try:
        sample = _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"not a valid sample: {error}") from error
    for name, tensor in [*sample.inputs.items(), *sample.local.items(), *sample.cloud.items()]:
        if tensor.dtype is DType.BYTES:
            raise DataError(f"tensor {name!r} of sample {sample.id} is bytes, expected numbers")
        size = math.prod(tensor.shape) * tensor.dtype.numpy.itemsize
        if size != len(tensor.data):
            raise DataError(f"tensor {name!r} of sample {sample.id} has {len(tensor.data)} bytes, expected {size}")
    if not sample.inputs:
        raise DataError(f"sample {sample.id} has no inputs")
    return sample


def to_bytes(values: Mapping[str, Array]) -> dict[str, TensorBytes]:
    """Tensors of numbers as bytes; the arrays are copied."""
    return {
        name: TensorBytes(
            DType.of(value.dtype), value.shape, value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes()
        )
        for name, value in values.items()
    }


def to_array(tensor: TensorBytes) -> Array:
    """The array of a tensor that `decode_sample` has checked."""
    return np.frombuffer(tensor.data, tensor.dtype.numpy.newbyteorder("<")).reshape(tensor.shape)
