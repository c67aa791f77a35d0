"""Runs a model on one and on two rows of plausible inputs, to see which axes are the batch."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx

from converters.frontends.interface.axes import BatchAxes, Dims
from converters.frontends.interface.protobuf import (
    copy_of,
    dims_of,
    drop_stored_shapes,
    dtype_of,
    inputs_of,
    is_zero,
    set_dims,
)
from converters.trials import SourceSession
from edgekit.errors import RuntimeLoadError
from edgekit.tensors import Array, DType

NEWEST_IR = 11  # of the file format, that ONNX Runtime reads
SMALLEST = 1e-7
RATES, USUAL_RATE = re.compile(r"^(sr|fs)$|sampl\w*_?rate", re.IGNORECASE), 16000  # of sound, in Hz
LENGTHS = re.compile(r"len|size|count", re.IGNORECASE)


@contextlib.contextmanager
def opened(model: onnx.ModelProto) -> Iterator[SourceSession]:
    """`model` in ONNX Runtime; its outputs may have any sizes, and its inputs too where it does not load otherwise.

    Raises:
        RuntimeLoadError: ONNX Runtime cannot load it.
        ConversionError: ONNX Runtime ended its process.
    """
    free = copy_of(model)
    free.ir_version = min(free.ir_version, NEWEST_IR)
    _free_sizes(free.graph.output)
    _free_sizes([value for value in inputs_of(free) if any(map(is_zero, value.type.tensor_type.shape.dim))])
    drop_stored_shapes(free)
    try:
        session = SourceSession(free.SerializeToString())
    except RuntimeLoadError:  # with known sizes, the branches of an If may contradict each other
        _free_sizes(inputs_of(free))
        session = SourceSession(free.SerializeToString())
    with session:
        yield session


def _free_sizes(values: Iterable[Any]) -> None:
    for value in values:
        if value.type.tensor_type.HasField("shape"):
            set_dims(value, tuple(None for _ in dims_of(value)))


def with_free_batch(model: onnx.ModelProto, batch: BatchAxes) -> onnx.ModelProto:
    """A copy whose inputs have a free batch."""
    made = copy_of(model)
    for value in inputs_of(made):
        axis = batch.get(value.name)
        if axis is not None:
            dims = dims_of(value)
            set_dims(value, (*dims[:axis], None, *dims[axis + 1 :]))
    return made


def plausible_row(model: onnx.ModelProto, batch: BatchAxes, seed: int) -> dict[str, Array]:
    """One row of seeded inputs; an input without a batch has the same values for every seed."""
    made = {}
    for number, value in enumerate(inputs_of(model)):
        axis, dims = batch.get(value.name), dims_of(value)
        rng = np.random.default_rng([number, seed if axis is not None else 0])
        made[value.name] = _plausible(value, dims, rng)
    return made


def _plausible(value: Any, dims: Dims, rng: np.random.Generator) -> Array:
    shape = [axis if isinstance(axis, int) else 1 for axis in dims]
    dtype = dtype_of(value)
    if dtype is DType.BYTES:
        return np.full(shape, "a", object)
    kind = dtype.numpy.kind
    if kind == "f":
        return rng.normal(0.0, 0.5, shape).astype(dtype.numpy)
    if kind == "b":
        return np.ones(shape, dtype.numpy)
    if kind in "iu" and RATES.search(value.name):
        return np.full(shape, USUAL_RATE, dtype.numpy)
    low = 1 if LENGTHS.search(value.name) else 0
    return rng.integers(low, 2, shape).astype(dtype.numpy)


def joined(rows: list[dict[str, Array]], batch: BatchAxes) -> dict[str, Array]:
    """Several rows as the inputs of one run."""
    return {
        name: value if (axis := batch.get(name)) is None else np.concatenate([row[name] for row in rows], axis)
        for name, value in rows[0].items()
    }


def same(first: Array, second: Array, noise: float) -> bool:
    """True if two answers of equal shape differ by at most `noise`, as a share of the largest finite one."""
    if first.dtype.kind != "f":
        return bool(np.array_equal(first, second))
    limit = SMALLEST + noise * float(np.abs(first[np.isfinite(first)]).max(initial=0.0))
    return bool(np.allclose(first, second, rtol=0.0, atol=limit, equal_nan=True))
