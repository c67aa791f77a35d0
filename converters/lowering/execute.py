"""Run a canonical graph as TensorFlow operations; nodes with only constant inputs are computed immediately."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import tensorflow as tf
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import converters.lowering.operators.activations
import converters.lowering.operators.arithmetic
import converters.lowering.operators.attention
import converters.lowering.operators.bits
import converters.lowering.operators.dense
import converters.lowering.operators.einsum
import converters.lowering.operators.indexing
import converters.lowering.operators.moving
import converters.lowering.operators.normalization
import converters.lowering.operators.pooling
import converters.lowering.operators.recurrent
import converters.lowering.operators.reductions
import converters.lowering.operators.resizing
import converters.lowering.operators.sampling
import converters.lowering.operators.shapes
import converters.lowering.operators.spatial
import converters.lowering.operators.spectra
import converters.lowering.operators.trigonometry  # noqa: F401 - importing these fills the registry
from converters.foreign_text import SHOWN, plain_text
from converters.graph.graph import Graph, attributes, label
from converters.lowering.advice import advice_for
from converters.lowering.fusing import with_gelus, with_sigmoids
from converters.lowering.operators.bits import carried, uncarried
from converters.lowering.registry import LOWERINGS, CannotLowerError
from converters.lowering.scopes import scope_of
from converters.lowering.signs import never_negative
from converters.lowering.values import Value, identity
from converters.lowering.weights import Weights
from edgekit.errors import UnsupportedOpError

# Operators that take unsigned numbers in the type that carries them: those that only move them, and those on bits.
MOVES = ("Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose",
         "Unsqueeze", "Where")  # fmt: skip
ON_BITS = ("BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast", "Equal")


def execute(
    graph: Graph,
    values: dict[str, Value],
    *,
    loops: bool = False,
    weights: Weights | None = None,
    trained: Mapping[str, Any] | None = None,
) -> list[Value]:
    """The outputs of `graph`; `values` holds its inputs and receives all other values.

    Args:
        graph: The graph, with a fixed batch.
        values: Its inputs by name.
        loops: Recurrent layers stay loops instead of being unrolled.
        weights: Holds large weights as variables.
        trained: Tensors that take the place of constants, by the constant's name: weights and biases of convolutions
            and dense layers.

    Raises:
        UnsupportedOpError: An operator, or a way of using it, has no TensorFlow form.
    """
    values.update({name: carried(value) for name, value in graph.constants.items()})
    values.update({name: Value(tensor, identity(len(tensor.shape)), True) for name, tensor in (trained or {}).items()})
    positive = never_negative(graph)
    read = {name for node in graph.nodes for name in node.input if name} | {spec.name for spec in graph.outputs}
    for node in with_sigmoids(graph, with_gelus(graph)):
        if node.op_type == "Constant":
            continue
        inputs = [values[name] if name else None for name in node.input]
        more = {
            "never_negative": tuple(name in positive for name in node.input),
            "used": [name in read for name in node.output],
            "loops": loops,
            "variable": weights.of(label(node)) if weights else _unchanged,
        }
        results = _folded(node, inputs, graph.opset) or _lowered(node, inputs, more)
        values.update({name: result for name, result in zip(node.output, results, strict=False) if name})
        missing = [name for name in node.output if name and name not in values]
        if missing:
            raise _cannot(node, f"optional output {missing[0]} is used")
    return [values[spec.name] for spec in graph.outputs]


def _lowered(node: Any, inputs: list[Value | None], more: dict[str, Any]) -> tuple[Value, ...]:
    if node.op_type not in LOWERINGS:
        raise UnsupportedOpError(node.op_type, label(node), backend="LiteRT", advice=advice_for(node.op_type))
    unsigned = max((value.unsigned for value in inputs if value is not None), default=0)
    if unsigned and node.op_type not in (*MOVES, *ON_BITS):
        raise _cannot(node, f"numbers of the type uint{unsigned}, which LiteRT lacks, in {node.op_type}")
    options = {**attributes(node), "outputs": len([name for name in node.output if name]), **more}
    try:
        with tf.name_scope(scope_of(label(node))):
            result = LOWERINGS[node.op_type](inputs, options)
    except CannotLowerError as error:
        raise _cannot(node, str(error)) from error
    except (ValueError, TypeError, IndexError, KeyError, tf.errors.OpError) as error:
        why = f"TensorFlow refuses its values with {type(error).__name__} ({SHOWN})"
        raise _cannot(node, why, plain_text(error)) from error
    results = result if isinstance(result, tuple) else (result,)
    if unsigned and node.op_type in MOVES:
        return tuple(dataclasses.replace(one, unsigned=unsigned) for one in results)
    return results


def _unchanged(values: Any) -> Any:
    return values


def _cannot(node: Any, why: str, foreign_text: str = "") -> UnsupportedOpError:
    advice = advice_for(node.op_type, why)
    return UnsupportedOpError(node.op_type, label(node), backend="LiteRT", advice=advice, foreign_text=foreign_text)


def _folded(node: Any, inputs: list[Value | None], opset: int) -> tuple[Value, ...] | None:
    """The outputs of a node with only constant inputs; None for any other node."""
    if any(value is not None and not value.constant for value in inputs):
        return None
    if any(entry.type == onnx.AttributeProto.GRAPH for entry in node.attribute):
        return None
    constants: Mapping[str, Any] = {
        name: uncarried(value) for name, value in zip(node.input, inputs, strict=True) if value is not None
    }
    graph = helper.make_graph(
        [node],
        "constant",
        [],
        [helper.make_empty_tensor_value_info(name) for name in node.output if name],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    results = iter(ReferenceEvaluator(model).run(None, {}))
    return tuple(carried(np.asarray(next(results) if name else 0)) for name in node.output)
