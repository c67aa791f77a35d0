"""Shapes that a graph computes, element by element: which of them follow the channels, and which can be lowered.

A Reshape or Expand gets its shape from a constant, or from a Concat of constants and of sizes that a Shape reads. Such
a size follows removed channels by itself. A constant in a Concat is lowered, for all readers of the Concat alike.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from converters.graph.graph import attributes
from converters.passes.channels.groups import Channels, Element
from edgekit.tensors import Array

SHAPED = ("Expand", "Reshape")
PASSED = ("Cast", "Identity", "Squeeze", "Unsqueeze")  # operators that leave a vector of sizes as it is
FORMED = (*PASSED, "Concat", "Gather", "Slice")  # operators that make vectors of sizes of others
MOST_AXES = 32  # longer vectors are no sizes
UNKNOWN = Element()


def elements(channels: Channels, name: str) -> list[Element] | None:
    """The elements of a vector of sizes; None where their number is unknown."""
    value, node = channels.graph.constants.get(name), channels.made_by(name)
    if value is not None:
        known = value.dtype.kind == "i" and value.size <= MOST_AXES
        return [Element(value=int(one)) for one in value.ravel()] if known else None
    op = node.op_type if node is not None else ""
    if op == "Shape" and node.input[0] in channels.sizes:
        rank, given = len(channels.sizes[node.input[0]]), attributes(node)
        axes = range(rank)[given.get("start", 0) : given.get("end", rank)]
        return [Element(tensor=node.input[0], axis=axis) for axis in axes]
    if op == "Concat":
        return _joined(channels, node)
    found = elements(channels, node.input[0]) if op in (*PASSED, "Gather", "Slice") else None
    if found is not None and op not in PASSED:
        found = _picked(channels, node, found)
    sizes = channels.sizes.get(name, (None,))
    count = math.prod(size or 0 for size in sizes)
    return found or ([UNKNOWN] * count if None not in sizes and count <= MOST_AXES else None)


def _joined(channels: Channels, node: Any) -> list[Element] | None:
    found: list[Element] = []
    for input_index, name in enumerate(node.input):
        part = elements(channels, name)
        if part is None:
            return None
        if name in channels.graph.constants:
            number = channels.number_of(node)
            part = [msgspec.structs.replace(one, place=(number, input_index, at)) for at, one in enumerate(part)]
        found += part
    return found


def _picked(channels: Channels, node: Any, given: list[Element]) -> list[Element] | None:
    """The elements that Gather or Slice picks; None where that is not constant."""
    values = [channels.graph.constants.get(name) for name in node.input[1:]]
    if node.op_type == "Gather":
        indices = [] if values[0] is None else [int(index) for index in values[0].ravel()]
        return [given[index] if -len(given) <= index < len(given) else UNKNOWN for index in indices]
    if any(value is None or value.size != 1 for value in values) or len(values) < 2:
        return None
    numbers = [int(value.item()) for value in values if value is not None]
    return given[numbers[0] : numbers[1] : numbers[3] if len(numbers) > 3 else 1]


def follows(channels: Channels, node: Any, axis: int, ids: Array, *, copied: bool) -> bool:
    """True if the shape that Reshape or Expand `node` gets follows the channels `ids` (L,) along `axis`.

    Args:
        channels: The channels; a constant that has to be lowered is added to `counts`.
        node: The node, whose shape is no constant.
        axis, ids: The channels of its output.
        copied: A 0 in the shape copies their number from the input.
    """
    found = elements(channels, node.input[1])
    if found is None or axis >= len(found):
        return False
    for at, one in enumerate(found):
        lanes = channels.lanes.get(one.tensor)
        if at != axis and lanes is not None and lanes.axis == one.axis:
            return False  # this size would shrink with channels that are not along this axis
    one = found[axis]
    if one.tensor:
        lanes = channels.lanes.get(one.tensor)
        if lanes is None or lanes.axis != one.axis or len(lanes.ids) != len(ids):
            return False
        channels.unite(lanes.ids, ids)
    elif one.value == -1 or (one.value == 0 and copied) or (one.value == 1 and node.op_type == "Expand"):
        return True
    elif one.value != len(ids) or not _counted(channels, one, ids):
        return False
    channels.accepted.add((node.output[0], one))
    return True


def _counted(channels: Channels, one: Element, ids: Array) -> bool:
    """Lower the constant `one` of a Concat with the channels `ids`; every reader of the Concat has to agree."""
    if one.place is None:
        return False
    readers = channels.graph.consumers(channels.graph.nodes[one.place[0]].output[0])
    if any(reader.op_type not in SHAPED for reader in readers):
        return False
    if one.place in channels.counts:
        channels.unite(channels.counts[one.place], ids)
        return True
    channels.counts[one.place] = ids
    channels.expected += [(ids, reader.output[0], one) for reader in readers]
    return True


def shape_read(channels: Channels, number: int, node: Any) -> bool:
    """Shape whose readers take other sizes than that of the channels, or shape a tensor with it."""
    lanes, outputs = channels.lanes.get(node.input[0]), {value.name for value in channels.graph.model.graph.output}
    if lanes is None:
        return False
    wanted, pending = Element(tensor=node.input[0], axis=lanes.axis), [node.output[0]]
    while pending:
        name = pending.pop()
        if wanted not in (elements(channels, name) or [wanted]):
            continue
        if name in outputs:
            return False
        for reader in channels.graph.consumers(name):
            if reader.op_type in SHAPED and reader.input[0] != name:
                channels.expected.append((lanes.ids, reader.output[0], wanted))
            elif reader.op_type in FORMED:
                pending.append(reader.output[0])
            else:
                return False
    return True
