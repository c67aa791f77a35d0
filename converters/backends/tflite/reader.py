"""Reads a .tflite file: its operators, their weights and types, and the canonical layer of each operator."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from converters.calibration.masks import Step, dividing, masked, normalizing
from converters.graph.graph import Graph, attributes, label
from converters.lowering.scopes import scope_of
from edgekit.errors import ConversionError
from edgekit.tensors import Array

IDENTIFIER = b"TFL3"
OPERATOR_NAMES = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
TYPES = {number: name.lower() for name, number in vars(schema.TensorType).items() if isinstance(number, int)}
FIXED_SCALES = ("LOGISTIC", "SOFTMAX", "TANH")
TFLITE_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")


class WeightedOp(msgspec.Struct, frozen=True):
    """An operator whose weights are constant.

    Attributes:
        operator: TensorFlow Lite operator.
        scope: Names of its outputs, each with a semicolon at the end, as the rules of litert-quantizer match them.
        dtype: Type of its weights: ``float32``, ``int8``, ``int4`` ...
        content: Bytes of its weights in the file.
    """

    operator: str
    scope: str
    dtype: str
    content: bytes


def parse_tflite(data: bytes) -> Any:
    """Parse a file into the schema's objects.

    Raises:
        ConversionError: `data` is not a .tflite file.
    """
    if data[4:8] != IDENTIFIER:
        raise ConversionError(f"the file begins with {data[:8]!r}, expected a .tflite file")
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))


def operator_name(model: Any, operator: Any) -> str:
    """The built-in operator's name; ``CUSTOM`` for any other."""
    code = model.operatorCodes[operator.opcodeIndex]
    return str(OPERATOR_NAMES[max(code.builtinCode, code.deprecatedBuiltinCode)])


def operators_of(data: bytes) -> list[str]:
    """The operators of the main graph in order of execution."""
    model = parse_tflite(data)
    return [operator_name(model, operator) for operator in model.subgraphs[0].operators]


def layer_at(data: bytes, number: int | None) -> str:
    """The layer of the operator with this number, as its first output is named; empty where the file has none."""
    graph = parse_tflite(data).subgraphs[0]
    if number is None or number >= len(graph.operators):  # parts that a delegate runs have numbers behind the file's
        return ""
    return _scope(graph, graph.operators[number]).partition(";")[0]


def activations(data: bytes) -> dict[str, int]:
    """Rank of each float tensor that is not a constant, by name: inputs and outputs of operators in execution order."""
    graph = parse_tflite(data).subgraphs[0]
    indices = [*graph.inputs, *(index for operator in graph.operators for index in operator.outputs)]
    tensors = [graph.tensors[index] for index in indices if index >= 0]
    return {t.name.decode(): len(t.shape) for t in tensors if TYPES[t.type] == "float32"}


def splits_of_fixed_scale(data: bytes) -> list[str]:
    """Scopes of SPLITs whose input has a fixed 8-bit scale, as of a sigmoid; litert-quantizer fails on their parts."""
    model = parse_tflite(data)
    graph = model.subgraphs[0]
    makers = {index: operator_name(model, operator) for operator in graph.operators for index in operator.outputs}
    return [
        _scope(graph, operator)
        for operator in graph.operators
        if operator_name(model, operator) == "SPLIT" and makers.get(operator.inputs[1]) in FIXED_SCALES
    ]


def float_scopes(data: bytes) -> list[str]:
    """Scopes of masks, normalizations and divisions, which lose too much in 8 bits. See `calibration.masks`."""
    model = parse_tflite(data)
    graph = model.subgraphs[0]
    steps = [
        Step(operator_name(model, operator), tuple(map(str, operator.inputs)), tuple(map(str, operator.outputs)))
        for operator in graph.operators
    ]
    limits = {}
    for index, tensor in enumerate(graph.tensors):
        values = buffer_content(model.buffers[tensor.buffer], data) if TYPES[tensor.type] == "float32" else b""
        if values:
            content = np.frombuffer(values, np.float32)
            limits[str(index)] = float(content.min()), float(content.max())
    found = masked(steps, limits) | normalizing(steps, limits) | dividing(steps, limits)
    return [_scope(graph, graph.operators[index]) for index in sorted(found)]


def products_of_constants(data: bytes) -> list[str]:
    """Scopes of the batch products with a constant on the left, which LiteRT runs in float only."""
    model = parse_tflite(data)
    graph = model.subgraphs[0]
    return [
        _scope(graph, operator)
        for operator in graph.operators
        if operator_name(model, operator) == "BATCH_MATMUL"
        and buffer_content(model.buffers[graph.tensors[operator.inputs[0]].buffer], data)
    ]


def weighted_ops(data: bytes) -> list[WeightedOp]:
    """The operators with weights, in execution order. Weights that are read through a DEQUANTIZE count too."""
    model = parse_tflite(data)
    graph = model.subgraphs[0]
    dequantized = {
        operator.outputs[0]: operator.inputs[0]
        for operator in graph.operators
        if operator_name(model, operator) == "DEQUANTIZE"
    }
    operators = []
    for operator in graph.operators:
        name = operator_name(model, operator)
        if name not in TFLITE_WEIGHTED:
            continue
        index = operator.inputs[1]
        tensor = graph.tensors[dequantized.get(index, index)]
        content = buffer_content(model.buffers[tensor.buffer], data)
        if content:
            operators.append(WeightedOp(name, _scope(graph, operator), TYPES[tensor.type], content))
    return operators


def _scope(graph: Any, operator: Any) -> str:
    names = [(graph.tensors[index].name or b"").decode() for index in operator.outputs]
    return "".join(f"{name};" for name in names if name)


def buffer_content(buffer: Any, data: bytes) -> bytes:
    """The bytes of a buffer, which may lie after the flatbuffer."""
    if buffer.offset and buffer.size and buffer.offset > 1:
        return data[buffer.offset : buffer.offset + buffer.size]
    return b"" if buffer.data is None else np.asarray(buffer.data, dtype=np.uint8).tobytes()


def match_layers(graph: Graph, ops: list[WeightedOp]) -> dict[str, int]:
    """The index in `ops` of each layer of `graph`, by equal weights. `ops` are of the float file lowered from `graph`.

    Layers with equal weights are matched in their order. The lowering may multiply a neighbouring operator into the
    weights of a layer; such a layer is found because its weights differ by one factor per row or column. A layer that
    the lowering changed otherwise has no entry.
    """
    by_content: dict[bytes, list[int]] = defaultdict(list)
    for index, op in enumerate(ops):
        by_content[op.content].append(index)
    matched, changed = {}, {}
    for node in graph.nodes:
        weights = _lowered_weights(graph, node)
        if weights is None:
            continue
        if by_content.get(key := weights.tobytes()):
            matched[label(node)] = by_content[key].pop(0)
        else:
            changed[label(node)] = weights
    left = sorted(index for indices in by_content.values() for index in indices)
    for name, weights in changed.items():
        position = next((index for index in left if _is_scaled(weights, ops[index])), None)
        if position is not None:
            matched[name] = position
            left.remove(position)
    return matched


def parts_of_layers(graph: Graph, ops: Sequence[WeightedOp], names: Collection[str]) -> dict[str, tuple[int, ...]]:
    """The indices in `ops` of each of the layers `names` that is in several operators, by the scopes of these.

    Such are the steps of a recurrent layer, and the groups of a transposed convolution.
    """
    scopes = {f"{scope_of(label(node))}/": label(node) for node in graph.nodes}
    found: dict[str, list[int]] = {name: [] for name in names}
    for index, op in enumerate(ops):
        known = [scope for scope in scopes if any(part.startswith(scope) for part in op.scope.split(";"))]
        owner = scopes[max(known, key=len)] if known else ""
        if owner in found:
            found[owner].append(index)
    return {name: tuple(indices) for name, indices in found.items() if indices}


def unchanged(graph: Graph, ops: list[WeightedOp], positions: Mapping[str, int]) -> set[str]:
    """The layers of `positions` whose weights are in the file bit by bit."""
    nodes = {label(node): node for node in graph.nodes}
    weights = {name: _lowered_weights(graph, nodes[name]) for name in positions}
    return {
        name for name, value in weights.items() if value is not None and value.tobytes() == ops[positions[name]].content
    }


def _is_scaled(weights: Array, op: WeightedOp) -> bool:
    """True where the operator's weights are `weights` times one factor per row, or per column."""
    if op.dtype != "float32" or len(op.content) != weights.nbytes:
        return False
    actual = np.frombuffer(op.content, np.float32).astype(np.float64).reshape(weights.shape)
    for axis in (0, -1):
        other = np.moveaxis(weights.astype(np.float64), axis, 0).reshape(weights.shape[axis], -1)
        mine = np.moveaxis(actual, axis, 0).reshape(weights.shape[axis], -1)
        factors = (mine * other).sum(axis=1) / np.maximum((other**2).sum(axis=1), 1e-30)
        if np.abs(mine - factors[:, None] * other).max() <= 1e-5 * max(float(np.abs(mine).max()), 1e-30):
            return True
    return False


def _lowered_weights(graph: Graph, node: Any) -> Array | None:
    """The weights of a layer in TensorFlow Lite's order: output channel first, input channel last."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or node.input[1] not in graph.constants:
        return None
    weights = graph.constants[node.input[1]]
    if node.op_type == "Conv":
        depthwise = int(attributes(node).get("group", 1)) > 1 and weights.shape[1] == 1
        moved = np.moveaxis(weights, 0, -1) if depthwise else np.moveaxis(weights, 1, -1)
    elif node.op_type == "ConvTranspose":
        moved = np.moveaxis(np.swapaxes(weights, 0, 1), 1, -1)
    else:
        moved = weights if attributes(node).get("transB") else weights.T
    return np.ascontiguousarray(moved, dtype=np.float32)


def require_types(data: bytes, expected: Mapping[int, str]) -> None:
    """Check that every rule took effect: the weighted operators of `data`, by index, have weights of these types.

    Raises:
        ConversionError: a type differs; the message names the operator and both types.
    """
    ops = weighted_ops(data)
    wrong = [
        f"{ops[index].operator} {index} has {ops[index].dtype} weights, expected {dtype}"
        for index, dtype in sorted(expected.items())
        if index < len(ops) and ops[index].dtype != dtype
    ]
    if expected and max(expected) >= len(ops):
        wrong.append(f"{len(ops)} operators with weights were found, expected more than {max(expected)}")
    if wrong:
        raise ConversionError("a rule of the recipe did not take effect: " + "; ".join(wrong))
