"""Which axes of a model's inputs may be the batch, judged by their symbols. Rules only; `batch` proves them by running.

An axis is an int (its size), a str (the symbol of a free axis) or None (a free axis without a symbol).
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping

Axis = int | str | None
Dims = tuple[Axis, ...]
BatchAxes = dict[str, int | None]

_BATCH = re.compile(r"^(n|b|bs|bsz)$|batch", re.IGNORECASE)
_OTHER = re.compile(r"seq|time|len|frame|height|width|step|token|^(t|h|w|l)$", re.IGNORECASE)


def is_free(axis: Axis) -> bool:
    """True for an axis without a fixed size."""
    return not isinstance(axis, int)


def likely_batches(inputs: Mapping[str, Dims]) -> list[BatchAxes]:
    """The batch axis of each input by hypothesis, the likeliest hypothesis first; empty where nothing looks like one.

    A symbol that several inputs share, or that is named as a batch, is likelier than one that only comes first: in
    (T, N, C) with a state (1, N, H) the batch is N. A symbol that is named as another axis, or that never comes first
    and is not shared, such as the width of an image, is no hypothesis unless it is first in its input.
    """
    found: list[BatchAxes] = []
    for symbol in sorted(_symbols(inputs), key=lambda one: _rank(one, inputs)):
        if _rank(symbol, inputs)[0] == 2 and not _comes_first(symbol, inputs):
            continue
        axes = {name: _axis_of(symbol, dims) for name, dims in inputs.items()}
        if axes not in found:
            found.append(axes)
    if any(dims[:1] == (None,) for dims in inputs.values()):
        first = {name: _first_unnamed(dims) for name, dims in inputs.items()}
        found += [first] if first not in found else []
    return found


def is_batch_name(axis: Axis) -> bool:
    """True for a symbol that says that it is a batch."""
    return isinstance(axis, str) and bool(_BATCH.search(axis))


def _comes_first(symbol: str, inputs: Mapping[str, Dims]) -> bool:
    """True if the symbol is the first axis wherever it stands, and no other free axis comes first."""
    holders = [dims for dims in inputs.values() if symbol in dims]
    others = [dims for dims in inputs.values() if dims and dims[0] != symbol and is_free(dims[0])]
    return all(dims[0] == symbol for dims in holders) and not others


def _first_unnamed(dims: Dims) -> int | None:
    """The first axis if it is free; else the only free axis, as in a state (2, ?, 128)."""
    free = [index for index, axis in enumerate(dims) if axis is None]
    return free[0] if free[:1] == [0] or len(free) == 1 else None


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


def names_in(axis: Axis) -> set[str]:
    """The symbols in an axis such as ``past + 1``; empty for a plain symbol and for what is no arithmetic."""
    tree = _arithmetic(axis)
    if tree is None or isinstance(tree, ast.Name):
        return set()
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - {"floor", "ceil"}


def evaluated(axis: str, sizes: Mapping[str, int]) -> int | None:
    """The size of an axis that is a symbol or arithmetic on symbols; None where a size is missing."""
    if axis in sizes:
        return sizes[axis]
    tree = _arithmetic(axis)
    value = None if tree is None else _value(tree, sizes)
    return int(value) if value is not None and value >= 1 and value == int(value) else None


def _arithmetic(axis: Axis) -> ast.expr | None:
    try:
        return ast.parse(axis, mode="eval").body if isinstance(axis, str) else None
    except (SyntaxError, ValueError):
        return None


def _value(node: ast.expr, sizes: Mapping[str, int]) -> float | None:
    """The value of the arithmetic that exporters write: + - * / // floor() ceil()."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, int) else None
    if isinstance(node, ast.Name):
        return sizes.get(node.id)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) == 1:
        inner = _value(node.args[0], sizes)
        rounded = {"floor": math.floor, "ceil": math.ceil}.get(node.func.id)
        return None if inner is None or rounded is None else rounded(inner)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        left, right = _value(node.left, sizes), _value(node.right, sizes)
        division = isinstance(node.op, ast.Div | ast.FloorDiv)
        return (
            None
            if left is None or right is None or (division and not right)
            else _OPERATIONS[type(node.op)](left, right)
        )
    return None


_OPERATIONS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


def open_axes(inputs: Mapping[str, Dims], batch: Mapping[str, int | None]) -> dict[str, list[int]]:
    """The free axes of each input that are not its batch."""
    found = {
        name: [index for index, axis in enumerate(dims) if is_free(axis) and index != batch.get(name)]
        for name, dims in inputs.items()
    }
    return {name: axes for name, axes in found.items() if axes}
