"""Finds the operators that must stay float in a static int8 model, whatever runtime it is for.

Attention masks add a huge negative constant to scores, and a softmax makes 0 of it. One 8-bit scale for such a sum
would leave a single step for all real scores. So the operators from the constant to the softmax stay float.

Normalizations divide by the root of a mean square. Squares have twice the range of their roots in powers of two, and a
reciprocal root is steepest at its smallest values. So the operators from the square to the scaled result stay float.

A divisor that is small beside the largest one is 0 in 8 bits: LiteRT does not run such a division.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import msgspec

from converters.graph.graph import Graph, label

LOWEST_SCORE = -9000.0  # masks use -10,000, -1e9, the lowest float and minus infinity
HIGHEST_FACTOR = 1e8  # (mask - 1) * 1e9; smaller constants may scale audio or pixels
NORMALIZED = 4  # operators from a root to the end of a normalization: factor, product, product, shift

# Kinds of operators by name, of ONNX and of LiteRT.
SUMS = ("Add", "Sub", "ADD", "SUB")
DIVISIONS = ("Div", "DIV")
PRODUCTS = ("Mul", "Div", "MUL", "DIV")
CHOICES = ("Where", "Max", "Min", "SELECT", "SELECT_V2", "MAXIMUM", "MINIMUM")
MOVES = ("Concat", "Expand", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze",
         "BROADCAST_TO", "CONCATENATION", "EXPAND_DIMS", "PACK", "RESHAPE", "SLICE", "SQUEEZE", "STRIDED_SLICE", "TILE",
         "TRANSPOSE")  # fmt: skip
SOFTMAXES = ("Softmax", "LogSoftmax", "SOFTMAX", "LOG_SOFTMAX")
ROOTS = ("Sqrt", "Reciprocal", "SQRT", "RSQRT")
POWERS = ("Pow", "POW")
MEANS = ("ReduceMean", "ReduceSum", "MEAN", "SUM")
SQUARES = ("SQUARE", "SQUARED_DIFFERENCE", "ReduceL2", "ReduceSumSquare")


class Step(msgspec.Struct, frozen=True):
    """One operator: its kind, and the names of the tensors that it reads and makes."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


Limits = Mapping[str, tuple[float, float]]  # smallest and largest value of each float constant


def masked(steps: Sequence[Step], limits: Limits) -> set[int]:
    """Indices of the steps from a huge constant to the softmax that removes its effect, the softmax included.

    Args:
        steps: The operators in order of execution.
        limits: The limits of each constant.
    """
    found: set[int] = set()
    paths: dict[str, frozenset[int]] = {name: frozenset() for name, range_ in limits.items() if is_huge(range_)}
    for index, step in enumerate(steps):
        read = [paths[name] for name in step.inputs if name in paths]
        if not read:
            continue
        path = frozenset({index}).union(*read)
        if step.kind in SOFTMAXES:
            found |= path
        elif step.kind in (*SUMS, *PRODUCTS, *CHOICES, *MOVES):
            paths.update(dict.fromkeys(step.outputs, path))
    return found


def is_huge(limits: tuple[float, float]) -> bool:
    """True for the limits of a constant that masks scores."""
    return limits[0] <= LOWEST_SCORE or limits[1] >= HIGHEST_FACTOR


def normalizing(steps: Sequence[Step], limits: Limits) -> set[int]:
    """Indices of the steps of normalizations: the centred values, squares, means, roots, products and shifts."""
    makers = {name: index for index, step in enumerate(steps) for name in step.outputs}
    readers: dict[str, list[int]] = defaultdict(list)
    for index, step in enumerate(steps):
        for name in set(step.inputs):
            readers[name].append(index)
    found: set[int] = set()
    for index, step in enumerate(steps):
        rooted = step.kind in ROOTS or _power(step, limits) in (0.5, -0.5)
        before = _to_square(steps, makers, limits, index) if rooted else set()
        if before:
            found |= before | {index} | _to_shift(steps, readers, index, NORMALIZED)
    return found


def dividing(steps: Sequence[Step], limits: Limits) -> set[int]:
    """Indices of the divisions by values that depend on the inputs: in 8 bits a small divisor is 0.

    Args:
        steps: The operators in order of execution.
        limits: The limits of each constant.
    """
    return {index for index, step in enumerate(steps) if step.kind in DIVISIONS and step.inputs[1] not in limits}


def _power(step: Step, limits: Limits) -> float | None:
    """The constant exponent of a power; None for any other step."""
    exponent = limits.get(step.inputs[1]) if step.kind in POWERS else None
    return exponent[0] if exponent is not None and exponent[0] == exponent[1] else None


def _to_square(steps: Sequence[Step], makers: Mapping[str, int], limits: Limits, root: int) -> set[int]:
    """The steps from the square to the step `root`, with those that centre the squared values; empty if no square."""
    found: set[int] = set()
    queue, squares = [makers[name] for name in steps[root].inputs if name in makers], []
    while queue:
        index = queue.pop()
        step = steps[index]
        if _is_square(step, limits):
            squares.append(index)
        elif step.kind in (*SUMS, *MEANS, *CHOICES, *ROOTS) and index not in found:
            found.add(index)
            queue += [makers[name] for name in step.inputs if name in makers]
        elif step.kind not in MOVES:
            return set()
    if not squares:
        return set()
    for square in squares:
        found.add(square)
        for centred in (makers[name] for name in steps[square].inputs if name in makers):
            if steps[centred].kind in SUMS and (means := _means(steps, makers, centred)):
                found |= {centred} | means
    return found


def _is_square(step: Step, limits: Limits) -> bool:
    same = step.kind in PRODUCTS and len(set(step.inputs)) == 1
    return same or step.kind in SQUARES or _power(step, limits) == 2.0


def _means(steps: Sequence[Step], makers: Mapping[str, int], centred: int) -> set[int]:
    """The mean that step `centred` subtracts."""
    found = set()
    for index in (makers[name] for name in steps[centred].inputs if name in makers):
        if steps[index].kind in MEANS:
            found.add(index)
    return found


def _to_shift(steps: Sequence[Step], readers: Mapping[str, Sequence[int]], start: int, left: int) -> set[int]:
    """The products after a root, up to the first sum."""
    found: set[int] = set()
    for index in (reader for name in steps[start].outputs for reader in readers.get(name, ())) if left else ():
        if steps[index].kind in SUMS:
            found.add(index)
        elif steps[index].kind in (*PRODUCTS, *ROOTS):
            found |= {index} | _to_shift(steps, readers, index, left - 1)
    return found


def steps_of(graph: Graph) -> tuple[list[Step], dict[str, tuple[float, float]]]:
    """The operators of an ONNX graph in order, and the limits of its float constants."""
    steps = [Step(node.op_type, tuple(node.input), tuple(node.output)) for node in graph.nodes]
    floats = {name: value for name, value in graph.constants.items() if value.dtype.kind == "f" and value.size}
    return steps, {name: (float(value.min()), float(value.max())) for name, value in floats.items()}


def masking_nodes(graph: Graph) -> set[str]:
    """Labels of the nodes of `graph` that must stay float because of a mask. See `masked`."""
    nodes = graph.nodes
    return {label(nodes[index]) for index in masked(*steps_of(graph))}
