"""Numbers in another element type than the model's: which are taken, and what is said of the others."""

from __future__ import annotations

import numpy as np

from edgekit.tensors import Array, TensorSpec


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
        return []
    if _class(value.dtype) == "integer" and _class(dtype) == "float":
        return [
            f"Save {spec.name} as the model was trained: x.astype('{dtype}') where it takes the numbers as they are, "
            "or scaled (for example x / 255). Or let --preprocess do this on devices too."
        ]
    if _class(value.dtype) == _class(dtype) and value.size:
        return [f"{spec.name} holds {value.min()} to {value.max()}, which {dtype} cannot hold."]
    return []


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
