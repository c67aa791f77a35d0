"""Settles the free axes besides the batch, by what the user stated, and fixes inputs that always have one value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import numpy_helper

from converters.frontends.interface.axes import Dims, is_free, names_in, open_axes
from converters.frontends.interface.proposals import (
    apply_sizes,
    apply_symbols,
    axis_name,
    flags,
    likely_batch,
    propose,
    refusal,
    text_of,
)
from converters.frontends.interface.protobuf import (
    copy_of,
    dims_of,
    drop_stored_shapes,
    dtype_of,
    inputs_of,
    is_zero,
    set_dims,
)
from converters.graph.interface import Number
from converters.graph.stated import DataArray, Stated
from edgekit.errors import SettingsError
from edgekit.tensors import DType

LARGEST_INPUT = 2**28  # numbers of one sample: 1 GiB of float32


class FixedInput(msgspec.Struct, frozen=True):
    """An input that always has one value, as the source had it, and its place among the inputs."""

    index: int
    name: str
    dtype: DType
    dims: Dims
    value: Number


class Settled(msgspec.Struct, frozen=True):
    """The settled sizes and values of a model's inputs.

    Attributes:
        fixed: Inputs that became constants.
        stated: What the user stated.
        notes: What the user should know, one sentence each.
        rows: The rows that the model was exported for, where one is asked for instead; otherwise 0.
    """

    fixed: tuple[FixedInput, ...] = ()
    stated: Stated = Stated()
    notes: tuple[str, ...] = ()
    rows: int = 0


def settle(model: onnx.ModelProto, stated: Stated, source: str) -> tuple[onnx.ModelProto, Settled]:
    """Give each free axis besides the likely batch its size, and make fixed inputs constants.

    Sizes come from ``--dim``, ``--input-shape`` and the data, in this order.

    Raises:
        SettingsError: A name or size that the user stated does not fit the model, or a sample is too large.
        ModelFormatError: A free axis has no size. The message proposes the options to give.
    """
    model = copy_of(model)
    values = {value.name: value for value in inputs_of(model)}
    zeros, exported = _zeros_of(values), {name: _first_size(value) for name, value in values.items()}
    _give_ranks(values, stated)
    _require_names(values, stated, source)
    symbols = dict(stated.dims)
    for name, shape in stated.shapes.items():
        symbols.update(_state_shape(values[name], shape))
    apply_symbols(model, symbols)
    notes = [*_single_rows(values, stated), *_settle_from_data(model, values, stated)]
    free = _open(values, stated)
    if free:
        notes.append(settle_by_proposal(model, free, source, stated, zeros))
    _require_possible(model, source)
    fixed, more = _fix(model, stated)
    drop_stored_shapes(model)
    freed = [rows for name, rows in exported.items() if rows > 1 and _first_size(values[name]) != rows]
    return model, Settled(fixed, stated, (*notes, *more), max(freed, default=0))


def settle_by_proposal(
    model: onnx.ModelProto, free: Mapping[str, Sequence[int]], source: str, stated: Stated, why: str = ""
) -> str:
    """Give free axes the proposed sizes, where the user accepts them. Returns the note that says so.

    Raises:
        ModelFormatError: The user does not; the message lists the axes, says `why`, and proposes the options.
    """
    values = {value.name: value for value in inputs_of(model)}
    axes = {name: list(indices) for name, indices in free.items()}
    sizes = propose(model, values, axes)
    if not stated.propose:
        raise refusal(source, values, axes, sizes, why)
    note = "free axes are shown with proposed sizes: " + " ".join(flags(values, axes, sizes))
    apply_sizes(model, values, sizes)
    return note


def _give_ranks(values: Mapping[str, Any], stated: Stated) -> None:
    """Give inputs that declare no axes as many free ones as the user states sizes."""
    for name, shape in stated.shapes.items():
        if name in values and not values[name].type.tensor_type.HasField("shape"):
            set_dims(values[name], (None,) * len(shape))


def _first_size(value: Any) -> int:
    """The fixed size of the first axis of an input; 0 where it has none."""
    dims = dims_of(value) if value.type.tensor_type.HasField("shape") else ()
    return dims[0] if dims and isinstance(dims[0], int) else 0


def _zeros_of(values: Mapping[str, Any]) -> str:
    """The axes to which the file gives the size 0, for messages; some exporters write 0 for a free size."""
    found = [
        f"axis {index} of input {name}"
        for name, value in values.items()
        for index, dim in enumerate(value.type.tensor_type.shape.dim)
        if is_zero(dim)
    ]
    return f"; the file gives {', '.join(found)} the size 0, which holds no numbers" if found else ""


def _require_names(values: Mapping[str, Any], stated: Stated, source: str) -> None:
    known = ", ".join(values)
    for option, names in (("--input-shape", stated.shapes), ("--fix", stated.fixed)):
        unknown = [name for name in names if name not in values]
        if unknown:
            raise SettingsError(
                f"{option} names the input {', '.join(unknown)}, which {source} does not have; it has {known}",
                advice=f"Give {option} with one of the model's inputs.",
            )
    symbols = {axis for value in values.values() for axis in dims_of(value) if isinstance(axis, str)}
    unknown = [symbol for symbol in stated.dims if symbol not in symbols]
    if unknown:
        raise SettingsError(
            f"--dim names the axis {', '.join(unknown)}, which no input of {source} has; "
            f"the free axes with a name are {', '.join(sorted(symbols)) or 'none'}",
            advice="Give --input-shape NAME=SIZE,SIZE,... for an axis without a name.",
        )


def _require_possible(model: onnx.ModelProto, source: str) -> None:
    """Refuse sizes with one digit too many, before an input of them takes the memory of the machine."""
    for value in inputs_of(model):
        dims = dims_of(value)
        count = math.prod(axis if isinstance(axis, int) else 1 for axis in dims)
        if count > LARGEST_INPUT:
            raise SettingsError(
                f"one sample of input {value.name} [{text_of(dims)}] of {source} has {count} numbers; "
                f"the most is {LARGEST_INPUT}",
                advice="Give smaller sizes with --dim or --input-shape.",
            )


def _state_shape(value: Any, shape: Sequence[int]) -> dict[str, int]:
    """Apply a stated shape to one input, except an axis of 1 that may be the batch. Returns sizes of symbols."""
    dims = dims_of(value)
    if len(dims) == len(shape) > 1 and isinstance(dims[0], int) and dims[0] > 1 and shape[0] == 1:
        dims = (None, *dims[1:])  # exported for several rows: whether one row works is tried
    wrong = [axis for axis, size in zip(dims, shape, strict=False) if isinstance(axis, int) and axis != size]
    if len(dims) != len(shape) or wrong:
        raise SettingsError(
            f"--input-shape gives {value.name} the shape {list(shape)}; the model has [{text_of(dims_of(value))}]",
            advice="Give one size for each axis, and leave fixed sizes as they are.",
        )
    set_dims(value, tuple(axis if size == 1 else size for axis, size in zip(dims, shape, strict=True)))
    return {axis: size for axis, size in zip(dims, shape, strict=True) if isinstance(axis, str) and size > 1}


def _single_rows(values: Mapping[str, Any], stated: Stated) -> list[str]:
    """Free the first axis where the model was exported for several rows, and the data hold single ones. Returns notes.

    Whether the model runs on one row, and whether rows are independent, is tried later.
    """
    counts = set()
    for name, value in values.items():
        data, dims = stated.data_of(name, list(values)), dims_of(value)
        if data is None or name in stated.shapes or not dims or tuple(data.shape[1:]) != dims[1:]:
            return []
        counts.add(dims[0])
    rows = counts.pop() if len(counts) == 1 else None
    if not isinstance(rows, int) or rows == 1:
        return []
    for value in values.values():
        set_dims(value, (None, *dims_of(value)[1:]))
    return [f"the model was exported for {rows} rows; a sample is one row, as in the data"]


def _settle_from_data(model: onnx.ModelProto, values: Mapping[str, Any], stated: Stated) -> list[str]:
    """Take the sizes of free axes from the shapes of the data. Returns notes."""
    notes = []
    batch = likely_batch(values)
    for name, value in values.items():
        data, dims = stated.data_of(name, list(values)), dims_of(value)
        if data is None or not any(map(is_free, dims)):
            continue
        sizes = _sizes_in(dims, batch.get(name), data)
        if not sizes:
            continue
        taken = ", ".join(f"{axis_name(dims, index)} = {size}" for index, size in sizes.items())
        notes.append(f"input {name}: {taken}, as in the data")
        apply_sizes(model, values, {(name, index): size for index, size in sizes.items()})
        batch = likely_batch(values)
    return notes


def _sizes_in(dims: Dims, batch: int | None, data: DataArray) -> dict[int, int]:
    """The sizes of the free axes of an input in `data`, by axis; empty where the data do not fit the input."""
    rest = [index for index in range(len(dims)) if index != (0 if batch is None and dims[:1] == (1,) else batch)]
    if len(data.shape) == len(dims) + 1:  # samples of the whole input: it has no batch
        rest = list(range(len(dims)))
    if len(data.shape) != len(rest) + 1:
        return {}
    sizes = dict(zip(rest, data.shape[1:], strict=True))
    if any(isinstance(axis := dims[index], int) and axis != size for index, size in sizes.items()):
        return {}
    return {index: size for index, size in sizes.items() if is_free(dims[index]) and size > 0}


def _open(values: Mapping[str, Any], stated: Stated) -> dict[str, list[int]]:
    """Free axes without a size; an axis that the user gave as 1 has a size."""
    found = {}
    for name, axes in open_axes({name: dims_of(value) for name, value in values.items()}, likely_batch(values)).items():
        if name in stated.shapes:  # each of its axes was stated, and those left are 1
            dims = dims_of(values[name])
            set_dims(values[name], tuple(1 if index in axes else axis for index, axis in enumerate(dims)))
        else:
            found[name] = axes
    symbols = {axis for value in values.values() for axis in dims_of(value) if isinstance(axis, str)}
    own = {
        name: [index for index in axes if not names_in(dims_of(values[name])[index]) & symbols]
        for name, axes in found.items()
    }
    return {name: axes for name, axes in own.items() if axes}  # sizes such as past + 1 follow from past


def _fix(model: onnx.ModelProto, stated: Stated) -> tuple[tuple[FixedInput, ...], list[str]]:
    """Make fixed inputs constants: those that the user named, and scalars that the data give once."""
    notes, fixed = [], []
    values = inputs_of(model)
    names = [value.name for value in values]
    for index, value in enumerate(values):
        number, dims = stated.fixed.get(value.name), dims_of(value)
        data = stated.data_of(value.name, names)
        if number is None and not dims and data is not None and data.value is not None:
            number = data.value
            notes.append(f"input {value.name} is fixed to {number}, which the data give once")
        if number is None:
            continue
        dtype = dtype_of(value)
        shape = [axis if isinstance(axis, int) else 1 for axis in dims]
        model.graph.initializer.append(numpy_helper.from_array(_filled(value.name, shape, number, dtype), value.name))
        fixed.append(FixedInput(index, value.name, dtype, dims, number))
    kept = [value for value in model.graph.input if value.name not in {one.name for one in fixed}]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return tuple(fixed), notes


def _filled(name: str, shape: Sequence[int], number: Number, dtype: DType) -> Any:
    fits = dtype is not DType.BYTES
    try:
        made = np.full(shape, number, np.float64 if isinstance(number, float) else None)
        with np.errstate(over="ignore", invalid="ignore"):
            filled = made.astype(dtype.numpy)
        exact = bool(np.array_equal(filled.astype(made.dtype), made))
        fits = fits and (exact if dtype.numpy.kind != "f" else bool(np.isfinite(filled).all()))
    except OverflowError:  # an integer beyond 64 bits
        fits = False
    if not fits:
        raise SettingsError(
            f"--fix gives {name} the value {number}, which its type {dtype.value} cannot hold",
            advice=f"Give a value of type {dtype.value}.",
        )
    return filled
