"""torch.export programs to ONNX. Only the PyTorch process (framework_process.py) imports this module."""

from __future__ import annotations

import contextlib
import copy
import json
import re
import zipfile
from typing import Any

import numpy as np
import torch

from converters.foreign_text import SHOWN, named, plain_text
from converters.frontends.refusals import changes_state
from converters.frontends.torch.writes import with_exact_writes
from edgekit.errors import ModelFormatError, UnsupportedOpError
from edgekit.tensors import Array

OPSET = 18  # the exporter's own opset; it does not convert convolutions to an older one, and only logs that
ROWS = 32
_OPERATOR = re.compile(r"\b(?:aten|prims|torchvision|higher_order)(?:\.|::)\w+")
_IN_PLACE = re.compile(r"aten\.\w*[a-z]_\.")

_loaded: dict[str, _Program] = {}


class _Program:
    """A loaded program, with the names of inputs and outputs of its ONNX form.

    Args:
        program: The loaded program.
        inputs, outputs: Names in the ONNX form; numbers that are arguments of the program are not among them.
        rows: The largest batch.
    """

    def __init__(self, program: Any, inputs: list[str], outputs: list[str], rows: int) -> None:
        self.module = program.module(check_guards=False)
        self.inputs, self.outputs, self.rows = inputs, outputs, rows
        self._structure = program.call_spec.in_spec
        values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
        user = [spec.arg for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
        # One entry for each argument: the dtype of a tensor, or the value that the program was exported with.
        self._arguments = [
            (values[arg.name].dtype, None) if isinstance(values.get(arg.name), torch.Tensor) else (None, arg.value)
            for arg in user
        ]

    def run(self, inputs: dict[str, Array]) -> list[Array]:
        """The outputs; other floats become float32."""
        names = iter(self.inputs)
        flat = [
            value if dtype is None else torch.from_numpy(np.array(inputs[next(names)])).to(dtype)
            for dtype, value in self._arguments
        ]
        arguments, options = torch.utils._pytree.tree_unflatten(flat, self._structure)
        return [_array(value) for value in _flat(self.module(*arguments, **options))]


def export_program(path: str, key: str, source: str) -> bytes:
    """Export the program at `path`, written by `write_checked`, as serialized ONNX with the program's names.

    Args:
        path: The checked copy.
        key: Name of the program in later calls.
        source: The path of the program itself, for messages.

    Raises:
        ModelFormatError: PyTorch cannot load the program, it changes its buffers, or an input or output is no tensor.
        UnsupportedOpError: PyTorch has no ONNX form for an operator.
    """
    torch.set_num_threads(1)
    try:
        program = torch.export.load(path)
    except Exception as error:  # the loader raises errors of any type; the message names it and the conversion stops
        raise ModelFormatError(
            f"PyTorch {torch.__version__} cannot load the program{_saved_by(path)}: it fails with "
            f"{type(error).__name__} ({SHOWN})",
            advice=f"Save it with torch.export.save of a PyTorch no newer than {torch.__version__}.",
            foreign_text=plain_text(error),
        ) from error
    _require_inference(program)
    if changed := _changed_buffers(program):
        raise changes_state(source, ", ".join(changed[:4]))
    exported = _exported(program)
    model = exported.model_proto
    _name_layers(model.graph)
    inputs = [value.name for value in model.graph.input]
    outputs = [value.name for value in model.graph.output]
    _loaded[key] = _Program(program, inputs, outputs, _rows(program, model.graph))
    data: bytes = model.SerializeToString()
    return data


def program_is_loaded(key: str) -> bool:
    """True if this process exported the program `key`."""
    return key in _loaded


def program_answers(key: str, inputs: dict[str, Array], *, rows: bool) -> dict[str, Array]:
    """Run the exported program on `inputs` and return its outputs.

    Args:
        key: The program.
        inputs: Its inputs by name: samples (N, ...), or tensors in its own layout.
        rows: The first axis is the batch; run batches of the allowed size.
    """
    loaded = _loaded[key]
    with torch.no_grad():
        if not rows:
            return dict(zip(loaded.outputs, loaded.run(inputs), strict=True))
        starts = range(0, len(next(iter(inputs.values()))), loaded.rows)
        chunks = [{name: value[start : start + loaded.rows] for name, value in inputs.items()} for start in starts]
        parts = [loaded.run(chunk) for chunk in chunks]
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


def _changed_buffers(program: Any) -> list[str]:
    """Names of the buffers that the program changes: announced ones, and those that an in-place operator writes."""
    signature = program.graph_signature
    written = {
        signature.inputs_to_buffers[node.args[0].name]
        for node in program.graph.nodes
        if _IN_PLACE.search(str(node.target))
        and node.args
        and getattr(node.args[0], "name", None) in signature.inputs_to_buffers
    }
    return sorted({*written, *signature.buffers_to_mutate.values()})


def _exported(program: Any) -> Any:
    """The program as an ONNX program. Where PyTorch has no form of an operator, it is tried in its core operators."""
    try:
        return _onnx_program(copy.deepcopy(program))  # a copy, because the exporter changes its argument
    except Exception as error:  # the exporter wraps errors of any type; the cause names the operator
        cause: BaseException = error
        with contextlib.suppress(Exception):  # the first error is told
            return _onnx_program(copy.deepcopy(program).run_decompositions())
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ModelFormatError(
            f"PyTorch {torch.__version__} cannot export the program to ONNX{_named_operator(cause)} ({SHOWN})",
            foreign_text=named(cause),
            advice="Replace the operator if one is named; otherwise save the program with fixed sizes besides the "
            "batch, or export the model to ONNX yourself and convert the .onnx file.",
        ) from error


def _named_operator(cause: BaseException) -> str:
    """The operator that the exporter's error names, for messages; empty where it names none."""
    found = _OPERATOR.search(str(cause))
    return f": it has no form of {found[0].replace('::', '.')}" if found else ""


def _onnx_program(program: Any) -> Any:
    return torch.onnx.export(
        with_exact_writes(program), dynamo=True, external_data=False, opset_version=OPSET, verbose=False
    )


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
    first = [value.type.tensor_type.shape.dim[0] for value in graph.input if value.type.tensor_type.shape.dim]
    fixed = [int(axis.dim_value) for axis in first if axis.HasField("dim_value")]
    if fixed or not first:
        return min(fixed, default=1)
    limits = [int(limit.upper) for limit in program.range_constraints.values() if limit.upper < 2**31]
    return max(1, min([ROWS, *limits]))


def _flat(answer: Any) -> list[Any]:
    return [value for value in torch.utils._pytree.tree_leaves(answer) if isinstance(value, torch.Tensor)]


def _array(value: Any) -> Array:
    other = value.dtype in (torch.float16, torch.bfloat16, torch.float64)
    return np.asarray((value.float() if other else value).detach().numpy())


def _saved_by(path: str) -> str:
    """The version of PyTorch that saved the program, for messages; empty where the file does not say."""
    with zipfile.ZipFile(path) as archive:
        name = next((name for name in archive.namelist() if name.endswith("models/model.json")), "")
        version = json.loads(archive.read(name)).get("torch_version") if name else None
    return f", which PyTorch {version} saved" if version else ""
