"""Decides which outputs of a model are judged, and by which metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from converters.data.samples import LABELS, OTHER_LABELS, Samples
from converters.quality.judging import JudgedOutput
from converters.quality.metrics import AGREEMENT, find_metric
from edgekit.bundle.manifest import Task
from edgekit.errors import DataError, SettingsError
from edgekit.tensors import Array


class OutputOptions(msgspec.Struct, frozen=True):
    """Choices of the user about outputs.

    Attributes:
        metric: Metric of the decision output; None for the default.
        metrics: Metrics of outputs by name.
        ignored: Outputs that are not judged.
        max_drops: Limits of outputs by name; only their names are checked here.
    """

    metric: str | None = None
    metrics: Mapping[str, str] = {}
    ignored: Sequence[str] = ()
    max_drops: Mapping[str, float] = {}


def decision_output(names: Sequence[str], task: Task, options: OutputOptions) -> str:
    """The decision output: the one with class scores, or the first one that is not ignored.

    Args:
        names: The model's outputs in order.
        task: The task of the model.
        options: What the user says.

    Raises:
        SettingsError: an option names an output that the model does not have, or all outputs are ignored.
    """
    mentioned = {"--metric": options.metrics, "--ignore-output": options.ignored, "--max-drop": options.max_drops}
    for option, given in mentioned.items():
        unknown = [name for name in given if name not in names]
        if unknown:
            raise SettingsError(
                f"{option} names the output {unknown[0]!r}, which the model does not have",
                advice=f"Outputs: {', '.join(names)}.",
            )
    left = [name for name in names if name not in options.ignored]
    if not left:
        raise SettingsError("all outputs are ignored", advice="Leave at least one output to judge.")
    return task.output if task.output in left else left[0]


def judged_outputs(
    answers: Mapping[str, Array], task: Task, decision: str, samples: Samples, options: OutputOptions
) -> tuple[JudgedOutput, ...]:
    """The judged outputs, the decision output first.

    The decision output is judged by its metric. Every other output is judged by closeness to the float model's answers,
    unless it has labels or a metric of its own.

    Args:
        answers: Some of the float model's answers (N, ...) by output, in the order of the outputs.
        task: The task of the model.
        decision: Result of `decision_output`.
        samples: The proof split, for the type of the labels.
        options: What the user says.

    Raises:
        SettingsError: as `find_metric`, or two metrics are given for one output.
        DataError: as `find_metric`, or there are labels of an output that the model does not have.
    """
    names = list(answers)
    unknown = [name for name in samples.other_labels if name not in names]
    if unknown:
        raise DataError(
            f"the data hold labels {OTHER_LABELS + unknown[0]}, and the model has no output {unknown[0]!r}",
            advice=f"Outputs: {', '.join(names)}. Labels of the decision output {decision} are {LABELS!r}.",
        )
    if options.metric is not None and decision in options.metrics:
        raise SettingsError(
            f"two metrics are given for output {decision}: {options.metric} and {options.metrics[decision]}",
            advice=f"{decision} is the decision output; give one of the two.",
        )
    judged = []
    for name in sorted((name for name in names if name not in options.ignored), key=lambda name: name != decision):
        labels = samples.labels_of(name)
        wanted = options.metrics.get(name, options.metric if name == decision else None)
        if name != decision and labels is None and wanted is None:
            wanted = AGREEMENT
        scores = name == task.output and task.kind == "classification"
        judged.append(JudgedOutput(name, find_metric(wanted, labels, decisions=scores, shape=answers[name].shape[1:])))
    return tuple(judged)
