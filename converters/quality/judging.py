"""Judges the outputs of one candidate, and its classes and groups, by the scores of its answers.

Every judged output has a test of its own, and a candidate passes only if each passes at the full confidence. A
candidate with any output beyond its limit then passes with a probability of at most 1 - confidence, so nothing is
divided by the number of outputs (intersection-union test; Berger 1982). The same holds for classes and groups.
Rows of one stream of a model with state depend on each other: there the streams are the samples, and each counts
equally. Bounds that stand side by side in a report are another matter: the reader looks for the worst. Those hold
together, each at a share of the error (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from converters.data.streams import stream_means
from converters.quality.confidence import likely_method
from converters.quality.drop import ClassDrop, Drop, Judgement, OutputDrop
from converters.quality.expected_drop import expected_drop
from converters.quality.metrics import ACCURACY, AGREEMENT, AUC, Metric, drop_of, fitted, score, stream_drop
from edgekit.errors import DataError
from edgekit.tensors import Array


class JudgedOutput(msgspec.Struct, frozen=True):
    """An output that is judged, and its metric."""

    name: str
    metric: Metric

    def fitted_to(self, *answers: Mapping[str, Array]) -> JudgedOutput:
        """The same output with its metric `fitted` to the float model's answers (N, ...) by output."""
        together = np.concatenate([part[self.name] for part in answers])
        return JudgedOutput(self.name, fitted(self.metric, together))

    def labels(self, labels: Array | None, answers: Mapping[str, Array]) -> Array:
        """The values (N, ...) that the metric compares with: the labels, or the float model's answers.

        A metric of the user takes the float model's answers where there are no labels.

        Raises:
            DataError: there are no labels, and the metric needs them.
        """
        if self.metric.name == AGREEMENT:
            return answers[self.name]
        if labels is not None:
            return labels
        if ":" in self.metric.name:
            return answers[self.name]
        raise DataError(
            f"metric {self.metric.name} of output {self.name} needs labels, and the samples have none",
            advice=f"Add labels to the file: 'y' for the decision output, or 'y_{self.name}'.",
        )


class Stratum(msgspec.Struct, frozen=True):
    """A class or a group: its name for people, and its rows of the proof split (indices)."""

    name: str
    rows: Array


class Split(msgspec.Struct, frozen=True):
    """One split: answers (N, ...) of the float model and of a candidate, labels by output, and streams (N,)."""

    reference: Mapping[str, Array]
    answers: Mapping[str, Array]
    labels: Mapping[str, Array | None]
    streams: Array | None = None


class Scores(msgspec.Struct, frozen=True):
    """Scores (N,) of the float model and of a candidate on the same rows, with the labels and, if any, the streams."""

    reference: Array
    candidate: Array
    labels: Array
    streams: Array | None = None

    @property
    def pair(self) -> tuple[Array, Array]:
        """Scores of the samples that are independent of each other: the rows, or the means over each stream (S,)."""
        if self.streams is None:
            return self.reference, self.candidate
        return stream_means(self.reference, self.streams), stream_means(self.candidate, self.streams)

    def take(self, rows: Array) -> Scores:
        """The given rows."""
        streams = None if self.streams is None else self.streams[rows]
        return Scores(self.reference[rows], self.candidate[rows], self.labels[rows], streams)

    def drop(self, metric: Metric, confidence: float, method: str = "") -> Drop:
        """The drop with its bounds."""
        if self.streams is None:
            return drop_of(metric, self.reference, self.candidate, self.labels, confidence, method=method)
        return stream_drop(metric, self.reference, self.candidate, self.streams, confidence)


def judge(
    judged: Sequence[JudgedOutput], choice: Split, proof: Split, strata: Sequence[Stratum], confidence: float
) -> Judgement:
    """Judge one candidate.

    Args:
        judged: The judged outputs, the decision output first; at least one.
        choice, proof: The two splits.
        strata: Classes and groups of the proof split.
        confidence: Confidence of each test.

    Raises:
        DataError: As `score`.
    """
    together = _together(confidence, len(judged))
    outputs, first = [], None
    for one in judged:
        chosen, proven = (_scores(one, split) for split in (choice, proof))
        first = first or proven
        (before, after), count = chosen.pair, len(proven.pair[0])
        method = likely_method(before, after, count, confidence)
        drop = proven.drop(one.metric, confidence, method)
        shown = drop if len(judged) == 1 else proven.drop(one.metric, together, method)
        choice_drop, rows = float((before - after).mean()), (len(before), count)
        estimate = (choice_drop * rows[0] + drop.value * rows[1]) / sum(rows)
        value = one.metric.value(proven.candidate)
        outputs.append(OutputDrop(one.name, one.metric.name, choice_drop, drop, shown, estimate, value))
    assert first is not None
    expected, on_choice = _expected(judged[0], (choice, proof)), _expected(judged[0], (choice,))
    if not strata:
        return Judgement(tuple(outputs), expected=expected, expected_on_choice=on_choice)
    classes = _classes(judged[0].metric, first, strata, confidence)
    seen = [one for one in classes if one.drop.n]
    worst = max(seen, key=lambda one: (one.drop.value, one.drop.upper), default=None)
    hardest = max(classes, key=lambda one: (one.drop.upper, one.drop.value), default=None)
    return Judgement(tuple(outputs), worst, hardest, expected, on_choice)


def classes_of(
    metric: Metric, labels: Array | None, answers: Array, names: Sequence[str], *, decisions: bool
) -> list[Stratum]:
    """The classes of the proof split: by label, or without labels by the float model's decision.

    A class without samples has an empty stratum. There is none at all where the output holds no class scores, and for
    the area under the curve, which is a figure of both classes together.

    Args:
        metric: Metric of the decision output.
        labels: Labels (N, ...); None without labels.
        answers: The float model's answers (N, classes).
        names: Names of the classes in order; may be empty.
        decisions: The output holds one score per class, or one score for two classes.
    """
    if not decisions or metric.name == AUC or answers.ndim != 2:
        return []
    known = labels is not None and labels.dtype.kind in "iu" and labels.ndim == 1
    count = answers.shape[1]
    if count == 1:  # one score for two classes
        if not known:
            return []
        count = 2
    own = labels if known else answers.argmax(axis=1)
    return [
        Stratum(names[index] if index < len(names) else f"class {index}", np.flatnonzero(own == index))
        for index in range(count)
    ]


def groups_of(groups: Array | None) -> list[Stratum]:
    """The groups of the proof split, in order of their names. `groups` are names or integers (N,), or None."""
    if groups is None:
        return []
    return [Stratum(f"group {name}", np.flatnonzero(groups == name)) for name in np.unique(groups)]


def _expected(one: JudgedOutput, splits: Sequence[Split]) -> float | None:
    first = splits[0].reference[one.name]
    if one.metric.name != ACCURACY or first.ndim != 2 or first.shape[1] < 2:
        return None
    reference = np.concatenate([split.reference[one.name] for split in splits])
    answers = np.concatenate([split.answers[one.name] for split in splits])
    labels = np.concatenate([one.labels(split.labels.get(one.name), split.reference) for split in splits])
    return expected_drop(reference, answers, labels)


def _scores(one: JudgedOutput, split: Split) -> Scores:
    labels = one.labels(split.labels.get(one.name), split.reference)
    return Scores(
        score(one.metric, split.reference[one.name], labels),
        score(one.metric, split.answers[one.name], labels),
        labels,
        split.streams,
    )


def _classes(metric: Metric, scores: Scores, strata: Sequence[Stratum], confidence: float) -> list[ClassDrop]:
    together = _together(confidence, sum(len(one.rows) > 0 for one in strata))
    results = []
    for one in strata:
        if len(one.rows) == 0:
            nothing = Drop(0.0, -float("inf"), float("inf"), 0, "none")
            results.append(ClassDrop(one.name, nothing, nothing))
            continue
        own = scores.take(one.rows)
        drop, shown = (own.drop(metric, level) for level in (confidence, together))
        results.append(ClassDrop(one.name, drop, shown))
    return results


def _together(confidence: float, count: int) -> float:
    """The confidence of each of 2 * `count` one-sided bounds that hold together at `confidence`."""
    return 1.0 - (1.0 - confidence) / (2 * max(count, 1))
