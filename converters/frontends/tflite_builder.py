"""What reading a .tflite file needs at hand: its tensors by number, and the ONNX nodes made so far."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from converters.backends.tflite.reader import TYPES, buffer_content, operator_name
from edgekit.errors import ModelFormatError
from edgekit.tensors import Array

DTYPES = {"float32": np.float32, "float16": np.float16, "int32": np.int32, "int64": np.int64, "bool": np.bool_}
SAME = 0  # schema: Padding
ACTIVATIONS: dict[int, str | tuple[float, float]] = {
    1: "Relu",
    2: (-1.0, 1.0),
    3: (0.0, 6.0),
    4: "Tanh",
}  # schema: ActivationFunctionType


class CannotReadError(Exception):
    """The way an operator is used has no ONNX form here; the message says which part."""


class Builder:
    """Nodes of ONNX for the operators of one graph.

    Args:
        model: The file as the schema's objects.
        data: The file.
        names: Of the graph's inputs, by number of tensor.
    """

    def __init__(self, model: Any, data: bytes, names: dict[int, str]) -> None:
        self._model, self._data = model, data
        self._graph = model.subgraphs[0]
        self._names = dict(names)
        self._known: dict[int, Array] = {}
        self._label, self._count = "", 0
        self.made: list[Any] = []
        self.held: list[Any] = []

    def kind(self, op: Any) -> str:
        """The operator's name."""
        return operator_name(self._model, op)

    def begin(self, label: str) -> None:
        """From here on nodes belong to the layer `label`."""
        self._label, self._count = label, 0

    def shape(self, index: int) -> list[int]:
        """Sizes of tensor `index`."""
        found = self._graph.tensors[index].shape
        return [] if found is None else [int(size) for size in found]

    def dtype(self, index: int) -> Any:
        """The numpy type of tensor `index`."""
        return DTYPES[TYPES[self._graph.tensors[index].type]]

    def has(self, op: Any, place: int) -> bool:
        """True where the operator has that input."""
        return place < len(op.inputs) and op.inputs[place] >= 0

    def value(self, index: int) -> Array | None:
        """Tensor `index` where it is constant."""
        if index not in self._known:
            tensor = self._graph.tensors[index]
            content = buffer_content(self._model.buffers[tensor.buffer], self._data)
            if not content:
                return None
            self._known[index] = np.frombuffer(content, self.dtype(index)).reshape(self.shape(index))
        return self._known[index]

    def set_value(self, index: int, value: Array) -> None:
        """From here on tensor `index` is a constant."""
        self._known[index] = value

    def constant(self, op: Any, place: int) -> Array:
        """An input that must be constant."""
        found = self.value(op.inputs[place])
        if found is None:
            raise CannotReadError(f"its input {place} is not constant")
        return found

    def input(self, op: Any, place: int) -> str:
        """The name of an input."""
        index = op.inputs[place]
        if index not in self._names:
            found = self.value(index)
            if found is None:
                raise CannotReadError(f"its input {place} is made by no operator before it")
            self._names[index] = self.hold(found)
        return self._names[index]

    def hold(self, value: Array) -> str:
        """A constant under a name of its own."""
        name = f"constant_{len(self.held)}"
        self.held.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def scalar(self, value: float) -> str:
        """A float constant."""
        return self.hold(np.array(value, np.float32))

    def ints(self, *values: int) -> str:
        """A constant list of whole numbers."""
        return self.hold(np.array(values, np.int64))

    def nodes(self, kind: str, inputs: list[str], outputs: int, **attributes: Any) -> list[str]:
        """A node with several outputs; their names."""
        name = f"{self._label}/{kind}_{self._count}" if self._count else self._label
        self._count += 1
        names = [f"{name}:{place}" for place in range(outputs)]
        self.made.append(helper.make_node(kind, inputs, names, name=name, **attributes))
        return names

    def node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        """A node with one output; its name."""
        return self.nodes(kind, inputs, 1, **attributes)[0]

    def channel_first(self, name: str) -> str:
        """(N, H, W, C) as (N, C, H, W)."""
        return self.node("Transpose", [name], perm=[0, 3, 1, 2])

    def channel_last(self, name: str) -> str:
        """(N, C, H, W) as (N, H, W, C)."""
        return self.node("Transpose", [name], perm=[0, 2, 3, 1])

    def padding(self, options: Any) -> str:
        """How a window pads, in ONNX's word."""
        return "SAME_UPPER" if options.padding == SAME else "VALID"

    def activated(self, op: Any, name: str) -> str:
        """`name` through the activation that the operator ends in."""
        number = int(getattr(op.builtinOptions, "fusedActivationFunction", 0))
        if not number:
            return name
        if number not in ACTIVATIONS:
            raise CannotReadError(f"fused activation {number}")
        found = ACTIVATIONS[number]
        if isinstance(found, str):
            return self.node(found, [name])
        return self.node("Clip", [name, *(self.scalar(limit) for limit in found)])

    def result(self, op: Any, name: str) -> None:
        """The operator's only output is `name`."""
        self.results(op, [name])

    def results(self, op: Any, names: list[str]) -> None:
        """The operator's outputs are `names`."""
        self._names.update(zip((int(index) for index in op.outputs), names, strict=True))

    def finish(self, index: int, name: str) -> None:
        """Tensor `index` is the output `name` of the graph; one tensor may be several."""
        if index not in self._names:
            raise ModelFormatError(f"the output {name} is made by no operator")
        self.made.append(helper.make_node("Identity", [self._names[index]], [name], name=f"output/{name}"))
