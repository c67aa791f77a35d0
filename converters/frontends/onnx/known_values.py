"""Finds tensors whose value does not depend on the inputs: constants, known sizes, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from converters.frontends.onnx.nodes import RANDOM, attribute_of, inner_graphs
from edgekit.tensors import Array

LARGEST = 4096  # elements of a value that is worth computing: conditions and shapes are small
# A shape with None for each size that is not known.
Sizes = tuple[int | None, ...]


def known_values(model: onnx.ModelProto, shapes: Mapping[str, Sizes]) -> dict[str, Array]:
    """Values of the tensors of the main graph that constants and known sizes decide, by name.

    Args:
        model: The model.
        shapes: The shape of each tensor of known rank.
    """
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    known = {name: numpy_helper.to_array(tensor) for name, tensor in values.items() if np.prod(tensor.dims) <= LARGEST}
    sizes: dict[str, Sizes] = {}
    for node in model.graph.node:
        if node.op_type == "Constant":
            value = value_of_constant(node)
            known |= {node.output[0]: value} if value is not None else {}
        elif node.op_type == "Shape" and node.input[0] in shapes:
            start, end = attribute_of(node, "start", None), attribute_of(node, "end", None)
            sizes[node.output[0]] = shapes[node.input[0]][start:end]
        elif node.op_type == "Size" and None not in shapes.get(node.input[0], (None,)):
            known[node.output[0]] = np.array(math.prod(size or 0 for size in shapes[node.input[0]]), np.int64)
        elif node.op_type in ("Gather", "Slice") and node.input[0] in sizes:
            found = _part(node, sizes[node.input[0]], known)
            if found is not None:
                sizes[node.output[0]] = found
                if None not in found:
                    shape = () if node.op_type == "Gather" and known[node.input[1]].ndim == 0 else (len(found),)
                    known[node.output[0]] = np.array(found, np.int64).reshape(shape)
            continue
        elif _can_compute(node, known):
            known |= _computed(node, known, model.opset_import)
        for name in node.output:
            if name in sizes and None not in sizes[name]:
                known[name] = np.array(sizes[name], np.int64)
    return known


def _part(node: Any, sizes: Sizes, known: Mapping[str, Array]) -> Sizes | None:
    """The sizes that a Gather or Slice takes out of a shape; None where what it takes is not known."""
    if not all(name in known for name in node.input[1:] if name):
        return None
    taken = np.array([-1 if size is None else size for size in sizes], np.int64)
    copy = helper.make_node(node.op_type, ["sizes", *node.input[1:]], ["taken"])
    copy.attribute.extend(node.attribute)
    given = {"sizes": taken, **{name: known[name] for name in node.input[1:] if name}}
    result = _computed(copy, given, [helper.make_opsetid("", 17)]).get("taken")
    return None if result is None else tuple(None if size < 0 else int(size) for size in result.reshape(-1))


def value_of_constant(node: Any) -> Array | None:
    """The value of a Constant node; None where it is large, sparse or text."""
    for attribute in node.attribute:
        if attribute.name == "value" and np.prod(attribute.t.dims) <= LARGEST:
            return np.asarray(numpy_helper.to_array(attribute.t))
        if attribute.name in ("value_float", "value_int", "value_floats", "value_ints"):
            kind = np.float32 if "float" in attribute.name else np.int64
            return np.array(helper.get_attribute_value(attribute), dtype=kind)
    return None


def _can_compute(node: Any, known: Mapping[str, Array]) -> bool:
    return (
        not node.domain
        and node.op_type not in RANDOM
        and not list(inner_graphs(node))
        and any(node.input)
        and all(name in known for name in node.input if name)
    )


def _computed(node: Any, known: Mapping[str, Array], opsets: Any) -> dict[str, Array]:
    """The outputs of a node with known inputs; empty where they are large, or ONNX's reference cannot compute them."""
    inputs = {name: known[name] for name in node.input if name}
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in inputs.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in node.output if name],
    )
    try:
        results = ReferenceEvaluator(helper.make_model(graph, opset_imports=list(opsets))).run(None, inputs)
    except Exception:  # the reference raises any error of numpy; the value is then not known
        return {}
    names = [name for name in node.output if name]
    return {
        name: np.asarray(value)
        for name, value in zip(names, results, strict=True)
        if isinstance(value, (np.ndarray, np.generic)) and np.asarray(value).size <= LARGEST
    }
