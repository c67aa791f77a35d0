"""Run lowered models with the interface of their graph."""

from pathlib import Path

from converters.frontends.onnx import canonical
from edgekit.bundle.bindings import Binding
from edgekit.runtimes import LogicalRuntime
from edgekit.runtimes.litert import LiteRTRuntime


def bindings_of(graph, raw, result):
    """The bindings of a lowered artifact: inputs and outputs."""
    given, made = {spec.name: spec for spec in raw.inputs}, {spec.name: spec for spec in raw.outputs}
    return (
        [Binding(s, given[f"input_{i}"], result.input_permutes[i]) for i, s in enumerate(graph.logical_inputs)],
        [Binding(s, made[f"output_{i}"], result.output_permutes[i]) for i, s in enumerate(graph.logical_outputs)],
    )


def lowered(child, folder: Path, model):
    """The lowered model with its logical interface, and the names of its operators."""
    graph = canonical(model, "test")
    result = child.call("lower", model=graph.to_bytes())
    path = folder / "m.tflite"
    path.write_bytes(result.data)
    raw = LiteRTRuntime(path)
    operators = [entry["op_name"] for entry in raw._interpreter._get_ops_details()]
    return graph, LogicalRuntime(raw, *bindings_of(graph, raw, result)), operators
