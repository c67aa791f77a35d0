"""Detects the task of a model from its last operator and the labels."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from converters.graph.graph import Graph, attributes
from edgekit.bundle.manifest import Task
from edgekit.tensors import Array, DType


def detect_task(graph: Graph, labels: Array | None) -> Task:
    """Classification where an output (N, classes) ends in Softmax, or labels are integers (N,); otherwise other."""
    makers = {name: node for node in graph.nodes for name in node.output}
    scores = [
        spec
        for spec in graph.outputs
        if spec.name not in graph.interface.state.values()
        if len(spec.shape) == 2 and (spec.shape[1] or 0) > 1 and spec.dtype is DType.FLOAT32
    ]
    for spec in scores:
        node = makers.get(spec.name)
        if graph.opaque is not None and spec.name in graph.opaque.probabilities:
            return Task("classification", spec.name, "probabilities")
        if node is not None and node.op_type == "Softmax" and int(attributes(node).get("axis", -1)) in (-1, 1):
            return Task("classification", spec.name, "probabilities")
    if scores and labels is not None and labels.dtype.kind in "iu" and labels.ndim == 1:
        return Task("classification", scores[0].name, "logits")
    return Task()


def named_classes(task: Task, graph: Graph, classes: Sequence[str]) -> Task:
    """`task` with the names of its classes, where there is one name per score."""
    width = next((spec.shape[-1] for spec in graph.outputs if spec.name == task.output), None)
    return msgspec.structs.replace(task, labels=tuple(classes)) if width == len(classes) else task
