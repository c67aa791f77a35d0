"""Numbers in another element type than the model's: which are taken, and what is said of the others."""

from __future__ import annotations

import numpy as np

from edgekit.tensors import Array, TensorSpec

LOST_SHARE = 1e-3  # of the spread of an input, which rounding to float32 may take


def in_type(value: Array, dtype: np.dtype) -> Array:
    """The same numbers in the model's type, or `value` as it is where `unfit` says why that cannot be.

    Integers and booleans are taken where all of them are in range, floats are rounded to the nearest number that the
    type has and must stay finite. Integers do not become floats: nobody can tell whether the model wants them scaled.
    """
    if value.dtype == dtype or _class(value.dtype) != _class(dtype) or _beyond(value, dtype):
        return value
    with np.errstate(over="ignore"):  # an infinity that was there is told by the check for finite values
        return value.astype(dtype)


def unfit(spec: TensorSpec, value: Array) -> list[str]:
    """Advice for the arrays that `in_type` left alone; empty where there is nothing to advise."""
    dtype = spec.dtype.numpy
    if value.dtype == dtype:
        return _moved_channels(spec, value)
    if _class(value.dtype) == "integer" and _class(dtype) == "float":
        return [
            f"Save {spec.name} as the model was trained: x.astype('{dtype}') where it takes the numbers as they are, "
            "or scaled (for example x / 255). Or let --preprocess do this on devices too."
        ]
    if _class(value.dtype) == _class(dtype) and value.size:
        return [f"{spec.name} holds {value.min()} to {value.max()}, which {dtype} cannot hold."]
    return []


def lost_in_float32(name: str, value: Array) -> str:
    """The loss of an input (N, ...) in float64 by float32, where it is more than a share of its spread; else empty.

    Time stamps are an example: near 1.7e9 seconds, float32 has steps of 128.
    """
    taken = value.dtype == np.float64 and value.size and np.isfinite(value).all()
    if not taken or _beyond(value, np.dtype(np.float32)):
        return ""
    columns = value.reshape(len(value), -1)
    lost = np.abs(columns - columns.astype(np.float32)).max(axis=0)
    spread = columns.std(axis=0)
    worst = int(np.argmax(lost / np.maximum(spread, np.finfo(np.float64).tiny)))
    if lost[worst] <= LOST_SHARE * spread[worst] or not spread[worst]:
        return ""
    return (
        f"float32 rounds values of input {name} near {columns[0, worst]:.4g} by up to {lost[worst]:.3g}, and they "
        f"spread by only {spread[worst]:.3g}"
    )


def _beyond(value: Array, dtype: np.dtype) -> bool:
    """True where a number leaves the range of the type."""
    if not value.size:
        return False
    if dtype.kind == "f":
        finite = value[np.isfinite(value)]
        return bool(finite.size) and float(np.abs(finite).max()) > float(np.finfo(dtype).max)
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return int(value.min()) < low or int(value.max()) > high


def _class(dtype: np.dtype) -> str:
    """Integer (booleans too), float, or another kind."""
    return {"i": "integer", "u": "integer", "b": "integer", "f": "float"}.get(dtype.kind, dtype.kind)


def _moved_channels(spec: TensorSpec, value: Array) -> list[str]:
    """Advice for an array of the model's type whose channels are at the other end."""
    if value.ndim < 3 or len(spec.shape) != value.ndim or not spec.faults(value):
        return []
    last = value.ndim - 1
    for order in ((0, last, *range(1, last)), (0, *range(2, last + 1), 1)):
        sizes = [value.shape[axis] for axis in order]
        if all(size in (None, found) for size, found in zip(spec.shape[1:], sizes[1:], strict=True)):
            return [f"The channels are on another axis: save {spec.name}.transpose{order}."]
    return []
