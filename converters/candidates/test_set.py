"""The samples of ``--test``, which nothing is chosen by: they are only reported on."""

from __future__ import annotations

from pathlib import Path

import msgspec

from converters.backends import Artifact
from converters.candidates.candidate import Evidence, labels_for, open_artifact, run_rows
from converters.data.samples import Samples
from converters.graph.graph import Graph
from converters.quality.metrics import Metric, find_metric, score
from converters.report.report import TestReport
from edgekit.tensors import Array


class HeldOut(msgspec.Struct, frozen=True):
    """Test samples with what the float model makes of them.

    Attributes:
        samples: As read.
        metric: The conversion's own; without data the usual one for these labels.
        output: Which output it reads.
        labels: What it compares that with (N, ...).
        value: Of the float model, in the metric's unit.
    """

    samples: Samples
    metric: Metric
    output: str
    labels: Array
    value: float


def hold_out(samples: Samples, graph: Graph, evidence: Evidence) -> HeldOut:
    """Judge the canonical float model on test samples, before any work that they could spoil.

    Raises:
        DataError: the labels are not what the metric needs.
    """
    metric = evidence.metric or find_metric(None, samples.labels, decisions=bool(evidence.decision))
    answers = graph.run(samples.inputs)
    labels = labels_for(samples, answers, metric, evidence.output)
    value = metric.value(score(metric, answers[evidence.output], labels))
    return HeldOut(samples, metric, evidence.output, labels, value)


def tested(held: HeldOut, artifact: Artifact, folder: Path) -> TestReport:
    """Quality of an artifact beside the float model's, through the runtime of the device; `folder` is scratch space.

    Raises:
        RuntimeLoadError: the runtime cannot load or run it.
    """
    runtime = open_artifact(artifact, folder)
    try:
        found = run_rows(runtime, held.samples.inputs)
    finally:
        runtime.close()
    value = held.metric.value(score(held.metric, found[held.output], held.labels))
    return TestReport(held.value, value, len(held.samples))
