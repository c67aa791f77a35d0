"""The state of reading a .tflite file: its tensors by index, and the ONNX nodes made so far."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from converters.backends.tflite.reader import TYPES, buffer_content, operator_name
from edgekit.errors import ModelFormatError
from edgekit.tensors import Array

NUMPY_DTYPES = {"float32": np.float32, "float16": np.float16, "int32": np.int32, "int64": np.int64, "bool": np.bool_}
SAME = 0  # schema: Padding
ACTIVATIONS: dict[int, str | tuple[float, float]] = {
    1: "Relu",
    2: (-1.0, 1.0),
    3: (0.0, 6.0),
    4: "Tanh",
}  # schema: ActivationFunctionType


class CannotReadError(Exception):
    """An operator is used in a way that has no ONNX form here; the message names the option or input."""


class Builder:
    """Builds ONNX nodes for the operators of one .tflite graph.

    Args:
        model: The file as objects of the schema.
        data: Bytes of the file.
        names: Names of the graph's inputs by tensor index.
    """

    def __init__(self, model: Any, data: bytes, names: dict[int, str]) -> None:
        self._model, self._data = model, data
        self._graph = model.subgraphs[0]
        self._names = dict(names)
        self._constants: dict[int, Array] = {}
        self._label, self._count = "", 0
        self.node_protos: list[Any] = []
        self.initializers: list[Any] = []

    def kind(self, op: Any) -> str:
        """The operator's name."""
        return operator_name(self._model, op)

    def start_layer(self, label: str) -> None:
        """Name the following nodes after the layer `label`."""
        self._label, self._count = label, 0

    def shape(self, index: int) -> list[int]:
        """Sizes of tensor `index`."""
        sizes = self._graph.tensors[index].shape
        return [] if sizes is None else [int(size) for size in sizes]

    def dtype(self, index: int) -> Any:
        """The numpy type of tensor `index`."""
        return NUMPY_DTYPES[TYPES[self._graph.tensors[index].type]]

    def has(self, op: Any, input_index: int) -> bool:
        """True if the operator has input number `place`."""
        return input_index < len(op.inputs) and op.inputs[input_index] >= 0

    def value(self, index: int) -> Array | None:
        """The value of tensor `index` if it is constant, otherwise None."""
        if index not in self._constants:
            tensor = self._graph.tensors[index]
            content = buffer_content(self._model.buffers[tensor.buffer], self._data)
            if not content:
                return None
            self._constants[index] = np.frombuffer(content, self.dtype(index)).reshape(self.shape(index))
        return self._constants[index]

    def set_value(self, index: int, value: Array) -> None:
        """Make tensor `index` a constant."""
        self._constants[index] = value

    def constant(self, op: Any, input_index: int) -> Array:
        """The value of input number `place`, which must be constant."""
        value = self.value(op.inputs[input_index])
        if value is None:
            raise CannotReadError(f"input {input_index} is not constant")
        return value

    def input(self, op: Any, input_index: int) -> str:
        """The ONNX name of input number `place`."""
        index = op.inputs[input_index]
        if index not in self._names:
            value = self.value(index)
            if value is None:
                raise CannotReadError(f"no earlier operator computes input {input_index}")
            self._names[index] = self.add_constant(value)
        return self._names[index]

    def add_constant(self, value: Array) -> str:
        """Add a constant and return its name."""
        name = f"constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def scalar(self, value: float) -> str:
        """Add a float constant and return its name."""
        return self.add_constant(np.array(value, np.float32))

    def ints(self, *values: int) -> str:
        """Add a constant list of integers and return its name."""
        return self.add_constant(np.array(values, np.int64))

    def nodes(self, kind: str, inputs: list[str], outputs: int, **attributes: Any) -> list[str]:
        """Add a node with several outputs and return their names."""
        name = f"{self._label}/{kind}_{self._count}" if self._count else self._label
        self._count += 1
        names = [f"{name}:{input_index}" for input_index in range(outputs)]
        self.node_protos.append(helper.make_node(kind, inputs, names, name=name, **attributes))
        return names

    def node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        """Add a node with one output and return its name."""
        return self.nodes(kind, inputs, 1, **attributes)[0]

    def channel_first(self, name: str) -> str:
        """Transpose (N, H, W, C) to (N, C, H, W)."""
        return self.node("Transpose", [name], perm=[0, 3, 1, 2])

    def channel_last(self, name: str) -> str:
        """Transpose (N, C, H, W) to (N, H, W, C)."""
        return self.node("Transpose", [name], perm=[0, 2, 3, 1])

    def padding(self, options: Any) -> str:
        """The padding of a window as ONNX's ``auto_pad``."""
        return "SAME_UPPER" if options.padding == SAME else "VALID"

    def activated(self, op: Any, name: str) -> str:
        """Apply the operator's fused activation to `name`."""
        number = int(getattr(op.builtinOptions, "fusedActivationFunction", 0))
        if not number:
            return name
        if number not in ACTIVATIONS:
            raise CannotReadError(f"fused activation {number}")
        activation = ACTIVATIONS[number]
        if isinstance(activation, str):
            return self.node(activation, [name])
        return self.node("Clip", [name, *(self.scalar(limit) for limit in activation)])

    def result(self, op: Any, name: str) -> None:
        """Set the operator's only output to `name`."""
        self.results(op, [name])

    def results(self, op: Any, names: list[str]) -> None:
        """Set the operator's outputs to `names`."""
        self._names.update(zip((int(index) for index in op.outputs), names, strict=True))

    def finish(self, index: int, name: str) -> None:
        """Make tensor `index` the output `name` of the graph; one tensor can be several outputs."""
        if index not in self._names:
            raise ModelFormatError(f"no operator computes the output {name}")
        self.node_protos.append(helper.make_node("Identity", [self._names[index]], [name], name=f"output/{name}"))
