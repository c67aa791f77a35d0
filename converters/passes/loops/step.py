"""Evaluate one step of an ONNX Loop on symbols, as far as recurrent cells need it.

The body runs once on symbols. A value that is linear in the step's input x and a state h becomes one `Affine`,
x @ W + h @ R + b, however an exporter splits, slices and joins the weights. Other values become `Term`s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from converters.graph.graph import attributes
from edgekit.tensors import Array

STEP_ELEMENTWISE = ("Add", "And", "Cast", "Equal", "Greater", "Less", "LessOrEqual", "Mul", "Not", "Or", "Sub")
STEP_UNARY = ("Relu", "Sigmoid", "Tanh")


class UnknownStepError(Exception):
    """A value of the body has no symbol here. It is left out of the result of `evaluate`."""


class Known(msgspec.Struct, frozen=True, eq=False):
    """A constant; with `steps`, its first axis has one value for each step of the loop."""

    value: Array
    steps: bool = False


class Affine(msgspec.Struct, frozen=True, eq=False):
    """x @ weights + h @ recurrent + bias: (rows, n), where x is (rows, in) and h the state called `state` (rows, u).

    Attributes:
        bias: (n,).
        weights: (in, n), or None if x has no part in it.
        recurrent: (u, n), or None if no state has a part in it.
        state: Name of the state.
    """

    bias: Array
    weights: Array | None = None
    recurrent: Array | None = None
    state: str = ""


class Term(msgspec.Struct, frozen=True, eq=False):
    """An operator over values. The step's input has the operator ``x``; a state has ``state`` and its name."""

    op: str
    parts: tuple[Any, ...] = ()
    name: str = ""


Value = Known | Affine | Term


def evaluate(
    body: Any, values: Mapping[str, Value], sequences: Callable[[str, Known], Term | None], opset: int
) -> dict[str, Value]:
    """Symbols of the values of a Loop's body, by name. Values without a symbol, and their readers, are left out.

    Args:
        body: The body, an ONNX GraphProto.
        values: Symbols known before: the body's inputs, and constants of the surrounding graph.
        sequences: Called for a Gather on axis 0 of an outer tensor (its name, the indices); gives the input's symbol.
        opset: The operator set of the body.
    """
    symbols = dict(values)
    for tensor in body.initializer:
        symbols[tensor.name] = Known(onnx.numpy_helper.to_array(tensor))
    for node in body.node:
        try:
            outputs = _node(node, symbols, sequences, opset)
        except UnknownStepError:
            continue
        symbols.update(zip(node.output, outputs, strict=False))
    return symbols


def _node(node: Any, symbols: Mapping[str, Value], sequences: Any, opset: int) -> list[Value]:
    if node.op_type == "Gather" and node.input[0] not in symbols:
        indices = symbols.get(node.input[1])
        symbol = sequences(node.input[0], indices) if isinstance(indices, Known) and not _axis(node, 0) else None
        return [_known_symbol(symbol)]
    inputs = [_known_symbol(symbols.get(name)) for name in node.input if name]
    if all(isinstance(value, Known) for value in inputs):
        return _folded(node, inputs, opset)
    rule = RULES.get(node.op_type)
    if rule is None:
        raise UnknownStepError(node.op_type)
    return rule(node, inputs)


def _known_symbol(value: Value | None) -> Value:
    if value is None:
        raise UnknownStepError("a value without a symbol")
    return value


def _folded(node: Any, inputs: list[Any], opset: int) -> list[Value]:
    """The outputs of a node with constant inputs, by ONNX's reference; values per step pass elementwise nodes only."""
    steps = any(value.steps for value in inputs)
    if steps and (node.op_type not in STEP_ELEMENTWISE or any(v.value.ndim for v in inputs if not v.steps)):
        if node.op_type == "Identity":
            return list(inputs)
        raise UnknownStepError(f"{node.op_type} of the step's number")
    names = [f"i{index}" for index in range(len(inputs))]
    alone = onnx.NodeProto()
    alone.CopyFrom(node)
    remaining_names = iter(names)
    alone.input[:] = [next(remaining_names) if name else "" for name in node.input]
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.value.dtype), value.value.shape)
        for name, value in zip(names, inputs, strict=True)
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in node.output]
    graph = helper.make_graph([alone], "step", infos, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    answers = ReferenceEvaluator(model).run(None, {n: v.value for n, v in zip(names, inputs, strict=True)})
    return [Known(np.asarray(answer), steps) for answer in answers]


# --- rules: from a node and the symbols of its inputs to the symbols of its outputs


def _product(node: Any, inputs: list[Value]) -> list[Value]:
    left, right = inputs
    if not isinstance(right, Known) or right.value.ndim != 2 or right.value.dtype != np.float32:
        raise UnknownStepError("a product with a factor that is not a float32 matrix")
    weights, zeros = right.value, np.zeros(right.value.shape[1], np.float32)
    if isinstance(left, Term) and left.op == "x":
        return [Affine(zeros, weights=weights)]
    if isinstance(left, Term) and left.op == "state":
        return [Affine(zeros, recurrent=weights, state=left.name)]
    return [Term("MatMul", (left, right))]


def _sum(node: Any, inputs: list[Value]) -> list[Value]:
    one, other = inputs
    if isinstance(one, Known):
        one, other = other, one
    if isinstance(one, Affine) and isinstance(other, Known):
        return [msgspec.structs.replace(one, bias=one.bias + _row(other, one.bias.size))]
    if isinstance(one, Affine) and isinstance(other, Affine):
        return [_affine_sum(one, other)]
    return [Term("Add", (one, other))]


def _row(value: Known, size: int) -> Array:
    shape = value.value.shape
    if value.steps or value.value.size not in (1, size) or len(shape) > 2 or (len(shape) == 2 and shape[0] != 1):
        raise UnknownStepError("a bias that is not one row")
    return np.broadcast_to(value.value.reshape(-1), size)


def _affine_sum(one: Affine, other: Affine) -> Affine:
    if one.bias.shape != other.bias.shape or (one.weights is not None) == (other.weights is not None):
        raise UnknownStepError("a sum of two products of the same factor")
    if one.recurrent is not None and other.recurrent is not None:
        raise UnknownStepError("a sum of two products of states")
    holder = one if one.recurrent is not None else other
    weights = one.weights if one.weights is not None else other.weights
    return Affine(one.bias + other.bias, weights, holder.recurrent, holder.state)


def _binary(node: Any, inputs: list[Value]) -> list[Value]:
    return [Term(node.op_type, tuple(inputs))]


def _unary(node: Any, inputs: list[Value]) -> list[Value]:
    return [Term(node.op_type, (inputs[0],))]


def _same(node: Any, inputs: list[Value]) -> list[Value]:
    return [inputs[0]]


def _slice(node: Any, inputs: list[Value]) -> list[Value]:
    if len(inputs) < 4 or not all(isinstance(value, Known) for value in inputs[1:]):
        raise UnknownStepError("a slice without constant limits")
    limits = [np.asarray(value.value).tolist() for value in inputs[1:] if isinstance(value, Known)]
    columns = slice(None)
    for starts, ends, axis, step in zip(
        *limits[:3], limits[3] if len(limits) > 3 else [1] * len(limits[0]), strict=True
    ):
        if step != 1 or (axis not in (1, -1) and (starts, ends) != (0, np.iinfo(np.int32).max)):
            raise UnknownStepError("a slice of rows")
        if axis in (1, -1):
            columns = slice(starts, ends)
    return [_columns(inputs[0], columns)]


def _split(node: Any, inputs: list[Value]) -> list[Value]:
    if _axis(node, 0) not in (1, -1):
        raise UnknownStepError("a split of rows")
    width, count = _width(inputs[0]), len(node.output)
    sizes = (
        inputs[1].value.tolist() if len(inputs) > 1 and isinstance(inputs[1], Known) else [-(-width // count)] * count
    )
    ends = np.cumsum(sizes)
    return [_columns(inputs[0], slice(end - size, end)) for size, end in zip(sizes, ends, strict=True)]


def _width(value: Value) -> int:
    """The number of columns of a value."""
    if isinstance(value, Affine):
        return value.bias.size
    if isinstance(value, Term) and value.op in STEP_UNARY:
        return _width(value.parts[0])
    raise UnknownStepError("a value of unknown width")


def _columns(value: Value, columns: slice) -> Value:
    """A range of columns of a value, taken from its weights."""
    if isinstance(value, Affine):
        first, second = (None if part is None else part[:, columns] for part in (value.weights, value.recurrent))
        return Affine(value.bias[columns], first, second, value.state)
    if isinstance(value, Term) and value.op in STEP_UNARY:
        return Term(value.op, (_columns(value.parts[0], columns),))
    raise UnknownStepError("columns of a value that is not linear")


def _axis(node: Any, usual: int) -> int:
    return int(attributes(node).get("axis", usual))


RULES: dict[str, Callable[[Any, list[Value]], list[Value]]] = {
    "Add": _sum,
    "Identity": _same,
    "MatMul": _product,
    "Mul": _binary,
    "Slice": _slice,
    "Split": _split,
    "Sub": _binary,
    **dict.fromkeys(STEP_UNARY, _unary),
}
