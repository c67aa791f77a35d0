"""torch.export programs to ONNX. Only the PyTorch process (framework_process.py) imports this module."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

from edgekit.errors import ModelFormatError, UnsupportedOpError
from edgekit.tensors import Array

OPSET = 18  # the exporter's own opset; it does not convert convolutions to an older one, and only logs that
ROWS = 32

_loaded: dict[str, _Program] = {}


class _Program:
    """A loaded program, with the names of inputs and outputs of its ONNX form."""

    def __init__(self, program: Any, inputs: list[str], outputs: list[str], rows: int) -> None:
        self.module = program.module(check_guards=False)
        self.inputs, self.outputs, self.rows = inputs, outputs, rows


def export_program(path: str) -> bytes:
    """Export the program at `path`, written by `write_checked`, as serialized ONNX with the program's names.

    Raises:
        ModelFormatError: PyTorch cannot load the program, or an input or output is not a tensor.
        UnsupportedOpError: PyTorch has no ONNX form for an operator.
    """
    torch.set_num_threads(1)
    try:
        program = torch.export.load(path)
    except Exception as error:  # the loader raises errors of any type; the message names it and the conversion stops
        raise ModelFormatError(
            f"PyTorch {torch.__version__} cannot load the program: {_short(error)}",
            advice=f"Save it with torch.export.save of a PyTorch no newer than {torch.__version__}.",
        ) from error
    _require_inference(program)
    exported = _exported(program)
    model = exported.model_proto
    _name_layers(model.graph)
    inputs = [value.name for value in model.graph.input]
    outputs = [value.name for value in model.graph.output]
    _loaded[path] = _Program(program, inputs, outputs, _rows(program, model.graph))
    data: bytes = model.SerializeToString()
    return data


def program_answers(path: str, inputs: dict[str, Array]) -> dict[str, Array]:
    """Run the exported program on `inputs` (N, ...) and return its outputs, in batches of the allowed size."""
    loaded = _loaded[path]
    count = len(next(iter(inputs.values())))
    parts: list[list[Array]] = []
    with torch.no_grad():
        for start in range(0, count, loaded.rows):
            # a copy, because PyTorch warns about read-only arrays
            rows = [torch.from_numpy(inputs[name][start : start + loaded.rows].copy()) for name in loaded.inputs]
            parts.append([value.numpy() for value in _flat(loaded.module(*rows))])
    return {name: np.concatenate(values) for name, values in zip(loaded.outputs, zip(*parts, strict=True), strict=True)}


def _require_inference(program: Any) -> None:
    """Refuse batch statistics and dropout of training mode, for which parity would be meaningless."""
    for node in program.graph.nodes:
        arguments = node.args
        training = ("dropout" in str(node.target) and len(arguments) > 2 and arguments[2] is True) or (
            "batch_norm" in str(node.target) and len(arguments) > 5 and arguments[5] is True
        )
        if training:
            raise UnsupportedOpError(
                str(node.target),
                node.name,
                backend="any target: the program was exported in training mode",
                advice="Call model.eval() before torch.export.export.",
            )


def _exported(program: Any) -> Any:
    try:
        # a copy, because the exporter changes its argument
        return torch.onnx.export(
            copy.deepcopy(program), dynamo=True, external_data=False, opset_version=OPSET, verbose=False
        )
    except Exception as error:  # the exporter wraps errors of any type; the cause names the operator
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ModelFormatError(
            f"PyTorch {torch.__version__} cannot export the program to ONNX: {_short(cause)}",
            advice="Replace the named operator, or export the model to ONNX yourself and convert the .onnx file.",
        ) from error


def _name_layers(graph: Any) -> None:
    """Name nodes after their module, for example ``features.0/Conv`` instead of ``node_conv2d``."""
    for node in graph.node:
        scopes = next((entry.value for entry in node.metadata_props if entry.key == "pkg.torch.onnx.name_scopes"), "")
        parts = [part.strip(" '\"") for part in scopes.strip("[]").split(",")]
        if len(parts) > 1 and parts[-2]:
            node.name = f"{parts[-2]}/{node.op_type}"
        del node.metadata_props[:]


def _rows(program: Any, graph: Any) -> int:
    """The largest batch: the fixed size of the first input, or the upper limit of a free batch, at most ROWS."""
    axis = graph.input[0].type.tensor_type.shape.dim[0]
    if axis.HasField("dim_value"):
        return int(axis.dim_value)
    limits = [int(limit.upper) for limit in program.range_constraints.values() if limit.upper < 2**31]
    return max(1, min([ROWS, *limits]))


def _flat(answer: Any) -> list[Any]:
    return [value for value in torch.utils._pytree.tree_leaves(answer) if isinstance(value, torch.Tensor)]


def _short(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: " + " ".join(lines[:2])[:300]
