"""The samples of ``--test``: the report has their quality, and no choice uses them."""

from __future__ import annotations

from pathlib import Path

import msgspec

from converters.backends import Artifact
from converters.candidates.candidate import open_artifact, run_in_streams
from converters.candidates.evidence import Evidence
from converters.data.samples import Samples
from converters.data.stateful import answers_to
from converters.graph.graph import Graph
from converters.quality.judging import JudgedOutput
from converters.quality.metrics import Metric, find_metric, fitted, score
from converters.report.report import TestReport
from edgekit.tensors import Array


class TestSet(msgspec.Struct, frozen=True):
    """Test samples and the quality of the float model on them.

    Attributes:
        samples: The samples.
        metric: The metric of the conversion; without data the default metric for these labels.
        output: Name of the output that the metric reads.
        labels: The values that the metric compares with (N, ...).
        value: The metric of the float model, in its own unit.
        rows: How many rows to run at once.
    """

    samples: Samples
    metric: Metric
    output: str
    labels: Array
    value: float
    rows: int


def score_float_model(samples: Samples, graph: Graph, evidence: Evidence) -> TestSet:
    """Score the canonical float model on test samples. A fault in the labels is found before any candidate is made.

    Raises:
        DataError: the labels do not fit the metric.
    """
    answers = answers_to(graph.run, samples)
    seen = answers[evidence.output]
    plain = find_metric(None, samples.labels, decisions=bool(evidence.decision), shape=seen.shape[1:])
    metric = evidence.metric or fitted(plain, seen)
    labels = JudgedOutput(evidence.output, metric).labels(samples.labels_of(evidence.output), answers)
    value = metric.value(score(metric, answers[evidence.output], labels))
    return TestSet(samples, metric, evidence.output, labels, value, evidence.rows)


def score_artifact(test_set: TestSet, artifact: Artifact, folder: Path) -> TestReport:
    """Quality of an artifact and of the float model, through the runtime of the device; `folder` is a scratch folder.

    Raises:
        RuntimeLoadError: the runtime cannot load or run it.
    """
    runtime = open_artifact(artifact, folder)
    try:
        answers = run_in_streams(runtime, test_set.samples, test_set.rows)
    finally:
        runtime.close()
    value = test_set.metric.value(score(test_set.metric, answers[test_set.output], test_set.labels))
    return TestReport(test_set.value, value, len(test_set.samples))
