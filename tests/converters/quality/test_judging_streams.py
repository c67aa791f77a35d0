"""Judging a model with state: a stream is one sample, whatever its length."""

from __future__ import annotations

import numpy as np
import pytest

from converters.quality.drop import BETTING
from converters.quality.judging import JudgedOutput, Scores, Split, Stratum, judge
from converters.quality.metrics import find_metric
from edgekit.tensors import Array

CLASSES = np.eye(2, dtype=np.float32)


def scores(reference: Array, candidate: Array, streams: Array) -> Scores:
    return Scores(reference.astype(np.float64), candidate.astype(np.float64), np.zeros(len(streams)), streams)


def test_rows_of_one_stream_do_not_add_evidence() -> None:
    """The same mistakes in 20 long streams prove less than in 2,000 rows that are independent."""
    rng = np.random.default_rng(0)
    streams, labels = np.repeat(np.arange(20), 100), np.zeros(2000, np.int64)
    metric = find_metric("accuracy", labels, decisions=True)
    right = np.ones(2000)
    wrong = (rng.random(2000) > 0.02).astype(np.float64)
    found = scores(right, wrong, streams).drop(metric, 0.95)
    alone = Scores(right, wrong, labels).drop(metric, 0.95)
    assert (found.n, alone.n, found.method) == (20, 2000, BETTING)
    assert found.value == pytest.approx(alone.value)
    assert found.upper > 2 * alone.upper


def test_the_bound_holds_where_rows_of_a_stream_fail_together() -> None:
    """In 300 draws with a true drop of 0.1, where whole streams fail, at most 5 % of the bounds are too low."""
    rng = np.random.default_rng(1)
    metric = find_metric("accuracy", np.zeros(1, np.int64), decisions=True)
    low = 0
    for _ in range(300):
        lengths = rng.integers(5, 40, 40)
        streams = np.repeat(np.arange(40), lengths)
        failed = np.repeat(rng.random(40) < 0.1, lengths)
        low += scores(np.ones(len(streams)), ~failed, streams).drop(metric, 0.95).upper < 0.1
    assert low <= 0.05 * 300 + 2 * np.sqrt(300 * 0.05 * 0.95)


def test_one_stream_proves_nothing() -> None:
    """Neither accuracy nor an error; and the area under the curve is never proven in streams."""
    streams = np.zeros(500, np.int64)
    for name in ("accuracy", "mse", "auc"):
        metric = find_metric(name, np.zeros(1, np.int64), decisions=True)
        drop = scores(np.ones(500), np.ones(500), streams).drop(metric, 0.95)
        assert drop.n == 1
        assert drop.upper > 0.5


def test_outputs_and_classes_are_judged_in_streams() -> None:
    """The number of samples is that of streams, in a class that of the streams with the class."""
    streams = np.repeat(np.arange(6), 4)
    labels = np.tile([0, 0, 1, 1], 6)
    labels[:4] = 0
    answers = {"scores": CLASSES[labels]}
    split = Split(answers, answers, {"scores": labels}, streams)
    judged = [JudgedOutput("scores", find_metric("accuracy", labels, decisions=True))]
    strata = [Stratum(f"class {one}", np.flatnonzero(labels == one)) for one in range(2)]
    found = judge(judged, split, split, strata, 0.95)
    assert found.outputs[0].drop.n == 6
    assert found.hardest is not None
    assert (found.hardest.name, found.hardest.drop.n) == ("class 1", 5)
