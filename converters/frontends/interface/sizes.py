"""Settles the free axes besides the batch, by what the user stated, and fixes inputs that always have one value."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import numpy_helper

from converters.frontends.interface.axes import BatchAxes, Dims, evaluated, is_free, likely_batches, names_in, open_axes
from converters.frontends.interface.protobuf import (
    copy_of,
    dims_of,
    drop_stored_shapes,
    dtype_of,
    inputs_of,
    set_dims,
)
from converters.frontends.interface.trial import opened, plausible_row
from converters.graph.interface import Number
from converters.graph.stated import DataArray, Stated
from edgekit.errors import EdgekitError, ModelFormatError, SettingsError
from edgekit.tensors import DType

PICTURE_SIZES = (640, 224, 320, 256, 512, 299, 96, 64, 32)
TEXT_HEIGHTS, TEXT_WIDTH = (48, 32, 64), 320
SOUND_SIZES = (16000, 512, 576, 1600, 8000)
OTHER_SIZES = (128, 64, 32, 16, 100, 1)
MOST_TRIALS = 24


class FixedInput(msgspec.Struct, frozen=True):
    """An input that always has one value, as the source had it, and its place among the inputs."""

    index: int
    name: str
    dtype: DType
    dims: Dims
    value: Number


class Settled(msgspec.Struct, frozen=True):
    """What was settled of a model's inputs.

    Attributes:
        fixed: Inputs that became constants.
        stated: What the user stated.
        notes: What the user should know, one sentence each.
    """

    fixed: tuple[FixedInput, ...] = ()
    stated: Stated = Stated()
    notes: tuple[str, ...] = ()


def settle(model: onnx.ModelProto, stated: Stated, source: str) -> tuple[onnx.ModelProto, Settled]:
    """Give each free axis besides the likely batch its size, and make fixed inputs constants.

    Sizes come from ``--dim``, ``--input-shape`` and the data, in this order.

    Raises:
        SettingsError: A name or size that the user stated does not fit the model.
        ModelFormatError: A free axis has no size. The message proposes the options to give.
    """
    model = copy_of(model)
    values = {value.name: value for value in inputs_of(model)}
    _require_names(values, stated, source)
    symbols = dict(stated.dims)
    for name, shape in stated.shapes.items():
        symbols.update(_state_shape(values[name], shape))
    _apply(model, symbols)
    notes = _settle_from_data(model, values, stated)
    free = _open(values, stated)
    if free:
        sizes = _proposal(model, values, free)
        if not stated.propose:
            raise _refusal(source, values, free, sizes)
        notes.append("free axes are shown with proposed sizes: " + " ".join(_flags(values, free, sizes)))
        _apply_sizes(model, values, sizes)
    fixed, more = _fix(model, stated)
    drop_stored_shapes(model)
    return model, Settled(fixed, stated, (*notes, *more))


def refuse_free_axes(model: onnx.ModelProto, axes: Mapping[str, Sequence[int]], source: str) -> ModelFormatError:
    """The error for free `axes` of the inputs that turned out not to be a batch."""
    values = {value.name: value for value in inputs_of(model)}
    free = {name: list(indices) for name, indices in axes.items()}
    return _refusal(source, values, free, _proposal(model, values, free))


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


def _state_shape(value: Any, shape: Sequence[int]) -> dict[str, int]:
    """Apply a stated shape to one input, except an axis of 1 that may be the batch. Returns sizes of symbols."""
    dims = dims_of(value)
    if len(dims) == len(shape) > 1 and isinstance(dims[0], int) and dims[0] > 1 and shape[0] == 1:
        dims = (None, *dims[1:])  # exported for several rows: whether one row works is tried
    wrong = [axis for axis, size in zip(dims, shape, strict=False) if isinstance(axis, int) and axis != size]
    if len(dims) != len(shape) or wrong:
        raise SettingsError(
            f"--input-shape gives {value.name} the shape {list(shape)}; the model has [{_text(dims_of(value))}]",
            advice="Give one size for each axis, and leave fixed sizes as they are.",
        )
    set_dims(value, tuple(axis if size == 1 else size for axis, size in zip(dims, shape, strict=True)))
    return {axis: size for axis, size in zip(dims, shape, strict=True) if isinstance(axis, str) and size > 1}


def _apply(model: onnx.ModelProto, symbols: Mapping[str, int]) -> None:
    """Replace the symbols of free axes, and arithmetic on them, by sizes."""
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.HasField("shape"):
            set_dims(
                value,
                tuple((evaluated(axis, symbols) or axis) if isinstance(axis, str) else axis for axis in dims_of(value)),
            )


def _apply_sizes(model: onnx.ModelProto, values: Mapping[str, Any], sizes: Mapping[tuple[str, int], int]) -> None:
    symbols = {}
    for (name, index), size in sizes.items():
        dims = dims_of(values[name])
        if isinstance(axis := dims[index], str):
            symbols[axis] = size
        set_dims(values[name], (*dims[:index], size, *dims[index + 1 :]))
    _apply(model, symbols)


def _settle_from_data(model: onnx.ModelProto, values: Mapping[str, Any], stated: Stated) -> list[str]:
    """Take the sizes of free axes from the shapes of the data. Returns notes."""
    notes = []
    batch = _batch_of(values)
    for name, value in values.items():
        data, dims = stated.data_of(name, list(values)), dims_of(value)
        if data is None or not any(map(is_free, dims)):
            continue
        sizes = _sizes_in(dims, batch.get(name), data)
        if not sizes:
            continue
        taken = ", ".join(f"{_axis_name(dims, index)} = {size}" for index, size in sizes.items())
        notes.append(f"input {name}: {taken}, as in the data")
        _apply_sizes(model, values, {(name, index): size for index, size in sizes.items()})
        batch = _batch_of(values)
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


def _batch_of(values: Mapping[str, Any]) -> BatchAxes:
    hypotheses = likely_batches({name: dims_of(value) for name, value in values.items()})
    return hypotheses[0] if hypotheses else {}


def _open(values: Mapping[str, Any], stated: Stated) -> dict[str, list[int]]:
    """Free axes without a size; an axis that the user gave as 1 has a size."""
    found = {}
    for name, axes in open_axes({name: dims_of(value) for name, value in values.items()}, _batch_of(values)).items():
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
    made = np.full(shape, number, np.float64 if isinstance(number, float) else None)
    filled = made.astype(dtype.numpy)
    if dtype is DType.BYTES or (not np.array_equal(filled.astype(made.dtype), made) and dtype.numpy.kind != "f"):
        raise SettingsError(
            f"--fix gives {name} the value {number}, which its type {dtype.value} cannot hold",
            advice=f"Give a value of type {dtype.value}.",
        )
    return filled


def _proposal(
    model: onnx.ModelProto, values: Mapping[str, Any], free: Mapping[str, list[int]]
) -> dict[tuple[str, int], int]:
    """Sizes for free axes: the first sensible ones with which the model runs, else the first."""
    first: dict[tuple[str, int], int] = {}
    for tried, sizes in enumerate(_candidates(model, values, free)):
        first = first or sizes
        if tried == MOST_TRIALS:
            break
        trial = copy_of(model)
        inputs = {value.name: value for value in inputs_of(trial)}
        _apply_sizes(trial, inputs, sizes)
        try:
            with opened(trial) as runtime:
                runtime.run(plausible_row(trial, _batch_of(inputs), 0))
        except EdgekitError:
            continue
        return sizes
    return first


def _candidates(
    model: onnx.ModelProto, values: Mapping[str, Any], free: Mapping[str, list[int]]
) -> Iterator[dict[tuple[str, int], int]]:
    """Combinations of sensible sizes; axes of one kind get the same size."""
    kinds = {(name, index): _kind(values[name], index) for name, axes in free.items() for index in axes}
    pictures = [place for place, kind in kinds.items() if kind == "picture"]
    maps = any(len(dims_of(value)) > 2 for value in model.graph.output)  # not scores of classes only
    sizes = {"picture": PICTURE_SIZES if maps else PICTURE_SIZES[1:], "sound": SOUND_SIZES, "other": OTHER_SIZES}
    first = {place: sizes[kind][0] for place, kind in kinds.items()}
    yield first
    if len(pictures) == 2:  # lines of text are lower than wide
        for low in TEXT_HEIGHTS:
            yield {**first, pictures[0]: low, pictures[1]: TEXT_WIDTH}
    for step in range(1, max(map(len, sizes.values()))):
        yield {place: sizes[kind][min(step, len(sizes[kind]) - 1)] for place, kind in kinds.items()}


def _kind(value: Any, index: int) -> str:
    """``picture``, ``sound`` or ``other``: what a free axis probably counts."""
    dims = dims_of(value)
    if len(dims) == 4 and index > 0:
        return "picture"
    last = index == len(dims) - 1
    return "sound" if last and len(dims) in (2, 3) and dtype_of(value).numpy.kind == "f" else "other"


def _refusal(
    source: str, values: Mapping[str, Any], free: Mapping[str, list[int]], sizes: Mapping[tuple[str, int], int]
) -> ModelFormatError:
    axes = "; ".join(
        f"input {name} has the shape [{_text(dims_of(values[name]))}] with the free "
        f"{'axis' if len(indices) == 1 else 'axes'} "
        + ", ".join(f"{index} ({_axis_name(dims_of(values[name]), index)})" for index in indices)
        for name, indices in free.items()
    )
    return ModelFormatError(
        f"{source}: {axes}; expected only the batch to be free",
        advice=f"Give their sizes, for example {' '.join(_flags(values, free, sizes))}; "
        "or give --data with real samples, whose shapes are taken.",
    )


def _flags(values: Mapping[str, Any], free: Mapping[str, list[int]], sizes: Mapping[tuple[str, int], int]) -> list[str]:
    """The options that give `sizes`, ready to paste: one per symbol, or the shape of an input without symbols."""
    flags: dict[str, None] = {}
    for name, indices in free.items():
        dims = dims_of(values[name])
        if all(isinstance(dims[index], str) and re.fullmatch(r"[\w.]+", str(dims[index])) for index in indices):
            flags.update(dict.fromkeys(f"--dim {dims[index]}={sizes[name, index]}" for index in indices))
        else:
            shape = [axis if isinstance(axis, int) else sizes.get((name, index), 1) for index, axis in enumerate(dims)]
            flags[f"--input-shape {name}={','.join(map(str, shape))}"] = None
    return list(flags)


def _axis_name(dims: Dims, index: int) -> str:
    axis = dims[index]
    return axis if isinstance(axis, str) else f"axis {index}" if axis is None else str(axis)


def _text(dims: Dims) -> str:
    return ", ".join("?" if axis is None else str(axis) for axis in dims)
