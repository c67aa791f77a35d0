"""Facts of a .tflite file that affect its run time beyond arithmetic: operators outside XNNPACK, and loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from converters.backends.tflite.reader import TYPES, buffer_content, operator_name, parse_tflite
from converters.backends.tflite.strip import strip
from converters.cost.overhead import FileFacts, Loop
from edgekit.errors import ConversionError

DELEGATE = "DELEGATE"


def facts_of(path: Path) -> FileFacts:
    """Read the facts of a float file.

    Raises:
        ConversionError: it is not a .tflite file, or a loop in it has no fixed number of steps.
    """
    data = path.read_bytes()
    pieces, outside = pieces_of(path)
    return FileFacts(len(strip(data)), pieces, outside, _loops(parse_tflite(data), data))


def pieces_of(path: Path) -> tuple[int | None, int | None]:
    """Number of pieces of the main graph that XNNPACK runs, and of operators outside; None where LiteRT hides them."""
    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    try:  # a private method of the library: where it is missing, the numbers are unknown
        runs = [
            (str(one["op_name"]), list(one["inputs"]), list(one["outputs"])) for one in interpreter._get_ops_details()
        ]
    except (AttributeError, KeyError):
        return None, None
    count = len(parse_tflite(path.read_bytes()).subgraphs[0].operators)
    pieces, own = runs[count:], runs[:count]
    makers = {index: run for run in (*own, *pieces) for index in run[2]}  # a piece replaces its operators
    needed, visited, outside = [int(one["index"]) for one in interpreter.get_output_details()], set(), 0
    while needed:
        name, inputs, outputs = makers.get(needed.pop(), ("", [], []))
        if not outputs or outputs[0] in visited:
            continue
        visited.add(outputs[0])
        outside += name != DELEGATE
        needed += [int(index) for index in inputs]
    return len(pieces), outside


def _loops(model: Any, data: bytes) -> tuple[Loop, ...]:
    loops = []
    for graph in model.subgraphs:
        for operator in graph.operators:
            if operator_name(model, operator) == "WHILE":
                condition = model.subgraphs[operator.builtinOptions.condSubgraphIndex]
                body = model.subgraphs[operator.builtinOptions.bodySubgraphIndex]
                carried = sum(_size(body.tensors[o]) for i, o in zip(body.inputs, body.outputs, strict=True) if i != o)
                written = sum(_size(body.tensors[index]) for one in body.operators for index in one.outputs)
                steps = _steps(model, data, condition)
                loops.append(Loop(steps, len(body.operators), _macs(model, body), carried + written))
    return tuple(loops)


def _steps(model: Any, data: bytes, condition: Any) -> int:
    """The least constant that a counter is compared with. Counters of recurrent layers start at 0 and go up by 1."""
    limits = []
    for operator in condition.operators:
        tensor = condition.tensors[operator.inputs[-1]]
        content = buffer_content(model.buffers[tensor.buffer], data)
        if operator_name(model, operator) == "LESS" and TYPES[tensor.type] == "int32" and len(content) == 4:
            limits.append(int(np.frombuffer(content, np.int32)[0]))
    if not limits:
        raise ConversionError("a loop in the file has no fixed number of steps, so its cost cannot be estimated")
    return min(limits)


def _macs(model: Any, body: Any) -> int:
    """Multiply-adds of one row in the dense layers, whose weights are (out, in)."""
    dense = [operator for operator in body.operators if operator_name(model, operator) == "FULLY_CONNECTED"]
    return sum(_size(body.tensors[operator.inputs[1]]) for operator in dense)


def _size(tensor: Any) -> int:
    return int(np.prod(np.asarray(tensor.shape, np.int64))) if tensor.shape is not None else 1
