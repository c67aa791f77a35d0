"""A model that has no ONNX form, as one node that holds a float .tflite file. Only LiteRT can run it.

The node stands where the operators of a canonical graph stand. So samples, evidence and bundles work as for every
model; passes leave the graph as it is, and layers and channels are not known.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import helper

from edgekit.tensors import Array, TensorSpec

DOMAIN, OPERATOR = "edgekit", "LiteRT"
OPSET, IR_VERSION = 17, 10


class Opaque(msgspec.Struct, frozen=True):
    """Facts of the file.

    Attributes:
        data: The .tflite with a batch of 1, inputs ``input_0`` ... and outputs ``output_0`` ... in the graph's order.
        operator: The operator that has no ONNX form.
        layer: Its layer.
        operators: How often each operator of LiteRT occurs.
        macs: Multiply-adds of one row.
        parameters: Elements of all floating-point constants.
        probabilities: Outputs that a SOFTMAX makes.
    """

    data: bytes
    operator: str
    layer: str
    operators: dict[str, int]
    macs: int
    parameters: int
    probabilities: tuple[str, ...] = ()


def opaque_model(opaque: Opaque, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> onnx.ModelProto:
    """The model with the one node of `opaque`; every spec has a batch of 1 as its first axis."""
    facts = msgspec.json.encode(msgspec.structs.replace(opaque, data=b"")).decode()
    node = helper.make_node(
        OPERATOR,
        [spec.name for spec in inputs],
        [spec.name for spec in outputs],
        name=opaque.layer or OPERATOR,
        domain=DOMAIN,
        data=opaque.data,
        facts=facts,
    )
    graph = helper.make_graph([node], "opaque", _described(inputs), _described(outputs))
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="edgekit")


def opaque_of(model: onnx.ModelProto) -> Opaque | None:
    """The opaque part of `model`; None for a model of ONNX operators."""
    nodes = model.graph.node
    if len(nodes) != 1 or nodes[0].domain != DOMAIN:
        return None
    values = {entry.name: helper.get_attribute_value(entry) for entry in nodes[0].attribute}
    facts = msgspec.json.decode(values["facts"], type=Opaque)
    return msgspec.structs.replace(facts, data=values["data"])


def run_opaque(
    opaque: Opaque, names: tuple[Sequence[str], Sequence[str]], rows: Iterable[Mapping[str, Array]]
) -> list[dict[str, Array]]:
    """The outputs (1, ...) for each of `rows`, whose arrays (1, ...) have the graph's names.

    Args:
        opaque: The file.
        names: The graph's inputs and outputs in order.
        rows: Inputs of one row each.

    Raises:
        RuntimeLoadError: LiteRT cannot load or run the file.
    """
    from edgekit.runtimes.litert import LiteRTRuntime  # only these models need LiteRT to run a graph

    inputs, outputs = names
    with tempfile.TemporaryDirectory(prefix="edgekit-opaque-") as folder:
        path = Path(folder) / "model.tflite"
        path.write_bytes(opaque.data)
        runtime = LiteRTRuntime(path)
        try:
            made = []
            for row in rows:
                answers = runtime.run({f"input_{index}": row[name] for index, name in enumerate(inputs)})
                made.append({name: np.array(answers[f"output_{index}"]) for index, name in enumerate(outputs)})
        finally:
            runtime.close()
    return made


def _described(specs: Sequence[TensorSpec]) -> list[Any]:
    return [
        helper.make_tensor_value_info(
            spec.name, helper.np_dtype_to_tensor_dtype(spec.dtype.numpy), [1, *spec.shape[1:]]
        )
        for spec in specs
    ]
