"""Find the byte ranges of the constant tensors in a model file: LiteRT flatbuffers and ONNX protobufs.

It reads only what a delta needs, without the library of either format. For a file that it cannot read, it finds no
tensors. Pure: no I/O.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

MAX_TENSORS = 50_000
MIN_BYTES = 64  # smaller tensors are aligned together with the bytes around them


class TensorRange(NamedTuple):
    """The name of one constant tensor, and the offset and length of its bytes in the file."""

    name: str
    offset: int
    length: int


def find_tensors(data: bytes) -> list[TensorRange]:
    """The constant tensors of at least MIN_BYTES, in the order of the file, without overlaps."""
    try:
        found = list(_litert(data) if data[4:8] == b"TFL3" else _onnx(data))
    except (struct.error, IndexError, ValueError, OverflowError, _MalformedError):
        return []
    ordered: list[TensorRange] = []
    end = 0
    for tensor in sorted(set(found), key=lambda tensor: (tensor.offset, tensor.name)):
        if tensor.offset >= end and tensor.offset + tensor.length <= len(data) and tensor.length >= MIN_BYTES:
            ordered.append(tensor)
            end = tensor.offset + tensor.length
    return ordered


class _MalformedError(Exception):
    """The file does not follow the format that its first bytes announce."""


# --- LiteRT: tables of a flatbuffer; the table's vtable has the position of each field


def _litert(data: bytes) -> Iterator[TensorRange]:
    model = _u32(data, 0)
    buffers = [_buffer(data, table) for table in _tables(data, model, 4)]
    count = 0
    for graph in _tables(data, model, 2):
        for tensor in _tables(data, graph, 0):
            count += 1
            if count > MAX_TENSORS:
                raise _MalformedError
            at = _field(data, tensor, 2)
            number = _u32(data, at) if at else 0
            if number < len(buffers) and buffers[number][1]:
                yield TensorRange(_string(data, tensor, 3), *buffers[number])


def _buffer(data: bytes, table: int) -> tuple[int, int]:
    """Offset and length of a buffer's data; large files have the data after the flatbuffer."""
    at = _field(data, table, 0)
    if at:
        start = at + _u32(data, at)
        return start + 4, _u32(data, start)
    offset, size = _field(data, table, 1), _field(data, table, 2)
    if offset and size:
        return struct.unpack_from("<Q", data, offset)[0], struct.unpack_from("<Q", data, size)[0]
    return 0, 0


def _u32(data: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", data, at)[0])


def _field(data: bytes, table: int, number: int) -> int:
    """Offset of field `number` of a table; 0 if the field is absent."""
    vtable = table - int(struct.unpack_from("<i", data, table)[0])
    if vtable < 0:
        raise _MalformedError
    at = 4 + 2 * number
    if at >= struct.unpack_from("<H", data, vtable)[0]:
        return 0
    offset = int(struct.unpack_from("<H", data, vtable + at)[0])
    return table + offset if offset else 0


def _tables(data: bytes, table: int, number: int) -> list[int]:
    at = _field(data, table, number)
    if not at:
        return []
    start = at + _u32(data, at)
    count = _u32(data, start)
    if count > MAX_TENSORS:
        raise _MalformedError
    return [entry + _u32(data, entry) for entry in range(start + 4, start + 4 + 4 * count, 4)]


def _string(data: bytes, table: int, number: int) -> str:
    at = _field(data, table, number)
    if not at:
        return ""
    start = at + _u32(data, at)
    return data[start + 4 : start + 4 + min(_u32(data, start), 4096)].decode("utf-8", "replace")


# --- ONNX: fields of protobuf messages, by number

_GRAPH, _NODE, _ATTRIBUTE, _TENSOR, _INITIALIZER = 7, 1, 5, 5, 5
_OUTPUT, _NAME = 2, 8
_VALUES = (4, 5, 7, 9, 10, 11)  # float, int32, int64, raw, double, uint64


def _onnx(data: bytes) -> Iterator[TensorRange]:
    count = 0
    for number, start, end in _messages(data, 0, len(data)):
        if number != _GRAPH:
            continue
        for part, first, last in _messages(data, start, end):
            count += 1
            if count > MAX_TENSORS:
                raise _MalformedError
            if part == _INITIALIZER:
                yield from _values(data, first, last, "")
            elif part == _NODE:
                yield from _constants(data, first, last)


def _constants(data: bytes, start: int, end: int) -> Iterator[TensorRange]:
    """Tensors in a node's attributes; they have the name of the node's first output."""
    fields = list(_messages(data, start, end))
    name = next((_text(data, first, last) for number, first, last in fields if number == _OUTPUT), "")
    for number, first, last in fields:
        if number == _ATTRIBUTE:
            for part, inner, after in _messages(data, first, last):
                if part == _TENSOR:
                    yield from _values(data, inner, after, name)


def _values(data: bytes, start: int, end: int, name: str) -> Iterator[TensorRange]:
    fields = list(_messages(data, start, end))
    own = next((_text(data, first, last) for number, first, last in fields if number == _NAME), name)
    for number, first, last in fields:
        if number in _VALUES:
            yield TensorRange(own or name, first, last - first)


def _text(data: bytes, start: int, end: int) -> str:
    return data[start : min(end, start + 4096)].decode("utf-8", "replace")


def _messages(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of every length-delimited field of one message."""
    while at < end:
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            _, at = _varint(data, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        elif kind == 2:
            length, at = _varint(data, at)
            if length > end - at:
                raise _MalformedError
            yield key >> 3, at, at + length
            at += length
        else:
            raise _MalformedError
    if at != end:
        raise _MalformedError


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
    raise _MalformedError
