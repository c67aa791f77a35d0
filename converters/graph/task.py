"""Detects the task of a model from its answers to the samples, its last operator, and the labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from converters.graph.graph import Graph, attributes
from edgekit.bundle.manifest import Task
from edgekit.bundle.scores import CLASSIFICATION, LOGITS, MULTILABEL, OTHER, PROBABILITIES
from edgekit.errors import SettingsError
from edgekit.tensors import Array, DType, TensorSpec

KINDS = (CLASSIFICATION, MULTILABEL, OTHER)
_SLACK = 1e-3  # of probabilities in half precision
_FLOATS = (DType.FLOAT16, DType.FLOAT32, DType.FLOAT64)


class DetectedTask(NamedTuple):
    """A task, and where it could not be decided the sentence that says so; else empty."""

    task: Task
    note: str = ""


def parse_task(text: str) -> Task:
    """The task of ``KIND`` or ``KIND:SCORES``, as ``--task`` takes it; without an output.

    Raises:
        SettingsError: it has another form.
    """
    kind, _, scores = text.partition(":")
    if kind not in KINDS or (scores and (kind == OTHER or scores not in (PROBABILITIES, LOGITS))) or text.endswith(":"):
        raise SettingsError(
            f"--task is {text!r}, expected {', '.join(KINDS)}, the first two also with :probabilities or :logits"
        )
    return Task(kind, "", scores)


def detect_task(
    graph: Graph, labels: Array | None, answers: Mapping[str, Array] | None = None, wanted: Task | None = None
) -> DetectedTask:
    """Find the output with the scores, and what they are.

    Values decide: rows of numbers from 0 to 1 that add up to 1 are the probabilities of classes, whatever operators
    made them. Other numbers from 0 to 1 are those of classes or of independent labels, as the labels show. Other
    numbers are logits where there are class labels.

    Args:
        graph: The model.
        labels: Labels ``y`` of the samples; None without labels.
        answers: The float model's answers to the samples; None where they are not known.
        wanted: The task that the user named (`parse_task`); None to detect it.

    Raises:
        SettingsError: `wanted` names a task with scores, and no output can hold them.
    """
    if wanted is not None and wanted.kind == OTHER:
        return DetectedTask(Task())
    specs = [spec for spec in _score_outputs(graph) if answers is None or spec.name in answers]
    values = {spec.name: answers[spec.name] for spec in specs} if answers is not None else {}
    if wanted is not None:
        return DetectedTask(_as_wanted(wanted, specs, values))
    for spec in specs:
        if spec.shape[1] != 1 and (_ends_in_softmax(graph, spec.name) or _is_distribution(values.get(spec.name))):
            return DetectedTask(Task(CLASSIFICATION, spec.name, PROBABILITIES))
    are_classes = labels is not None and labels.dtype.kind in "iub" and labels.ndim == 1
    for spec in specs:
        in_range, columns = _in_range(values.get(spec.name)), spec.shape[1] or 0
        if are_classes and columns > 1:
            return DetectedTask(Task(CLASSIFICATION, spec.name, PROBABILITIES if in_range else LOGITS))
        if in_range and labels is not None and _fit_labels(labels, columns):
            return DetectedTask(Task(MULTILABEL, spec.name, PROBABILITIES))
    return DetectedTask(Task(), _note(specs, values, labels))


_FROM_0_TO_1 = "numbers from 0 to 1 that do not add up to 1"
_ANY = "several numbers for each sample, which may be the logits of classes"
_NOTE = (
    "output {!r} has {}, and there are no labels that say what they are; the "
    "task is other, so a device never asks the cloud tier because it is unsure. Name it: "
    "--task classification|multilabel|other (with :probabilities or :logits)"
)


def _note(specs: Sequence[TensorSpec], values: Mapping[str, Array], labels: Array | None) -> str:
    """Advice to name the task, where the outputs may be scores; empty where nothing suggests it."""
    for spec in specs:
        if _in_range(values.get(spec.name)):
            return _NOTE.format(spec.name, _FROM_0_TO_1)
    wide = [spec.name for spec in specs if labels is None and spec.name in values and (spec.shape[1] or 0) > 1]
    return _NOTE.format(wide[0], _ANY) if wide else ""


def _score_outputs(graph: Graph) -> list[TensorSpec]:
    """Float outputs (N, columns) that feed no state."""
    state = set(graph.interface.state.values())
    return [
        spec
        for spec in graph.outputs
        if spec.name not in state and len(spec.shape) == 2 and spec.shape[1] and spec.dtype in _FLOATS
    ]


def _as_wanted(wanted: Task, specs: Sequence[TensorSpec], values: Mapping[str, Array]) -> Task:
    fitting = [spec for spec in specs if wanted.kind == MULTILABEL or spec.shape[1] != 1]
    if not fitting:
        columns = "columns" if wanted.kind == MULTILABEL else "at least two columns"
        raise SettingsError(
            f"--task {wanted.kind} needs a float output of shape (N, columns) with {columns}, and the model has none",
            advice="Name --task other.",
        )
    name = fitting[0].name
    detected = PROBABILITIES if _in_range(values.get(name)) else LOGITS
    return Task(wanted.kind, name, wanted.scores or detected)


def _ends_in_softmax(graph: Graph, name: str) -> bool:
    if graph.opaque is not None and name in graph.opaque.probabilities:
        return True
    node = next((node for node in graph.nodes if name in node.output), None)
    return node is not None and node.op_type == "Softmax" and int(attributes(node).get("axis", -1)) in (-1, 1)


def _in_range(values: Array | None) -> bool:
    """True for numbers from 0 to 1, of which some are between."""
    if values is None or values.size == 0:
        return False
    return bool(values.min() >= -_SLACK and values.max() <= 1 + _SLACK and np.ptp(values) > 0)


def _is_distribution(values: Array | None) -> bool:
    if values is None or values.ndim != 2 or not _in_range(values):
        return False
    return bool((np.abs(values.astype(np.float64).sum(axis=1) - 1) <= 10 * _SLACK).all())


def _fit_labels(labels: Array, columns: int) -> bool:
    """True for labels of 0 and 1, one for each column."""
    shape = (len(labels), 1) if labels.ndim == 1 else labels.shape
    return shape == (len(labels), columns) and bool(np.isin(labels, (0, 1)).all())


def named_classes(task: Task, graph: Graph, classes: Sequence[str]) -> Task:
    """`task` with the names of its classes, where there is one name per score."""
    width = next((spec.shape[-1] for spec in graph.outputs if spec.name == task.output), None)
    return msgspec.structs.replace(task, labels=tuple(classes)) if width == len(classes) else task
