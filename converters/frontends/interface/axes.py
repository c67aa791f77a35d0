"""Which axes of a model's inputs may be the batch, judged by their symbols. Rules only; `batch` proves them by running.

An axis is an int (its size), a str (the symbol of a free axis) or None (a free axis without a symbol).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

Axis = int | str | None
Dims = tuple[Axis, ...]
BatchAxes = dict[str, int | None]

_BATCH = re.compile(r"^(n|b|bs|bsz)$|batch", re.IGNORECASE)
_OTHER = re.compile(r"seq|time|len|frame|height|width|step|token|^(t|h|w|l)$", re.IGNORECASE)


def is_free(axis: Axis) -> bool:
    """True for an axis without a fixed size."""
    return not isinstance(axis, int)


def likely_batches(inputs: Mapping[str, Dims]) -> list[BatchAxes]:
    """The batch axis of each input by hypothesis, the likeliest hypothesis first; empty without free axes.

    A symbol that several inputs share, or that is named as a batch, is likelier than one that only comes first: in
    (T, N, C) with a state (1, N, H) the batch is N. Axes without symbols are the batch where they are first free.
    """
    found: list[BatchAxes] = []
    for symbol in sorted(_symbols(inputs), key=lambda one: _rank(one, inputs)):
        other = _rank(symbol, inputs)[0] == 2  # named as another axis: the batch only where it comes first
        if other and any(dims and dims[0] != symbol and is_free(dims[0]) for dims in inputs.values()):
            continue
        axes = {name: _axis_of(symbol, dims) for name, dims in inputs.items()}
        if axes not in found:
            found.append(axes)
    first = {
        name: next((index for index, axis in enumerate(dims) if axis is None), None) for name, dims in inputs.items()
    }
    if any(index is not None for index in first.values()) and first not in found:
        found.append(first)
    return found


def _symbols(inputs: Mapping[str, Dims]) -> list[str]:
    return list(dict.fromkeys(axis for dims in inputs.values() for axis in dims if isinstance(axis, str)))


def _rank(symbol: str, inputs: Mapping[str, Dims]) -> tuple[int, int, int]:
    """Small for a likely batch: by its name, how far back it stands, and how many inputs lack it."""
    positions = [dims.index(symbol) for dims in inputs.values() if symbol in dims]
    lacking = sum(1 for dims in inputs.values() if dims and symbol not in dims)
    if _BATCH.search(symbol):
        kind = 0
    elif _OTHER.search(symbol):
        kind = 2
    else:
        kind = 1 if min(positions) == 0 or len(positions) > 1 else 2
    shared_elsewhere = len(positions) > 1 and len(set(positions)) > 1
    return (kind, 0 if shared_elsewhere else max(positions), lacking)


def _axis_of(symbol: str, dims: Dims) -> int | None:
    """The axis of `symbol`; without it the first axis if it is free and not named as another, or the only free one."""
    if symbol in dims:
        return dims.index(symbol)
    free = [index for index, axis in enumerate(dims) if is_free(axis)]
    if free[:1] == [0]:
        return None if isinstance(dims[0], str) and _OTHER.search(dims[0]) else 0
    return free[0] if len(free) == 1 and dims[free[0]] is None else None


def open_axes(inputs: Mapping[str, Dims], batch: Mapping[str, int | None]) -> dict[str, list[int]]:
    """The free axes of each input that are not its batch."""
    found = {
        name: [index for index, axis in enumerate(dims) if is_free(axis) and index != batch.get(name)]
        for name, dims in inputs.items()
    }
    return {name: axes for name, axes in found.items() if axes}
