"""Lists of tensors (ONNX sequences) whose length is known, which exporters write for ``split`` and ``chunk``.

Runtimes of devices have no lists. Split, Concat and the tensors themselves take their place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from converters.frontends.onnx.known_values import known_values
from converters.frontends.onnx.nodes import attribute_of, drop_unread, free_name, taken_names
from converters.frontends.onnx.shapes import known_shapes
from edgekit.tensors import Array

READERS = ("SequenceAt", "ConcatFromSequence", "SequenceLength")
DEEPEST = 1000  # sequences in a row that are made of each other


def with_tensors(model: onnx.ModelProto, source: str) -> onnx.ModelProto:
    """The model with tensors in place of sequences, as far as their lengths and the places in them are known.

    Args:
        model: A model with operator set 17 or newer; the same one is returned where it reads no sequence.
        source: Its path, for messages.

    Raises:
        ModelFormatError: A node does not accept its inputs.
    """
    before = -1
    while 0 < (left := sum(node.op_type in READERS for node in model.graph.node)) != before:
        before = left
        model = _rewritten(model, source)  # sizes behind a sequence are known once it is rewritten
    return model


def _rewritten(model: onnx.ModelProto, source: str) -> onnx.ModelProto:
    shapes = known_shapes(model, source)
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    writer = _Writer(changed, known_values(model, shapes), shapes)
    nodes = list(model.graph.node)
    del changed.graph.node[:]
    for node in nodes:
        if not writer.replace(node):
            changed.graph.node.append(node)
    drop_unread(changed.graph)
    return changed


class _Writer:
    """Adds nodes to a graph, and knows the tensors of its sequences so far."""

    def __init__(
        self, model: onnx.ModelProto, values: Mapping[str, Array], shapes: Mapping[str, tuple[int | None, ...]]
    ) -> None:
        self._graph, self._values, self._shapes = model.graph, values, shapes
        self._taken = taken_names(model.graph)
        self._sequences: dict[str, list[str]] = {}

    def replace(self, node: Any) -> bool:
        """Add what takes the place of `node`; False where it stays. What only makes a sequence stays until unread."""
        if node.op_type == "SplitToSequence":
            self._split(node)
        elif node.op_type in ("SequenceEmpty", "SequenceConstruct"):
            self._sequences[node.output[0]] = list(node.input)
        elif node.input and node.input[0] in self._sequences:
            return self._replace_reader(node, self._sequences[node.input[0]])
        return False

    def _replace_reader(self, node: Any, tensors: list[str]) -> bool:
        kind, output = node.op_type, node.output[0]
        if kind == "Identity":
            self._sequences[output] = tensors
        elif kind in ("SequenceInsert", "SequenceErase"):
            self._change(node, tensors)
        elif kind == "SequenceLength":
            self._add("Identity", [self._constant(np.int64(len(tensors)))], output)
            return True
        elif kind == "ConcatFromSequence" and tensors:
            self._concat(node, tensors)
            return True
        elif kind == "SequenceAt":
            place = self._number(node.input[1])
            if place is not None and -len(tensors) <= place < len(tensors):
                self._add("Identity", [tensors[place]], output)
                return True
        return False

    def _change(self, node: Any, tensors: list[str]) -> None:
        """Note a sequence that is another one with one tensor more or less."""
        insert = node.op_type == "SequenceInsert"
        at = node.input[1 + insert] if len(node.input) > 1 + insert else ""
        place = self._number(at) if at else (len(tensors) if insert else len(tensors) - 1)
        if place is None or len(tensors) > DEEPEST:
            return
        kept = list(tensors)
        if insert:
            kept.insert(place, node.input[1])
        elif kept:
            del kept[place]
        self._sequences[node.output[0]] = kept

    def _concat(self, node: Any, tensors: list[str]) -> None:
        axis = attribute_of(node, "axis", 0)
        if attribute_of(node, "new_axis", 0):
            axes = self._constant(np.array([axis], np.int64))
            tensors = [self._add("Unsqueeze", [name, axes]) for name in tensors]
        self._add("Concat", tensors, node.output[0], axis=axis)

    def _split(self, node: Any) -> None:
        """Note the tensors of a SplitToSequence, and add the Split that makes them."""
        shape, axis = self._shapes.get(node.input[0]), attribute_of(node, "axis", 0)
        size = shape[axis] if shape is not None else None
        given = node.input[1] if len(node.input) > 1 else ""
        value = self._values.get(given) if given else np.int64(1)
        if value is None or (size is None and value.ndim == 0):
            return
        step = int(value) if value.ndim == 0 else 0
        sizes = [min(step, (size or 0) - at) for at in range(0, size or 0, step)] if step else [int(n) for n in value]
        if not sizes:
            return
        names = [free_name(f"{node.output[0]}_{at}", self._taken) for at in range(len(sizes))]
        split = [node.input[0], self._constant(np.array(sizes, np.int64))]
        self._graph.node.append(helper.make_node("Split", split, names, name=names[0], axis=axis))
        if not given and not attribute_of(node, "keepdims", 1):
            axes = self._constant(np.array([axis], np.int64))
            names = [self._add("Squeeze", [name, axes]) for name in names]
        self._sequences[node.output[0]] = names

    def _number(self, name: str) -> int | None:
        value = self._values.get(name)
        return int(value.ravel()[0]) if value is not None and value.size == 1 else None

    def _constant(self, value: Array) -> str:
        name = free_name("sequence_constant", self._taken)
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _add(self, kind: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        output = output or free_name(f"{inputs[0]}_{kind}", self._taken)
        self._graph.node.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output
