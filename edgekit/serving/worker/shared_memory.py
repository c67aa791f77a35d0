"""Communication of an agent and its worker: tensors in shared memory, small messages over a socket."""

from __future__ import annotations

import contextlib
import fcntl
import math
import mmap
import os
import socket
import struct
import tempfile
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from edgekit.tensors import Array, DType, TensorSpec

_ALIGN = 64
_LENGTH = struct.Struct("<I")
_MAX_MESSAGE_BYTES = 256 * 2**20  # BYTES tensors travel in messages


class WorkerLostError(Exception):
    """The other process ended, or sent something that cannot be right."""


class Tensor(msgspec.Struct, frozen=True):
    """One tensor and its location.

    Attributes:
        name: Name of the tensor.
        dtype: Value of its DType.
        shape: Sizes of its axes.
        offset: First byte in the shared memory; unused for BYTES.
        items: Elements of a BYTES tensor in order, which have no fixed size.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int = 0
    items: tuple[bytes, ...] = ()


class Load(msgspec.Struct, frozen=True, tag=True):
    """Open a bundle: `loader` is ``module:function``, called with the manifest, the folder and `options`."""

    manifest: bytes
    folder: str
    loader: str
    options: dict[str, Any]


class Run(msgspec.Struct, frozen=True, tag=True):
    """Run once. The inputs end before byte `end` of the shared memory."""

    inputs: list[Tensor]
    end: int


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """The bundle is open."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    provider: str
    asked: tuple[str, ...] = ()
    got: tuple[str, ...] = ()


class Ran(msgspec.Struct, frozen=True, tag=True):
    """The outputs of a run."""

    outputs: list[Tensor]


class Failed(msgspec.Struct, frozen=True, tag=True):
    """An error of edgekit. `kind` is the name of its class."""

    kind: str
    message: str
    advice: str = ""


Message = Load | Run | Loaded | Ran | Failed
_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Message)


class Channel:
    """Messages over a socket.

    Args:
        end: This side's end; closed with the channel.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def send(self, message: Message) -> None:
        """Send one message. Raises WorkerLostError."""
        data = _encode(message)
        try:
            self._socket.sendall(_LENGTH.pack(len(data)) + data)
        except OSError as error:
            raise WorkerLostError(f"it does not receive messages: {error}") from error

    def receive(self, timeout_seconds: float | None = None) -> Message:
        """Wait for the next message.

        Raises:
            TimeoutError: no message arrived in time. The channel cannot be used any more.
            WorkerLostError: the other process ended, or its message is malformed.
        """
        self._socket.settimeout(timeout_seconds)
        try:
            (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
            if length > _MAX_MESSAGE_BYTES:
                raise WorkerLostError(f"it sent a message of {length} bytes, the limit is {_MAX_MESSAGE_BYTES}")
            message: Message = _decoder.decode(self._exactly(length))
        except TimeoutError:  # an OSError too
            raise
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise WorkerLostError(f"its message cannot be read: {error}") from error
        return message

    def close(self) -> None:
        """Close this side's end."""
        self._socket.close()

    def _exactly(self, length: int) -> bytearray:
        data = bytearray()
        while len(data) < length:
            part = self._socket.recv(min(length - len(data), 2**20))
            if not part:
                raise WorkerLostError("it has ended")
            data += part
        return data


def shared_file() -> int:
    """A file descriptor of memory that can be passed to another process."""
    if not hasattr(os, "memfd_create"):
        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())
    descriptor = os.memfd_create("edgekit-tensors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with contextlib.suppress(OSError, AttributeError):  # so that no process can shrink memory that another has mapped
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return descriptor


class SharedTensors:
    """Tensors in shared memory, which grows when needed and never shrinks.

    Args:
        fd: The descriptor of `shared_file`; `close` closes it.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._map: mmap.mmap | None = None
        self._size = 0

    def write(self, arrays: Mapping[str, Array], start: int = 0) -> tuple[list[Tensor], int]:
        """Write arrays from byte `start` on. Returns their locations, and the first byte after them."""
        tensors, end = [], start
        for name, array in arrays.items():
            dtype = DType.of(array.dtype)
            if dtype is DType.BYTES:
                items = tuple(item if isinstance(item, bytes) else bytes(item) for item in array.ravel())
                tensors.append(Tensor(name, dtype.value, array.shape, items=items))
                continue
            end = -(-end // _ALIGN) * _ALIGN
            tensors.append(Tensor(name, dtype.value, array.shape, end))
            end += array.nbytes
        self._reserve(end)
        for tensor, array in zip(tensors, arrays.values(), strict=True):
            if array.dtype != object and array.size:
                self._view(tensor)[...] = array
        return tensors, end

    def read(self, tensors: list[Tensor], *, copy: bool) -> dict[str, Array]:
        """The arrays at these locations. Without `copy`, the next `write` changes them.

        Raises:
            WorkerLostError: a location is outside the shared memory.
        """
        self._follow()
        arrays: dict[str, Array] = {}
        for tensor in tensors:
            try:
                if tensor.dtype == DType.BYTES.value:
                    elements = np.empty(len(tensor.items), object)
                    elements[:] = tensor.items
                    arrays[tensor.name] = elements.reshape(tensor.shape)
                else:
                    view = self._view(tensor)
                    arrays[tensor.name] = view.copy() if copy else view
            except (ValueError, TypeError) as error:
                raise WorkerLostError(f"tensor {tensor.name!r} is outside the shared memory: {error}") from error
        return arrays

    def close(self) -> None:
        """Close the descriptor. The memory is freed when no array refers to it any more."""
        self._map = None
        os.close(self._fd)

    def _view(self, tensor: Tensor) -> Array:
        dtype, count = DType(tensor.dtype).numpy, math.prod(tensor.shape)
        if not count or min(tensor.shape, default=1) < 0:
            return np.empty(tensor.shape, dtype)
        if self._map is None:
            raise ValueError("it is empty")
        return np.frombuffer(self._map, dtype, count, tensor.offset).reshape(tensor.shape)

    def _reserve(self, size: int) -> None:
        if size > os.fstat(self._fd).st_size:
            os.ftruncate(self._fd, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
        self._follow()

    def _follow(self) -> None:
        """Map memory that the other process may have added."""
        size = os.fstat(self._fd).st_size
        if size > self._size:
            self._map, self._size = mmap.mmap(self._fd, size), size
