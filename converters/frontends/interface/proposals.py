"""Proposes sizes for free axes: the first sensible ones with which the model runs, as options ready to paste."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import onnx

from converters.frontends.interface.axes import BatchAxes, Dims, evaluated, likely_batches
from converters.frontends.interface.protobuf import copy_of, dims_of, dtype_of, inputs_of, set_dims
from converters.frontends.interface.trial import opened, plausible_row
from converters.frontends.likely_sizes import kind_of, likely_sizes
from edgekit.errors import EdgekitError, ModelFormatError

MOST_TRIALS = 24

Place = tuple[str, int]  # an input and one of its axes


def apply_symbols(model: onnx.ModelProto, symbols: Mapping[str, int]) -> None:
    """Replace the symbols of free axes, and arithmetic on them, by sizes."""
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.HasField("shape"):
            set_dims(
                value,
                tuple((evaluated(axis, symbols) or axis) if isinstance(axis, str) else axis for axis in dims_of(value)),
            )


def apply_sizes(model: onnx.ModelProto, values: Mapping[str, Any], sizes: Mapping[Place, int]) -> None:
    """Give axes their sizes, and all other axes that have the same symbols."""
    symbols = {}
    for (name, index), size in sizes.items():
        dims = dims_of(values[name])
        if isinstance(axis := dims[index], str):
            symbols[axis] = size
        set_dims(values[name], (*dims[:index], size, *dims[index + 1 :]))
    apply_symbols(model, symbols)


def likely_batch(values: Mapping[str, Any]) -> BatchAxes:
    """The likeliest batch axis of each input; empty where nothing looks like a batch."""
    hypotheses = likely_batches({name: dims_of(value) for name, value in values.items()})
    return hypotheses[0] if hypotheses else {}


def propose(model: onnx.ModelProto, values: Mapping[str, Any], free: Mapping[str, list[int]]) -> dict[Place, int]:
    """Sizes for free axes: the first sensible ones with which the model runs, else the first."""
    first: dict[Place, int] = {}
    for tried, sizes in enumerate(_candidates(model, values, free)):
        first = first or sizes
        if tried == MOST_TRIALS:
            break
        trial = copy_of(model)
        inputs = {value.name: value for value in inputs_of(trial)}
        apply_sizes(trial, inputs, sizes)
        try:
            with opened(trial) as runtime:
                runtime.run(plausible_row(trial, likely_batch(inputs), 0))
        except EdgekitError:
            continue
        return sizes
    return first


def _candidates(
    model: onnx.ModelProto, values: Mapping[str, Any], free: Mapping[str, list[int]]
) -> Iterator[dict[Place, int]]:
    """Combinations of sensible sizes for the free axes."""
    kinds = {
        (name, index): kind_of(len(dims_of(values[name])), index, floats=dtype_of(values[name]).numpy.kind == "f")
        for name, axes in free.items()
        for index in axes
    }
    return likely_sizes(kinds, maps=any(len(dims_of(value)) > 2 for value in model.graph.output))


def refusal(
    source: str, values: Mapping[str, Any], free: Mapping[str, list[int]], sizes: Mapping[Place, int], why: str
) -> ModelFormatError:
    """The error for the axes `free` without a size; `why` says more, and `sizes` are proposed."""
    axes = "; ".join(
        f"input {name} has the shape [{text_of(dims_of(values[name]))}] with the free "
        f"{'axis' if len(indices) == 1 else 'axes'} "
        + ", ".join(_axis_text(dims_of(values[name]), index) for index in indices)
        for name, indices in free.items()
    )
    return ModelFormatError(
        f"{source}: {axes}; expected only the batch to be free{why}",
        advice=f"Give their sizes, for example {' '.join(flags(values, free, sizes))}; "
        "or give --data with real samples, whose shapes are taken.",
    )


def flags(values: Mapping[str, Any], free: Mapping[str, list[int]], sizes: Mapping[Place, int]) -> list[str]:
    """The options that give `sizes`, ready to paste: one per symbol, or the shape of an input without symbols."""
    flags: dict[str, None] = {}
    for name, indices in free.items():
        dims = dims_of(values[name])
        if all(isinstance(dims[index], str) and re.fullmatch(r"[\w.]+", str(dims[index])) for index in indices):
            flags.update(dict.fromkeys(f"--dim {dims[index]}={sizes[name, index]}" for index in indices))
        else:
            shape = [axis if isinstance(axis, int) else sizes.get((name, index), 1) for index, axis in enumerate(dims)]
            text = f"{name}={','.join(map(str, shape))}"
            flags[f"--input-shape {_pasted(text)}"] = None
    return list(flags)


def _pasted(text: str) -> str:
    """`text` as a shell takes it; letters of other alphabets need no quotes."""
    return text if re.fullmatch(r"[\w:./,=@%+-]+", text) else shlex.quote(text)


def _axis_text(dims: Dims, index: int) -> str:
    return f"{index} ({dims[index]})" if dims[index] else str(index)


def axis_name(dims: Dims, index: int) -> str:
    """The name of an axis for messages."""
    axis = dims[index]
    return axis if isinstance(axis, str) else f"axis {index}" if axis is None else str(axis)


def text_of(dims: Dims) -> str:
    """Axes as text."""
    return ", ".join("?" if axis is None else str(axis) for axis in dims)
