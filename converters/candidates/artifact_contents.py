"""Contents of an artifact: its operators, its largest constants, and the number of pieces that a delegate runs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
from ai_edge_litert.interpreter import Interpreter
from onnx import TensorProto

from converters.backends.contract import Artifact
from converters.backends.tflite.reader import (
    TFLITE_WEIGHTED,
    TYPES,
    buffer_content,
    operator_name,
    operators_of,
    parse_tflite,
)
from converters.report.report import ArtifactContents, Constant
from edgekit.runtimes import LITERT

MAX_CONSTANTS = 12  # in a report


def contents_of(artifact: Artifact, folder: Path) -> ArtifactContents:
    """Read an artifact; a copy for the runtime is written to `folder`."""
    data = artifact.data
    if artifact.runtime == LITERT:
        operators, constants = _litert(data)
        pieces, delegated = _pieces(artifact, folder, operators_of(data))
    else:
        operators, constants = _onnx(data)
        pieces, delegated = None, False
    ordered = sorted(constants, key=lambda one: -one.bytes)
    total = sum(one.bytes for one in ordered)
    largest = tuple(ordered[:MAX_CONSTANTS])
    return ArtifactContents(
        operators=dict(operators.most_common()),
        constants=largest,
        smaller=total - sum(one.bytes for one in largest),
        rest=max(0, len(data) - total),
        pieces=pieces,
        delegated=delegated,
    )


def _litert(data: bytes) -> tuple[Counter[str], list[Constant]]:
    model = parse_tflite(data)
    operators: Counter[str] = Counter()
    constants: dict[int, Constant] = {}
    for graph in model.subgraphs:  # the bodies of loops included
        for operator in graph.operators:
            name = operator_name(model, operator)
            operators[name] += 1
            for index in operator.inputs if operator.inputs is not None else ():
                tensor = graph.tensors[index] if index >= 0 else None
                if tensor is None or tensor.buffer in constants:
                    continue
                content = buffer_content(model.buffers[tensor.buffer], data)
                if content:
                    shape = tuple(int(size) for size in tensor.shape)
                    label = f"{name} {operators[name]}"
                    constants[tensor.buffer] = Constant(label, TYPES[tensor.type], shape, len(content))
    return operators, list(constants.values())


def _pieces(artifact: Artifact, folder: Path, main: list[str]) -> tuple[int | None, bool]:
    """How many parts of the graph XNNPACK runs, and whether they hold all weights and the graph has no loop."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / artifact.file
    path.write_bytes(artifact.data)
    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    try:  # a private method of the library: where it is missing, the number is unknown
        nodes = interpreter._get_ops_details()
        delegated = [node for node in nodes[len(main) :] if node["op_name"] == "DELEGATE"]
        read = {tensor for node in delegated for tensor in node["inputs"]}  # constants included
        layers = [node for node in nodes[: len(main)] if node["op_name"] in (*TFLITE_WEIGHTED, "BATCH_MATMUL")]
        unpacked = {node["outputs"][0]: node["inputs"][0] for node in nodes if node["op_name"] == "DEQUANTIZE"}
        weights = [node["inputs"][1] for node in layers]
        return len(delegated), "WHILE" not in main and all(unpacked.get(tensor, tensor) in read for tensor in weights)
    except (AttributeError, KeyError):
        return None, False


def _onnx(data: bytes) -> tuple[Counter[str], list[Constant]]:
    graph = onnx.load_from_string(data).graph
    operators = Counter(node.op_type for node in graph.node)
    readers: dict[str, str] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, f"{node.op_type} {node.name}".strip())
    names = {number: name.lower() for name, number in TensorProto.DataType.items()}
    return operators, [
        Constant(readers.get(one.name, one.name), names[one.data_type], tuple(one.dims), one.ByteSize())
        for one in graph.initializer
    ]
