"""Refuses branches that contradict the settled sizes, where no constant decides between them."""

from __future__ import annotations

import onnx

from converters.frontends.interface.protobuf import dims_of, dtype_of, inputs_of
from converters.graph.graph import Graph, label
from edgekit.errors import RuntimeLoadError, UnsupportedOpError
from edgekit.runtimes.onnx import OnnxRuntime


def require_runnable_branches(graph: Graph) -> None:
    """Check that a canonical graph with an If can be loaded.

    Raises:
        UnsupportedOpError: ONNX Runtime cannot load it; the advice names the inputs to fix.
    """
    if not any(node.op_type == "If" for node in graph.nodes):
        return
    try:
        OnnxRuntime(graph.to_bytes(), threads=1, quiet=True).close()
    except RuntimeLoadError as error:
        raise branch_refusal(graph.model) from error


def branch_refusal(model: onnx.ModelProto) -> UnsupportedOpError:
    """The error for the first If of `model`, of which only one branch fits the sizes of the inputs."""
    branch = next(node for node in model.graph.node if node.op_type == "If")
    flags = " ".join(
        f"--fix {value.name}={'true' if dtype_of(value).numpy.kind == 'b' else 16000}"
        for value in inputs_of(model)
        if dims_of(value) in ((), (1,)) and dtype_of(value).numpy.kind in "iub"
    )
    return UnsupportedOpError(
        "If",
        label(branch),
        backend="any target: only one of its branches fits the sizes of the inputs",
        advice=f"Fix the input that decides, for example {flags}." if flags else "Give other sizes of the inputs.",
    )
