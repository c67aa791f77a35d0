"""The values that the graph expects of each input: rows of a table, pixels, flags, sounds. Rules only."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import numpy as np

from converters.graph.graph import Graph, attributes
from edgekit.tensors import Array, TensorSpec

# Operators whose output has the values of their first input.
SAME_VALUES = {
    "Cast", "Concat", "Expand", "Flatten", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Tile",
    "Transpose", "Unsqueeze",
}  # fmt: skip
AFFINE = {"Add", "Sub", "Mul", "Div", "Neg"}
COMPARISONS = {"Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Where", "And", "Or", "Not", "Xor"}
LONGEST_WALK = 200  # nodes looked at behind one input
NORMAL_LIMIT = 3.0  # floats without a sign of another range: standard normal, cut at 3
PIXEL, WHOLE = (0.0, 255.0), (0.0, 9.0)
MASK_NAME = re.compile(r"mask", re.IGNORECASE)
LENGTH_NAME = re.compile(r"(^|[_./])(len|lens|length|lengths|seq_?len\w*)($|[_./:])|length", re.IGNORECASE)
POSITION_NAME = re.compile(r"position", re.IGNORECASE)
SOUND_NAME = re.compile(r"audio|wav|sound|speech|pcm|signal", re.IGNORECASE)


class InputRange(msgspec.Struct, frozen=True):
    """The plausible values of one input.

    Attributes:
        kind: ``uniform``, ``whole`` (whole numbers, also in a float input), ``normal``, ``flag`` (0 or 1), ``mask``
            (ones, then zeros), ``length``, ``position`` (0, 1, 2, ...) or ``choice``.
        low, high: Both ends, included; for ``normal`` the cut.
        values: The values of ``choice``.
        selects: The values select rows or classes, which ONNX may count from the end.
    """

    kind: str
    low: float = 0.0
    high: float = 1.0
    values: tuple[float, ...] = ()
    selects: bool = False


class _Line(msgspec.Struct, frozen=True):
    """A tensor as slope * input + offset."""

    tensor: str
    slope: float = 1.0
    offset: float = 0.0
    changed: bool = False

    def input_for(self, value: float) -> float:
        return (value - self.offset) / self.slope if self.slope else 0.0


def input_ranges(graph: Graph, *, negative_indices: bool = False) -> dict[str, InputRange]:
    """The plausible values of each input of `graph`, by its name.

    Args:
        graph: The canonical graph.
        negative_indices: Rows may be counted from the end, as ONNX allows where no table of trained rows is read.
    """
    readers: dict[str, list[Any]] = {}
    for node in graph.nodes:
        for name in set(node.input):
            readers.setdefault(name, []).append(node)
    walk = _Walk(readers, graph.constants, graph.shapes, negative_indices)
    return {spec.name: _range_of(spec, walk) for spec in graph.inputs}


class _Walk:
    """Follows an input through operators that keep its values or change them by a line."""

    def __init__(
        self,
        readers: Mapping[str, list[Any]],
        constants: Mapping[str, Array],
        shapes: Mapping[str, tuple[int | None, ...]],
        negative: bool,
    ) -> None:
        self._readers, self._constants, self._shapes, self._negative = readers, constants, shapes, negative

    def uses(self, name: str) -> Iterator[tuple[Any, _Line]]:
        """The nodes that read the input, or a line of it, and are no line themselves."""
        pending, seen = [_Line(name)], 0
        while pending and seen < LONGEST_WALK:
            line = pending.pop(0)
            for node in self._readers.get(line.tensor, ()):
                seen += 1
                following = self._follow(node, line)
                if following is None:
                    yield node, line
                else:
                    pending.append(following)

    def _follow(self, node: Any, line: _Line) -> _Line | None:
        if node.op_type in SAME_VALUES and (node.input[0] == line.tensor or node.op_type == "Concat"):
            return msgspec.structs.replace(line, tensor=node.output[0])
        if node.op_type not in AFFINE:
            return None
        other = next((name for name in node.input if name != line.tensor), None)
        if node.op_type == "Neg":
            return _Line(node.output[0], -line.slope, -line.offset, True)
        if other is None or other not in self._constants or not self._constants[other].size:
            return None
        value = float(np.mean(self._constants[other], dtype=np.float64))
        return _affine(node, line, value, first=node.input[0] == line.tensor)

    def rows(self, node: Any, line: _Line) -> tuple[float, float] | None:
        """First and last index that `node` accepts where it reads the line as an index; None where it does not."""
        if node.op_type not in ("Gather", "GatherElements", "GatherND", "OneHot", "ScatterElements", "ScatterND"):
            return None
        if line.tensor not in list(node.input)[0 if node.op_type == "OneHot" else 1 : 2]:
            return None
        if node.op_type == "OneHot":
            depth = self._constants.get(node.input[1])
            if line.tensor != node.input[0] or depth is None:
                return None
            return 0.0, float(depth.reshape(-1)[0]) - 1
        shape = self._shapes.get(node.input[0], ())
        sizes = shape if node.op_type.endswith("ND") else shape[attributes(node).get("axis", 0) :][:1]
        count = min((size for size in sizes if size), default=0)
        if not count:
            return None
        trained = node.input[0] in self._constants
        return (0.0 if trained or not self._negative else -float(count)), float(count - 1)

    def compared_with(self, node: Any, line: _Line) -> list[float]:
        """The constants that `node` compares the line with, as values of the input."""
        if node.op_type not in COMPARISONS:
            return []
        others = [self._constants[name] for name in node.input if name in self._constants]
        return [line.input_for(float(value.reshape(-1)[0])) for value in others if value.size == 1]


def _affine(node: Any, line: _Line, value: float, *, first: bool) -> _Line | None:
    slope, offset = line.slope, line.offset
    if node.op_type == "Add":
        offset += value
    elif node.op_type == "Sub":
        slope, offset = (slope, offset - value) if first else (-slope, value - offset)
    elif node.op_type == "Mul":
        slope, offset = slope * value, offset * value
    elif not first or not value:
        return None
    else:
        slope, offset = slope / value, offset / value
    return _Line(node.output[0], slope, offset, True)


def _range_of(spec: TensorSpec, walk: _Walk) -> InputRange:
    uses = list(walk.uses(spec.name))
    one = _any_range(spec, walk, uses)
    if spec.dtype.numpy.kind in "iu" and one.kind == "whole" and any(_divides(node, line) for node, line in uses):
        return msgspec.structs.replace(one, low=max(one.low, 1.0), high=max(one.high, 1.0))
    return one


def _divides(node: Any, line: _Line) -> bool:
    """True if the input itself is a divisor."""
    return node.op_type in ("Div", "Mod") and line.tensor in list(node.input)[1:] and not line.changed


def _any_range(spec: TensorSpec, walk: _Walk, uses: list[tuple[Any, _Line]]) -> InputRange:
    kind = spec.dtype.numpy.kind
    rows = [
        (line.input_for(low), line.input_for(high)) for node, line in uses for low, high in _some(walk.rows(node, line))
    ]
    if MASK_NAME.search(spec.name) and not rows:
        return InputRange("mask")
    if kind == "b":
        return InputRange("flag")
    if rows:
        low, high = max(min(pair) for pair in rows), min(max(pair) for pair in rows)
        if POSITION_NAME.search(spec.name):
            return InputRange("position", 0.0, high)
        return InputRange("whole", float(np.ceil(low)), float(np.floor(high)), selects=True)
    if kind in "iu":
        return _whole_range(spec, walk, uses)
    return _float_range(spec, uses)


def _whole_range(spec: TensorSpec, walk: _Walk, uses: list[tuple[Any, _Line]]) -> InputRange:
    if LENGTH_NAME.search(spec.name):
        return InputRange("length")
    if POSITION_NAME.search(spec.name):
        return InputRange("position", 0.0, float("inf"))
    compared = sorted({value for node, line in uses for value in walk.compared_with(node, line)})
    if compared and all(node.op_type in COMPARISONS for node, _ in uses):
        if len(spec.shape) <= 1:
            return InputRange("choice", values=tuple(compared))
        return InputRange("whole", min(0.0, compared[0]), compared[-1] + 2)
    if any(line.changed and abs(line.slope + line.offset) < 1e-6 * abs(line.slope) for _, line in uses):
        return InputRange("mask")  # (1 - mask) * -10000
    limits = np.iinfo(spec.dtype.numpy)
    if limits.bits == 8:
        return InputRange("whole", float(limits.min), float(limits.max))
    scaled = _scaled(uses)
    if scaled is not None:
        return msgspec.structs.replace(scaled, kind="whole")
    picture = len(spec.shape) == 4 and (1 in spec.shape or 3 in spec.shape)
    low, high = PIXEL if picture else WHOLE
    return InputRange("whole", low, high)


def _float_range(spec: TensorSpec, uses: list[tuple[Any, _Line]]) -> InputRange:
    if SOUND_NAME.search(spec.name):
        return InputRange("normal", -1.0, 1.0)
    return _scaled(uses) or InputRange("normal", -NORMAL_LIMIT, NORMAL_LIMIT)


def _scaled(uses: list[tuple[Any, _Line]]) -> InputRange | None:
    """The range that a first normalization of the graph shows: pixels from 0 to 255, or shares from 0 to 1."""
    for _, line in uses:
        if not line.changed or not line.slope:
            continue
        width, center = 1 / abs(line.slope), -line.offset / line.slope
        if center >= 0 and (width >= 32 or center >= 32):
            return InputRange("uniform", *PIXEL)
        if 0.2 <= center <= 0.8 and width <= 1.0:
            return InputRange("uniform", 0.0, 1.0)
    return None


def _some(pair: tuple[float, float] | None) -> list[tuple[float, float]]:
    return [] if pair is None else [pair]
