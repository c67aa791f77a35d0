"""Metrics, and what can be claimed of a difference between two models on the same samples."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import msgspec
import numpy as np
from scipy import stats

from edgekit.errors import DataError, SettingsError
from edgekit.tensors import Array

Scores = Callable[[Array, Array], Array]
AGREEMENT = "agreement"
ERRORS = ("mse", "mae")


class Metric(msgspec.Struct, frozen=True):
    """A metric by name.

    Attributes:
        name: ``accuracy``, ``agreement``, ``mse``, ``mae`` or ``module:function``.
        scores: (outputs, labels) -> one score a sample (N,), higher is better.
        error: True where the reported value is an error (lower is better): the mean of the negated scores.
    """

    name: str
    scores: Scores
    error: bool = False

    def value(self, scores: Array) -> float:
        """The mean of `scores` (N,) in the metric's own unit."""
        mean = float(np.mean(scores))
        return -mean if self.error else mean


class Drop(msgspec.Struct, frozen=True):
    """How much worse a candidate is than the float model on the same samples, in the metric's unit; below 0 is better.

    Attributes:
        value: Of the samples at hand.
        lower, upper: One-sided bounds, each at the stated confidence.
        n: Number of samples.
        method: How the bounds were found: ``clopper-pearson`` or ``student-t``.
    """

    value: float
    lower: float
    upper: float
    n: int
    method: str


def find_metric(name: str | None, labels: Array | None, *, decisions: bool = True) -> Metric:
    """The metric called `name`; by default accuracy with integer labels, mse with others, agreement without any.

    Args:
        decisions: The output holds one score a class, so that agreement means the same class; else it means closeness.

    Raises:
        SettingsError: there is no such metric, or the user's function cannot be imported.
        DataError: it needs labels, or labels of another kind.
    """
    if name is None:
        name = AGREEMENT if labels is None else "accuracy" if labels.dtype.kind in "iu" else "mse"
    if ":" in name:
        return Metric(name, _user_function(name))
    if name not in _BUILT_IN:
        raise SettingsError(
            f"there is no metric {name!r}", advice=f"Metrics: {', '.join(_BUILT_IN)}, or your own as module:function."
        )
    if name != AGREEMENT and labels is None:
        raise DataError(f"metric {name} needs labels", advice="Add an array 'y' to the data file.")
    if name == "accuracy" and labels is not None and (labels.dtype.kind not in "iu" or labels.ndim != 1):
        raise DataError(
            f"metric accuracy: labels are {labels.dtype} of shape {list(labels.shape)}, expected integers of shape [N]",
            advice="Save class indices: y.reshape(-1).astype(int), or y.argmax(axis=1) for one column a class.",
        )
    if name == AGREEMENT and not decisions:
        return Metric(name, _closeness)
    return Metric(name, _BUILT_IN[name], error=name in ERRORS)


def score(metric: Metric, outputs: Array, labels: Array) -> Array:
    """Scores (N,) of `outputs` (N, ...).

    Raises:
        DataError: the metric cannot be computed for these shapes, or gives anything but one finite number a sample.
    """
    try:
        scores = np.asarray(metric.scores(outputs, labels), dtype=np.float64)
    except Exception as error:  # a user's function may raise anything; it is named and nothing goes on
        raise DataError(
            f"metric {metric.name} failed for outputs {list(outputs.shape)} and labels {list(labels.shape)}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if scores.shape != (len(outputs),) or not np.isfinite(scores).all():
        raise DataError(
            f"metric {metric.name} gave an array of shape {list(scores.shape)}, "
            f"expected {len(outputs)} finite numbers, one a sample"
        )
    return scores


def paired_drop(reference: Array, candidate: Array, confidence: float) -> Drop:
    """Bound the mean of reference - candidate, both (N,) scores of the same samples.

    For scores of 0 and 1 the bound is exact and needs no assumption but independent samples: the drop is the share of
    samples that changed for the worse less the share that changed for the better, so it is at most the Clopper-Pearson
    upper limit of the former (Clopper and Pearson 1934). Without a single change for the worse, 299 samples give 0.01
    at 95 %. For other scores it is Student's t on the differences.
    """
    changes = reference - candidate
    n = len(changes)
    value = float(np.mean(changes))
    if set(np.unique(reference)) | set(np.unique(candidate)) <= {0.0, 1.0}:
        losses, gains = int(np.sum(changes > 0)), int(np.sum(changes < 0))
        upper, lower = upper_share(losses, n, confidence), -upper_share(gains, n, confidence)
        return Drop(value, lower, upper, n, "clopper-pearson")
    if n < 2:
        return Drop(value, -float("inf"), float("inf"), n, "student-t")
    margin = float(stats.t.ppf(confidence, n - 1) * np.std(changes, ddof=1) / np.sqrt(n))
    return Drop(value, value - margin, value + margin, n, "student-t")


def upper_share(count: int, n: int, confidence: float) -> float:
    """One-sided Clopper-Pearson upper limit of a share of which `count` of `n` were seen."""
    return 1.0 if count >= n else float(stats.beta.ppf(confidence, count + 1, n - count))


def samples_needed(budget: float, confidence: float) -> int:
    """How many samples, none of them changed for the worse, prove `budget`; 0 where no number can."""
    if not 0.0 < budget < 1.0:
        return 0
    return int(np.ceil(np.log(1.0 - confidence) / np.log(1.0 - budget)))


def _per_row(values: Array) -> Array:
    """The mean over all but the first axis: (N, ...) to (N,)."""
    means: Array = values.astype(np.float64).reshape(len(values), -1).mean(axis=1)
    return means


def _accuracy(outputs: Array, labels: Array) -> Array:
    if outputs.ndim != 2:
        raise ValueError("accuracy needs outputs of shape [N, classes]")
    if len(labels) and (labels.min() < 0 or labels.max() >= outputs.shape[1]):
        raise ValueError(f"labels run from {labels.min()} to {labels.max()}, expected 0 to {outputs.shape[1] - 1}")
    return _per_row(np.argmax(outputs, axis=-1) == labels)


def _agreement(outputs: Array, labels: Array) -> Array:
    """The same class; here `labels` are the float model's outputs."""
    return _per_row(np.argmax(outputs, axis=-1) == np.argmax(labels, axis=-1))


def _closeness(outputs: Array, labels: Array) -> Array:
    """1 less the distance from the float model's answer, as a share of how far its answers usually spread; 0 at least.

    Here `labels` are the float model's outputs (N, ...); spread is the root mean square distance from their mean, or
    their root mean square size where they are all the same.
    """
    expected = labels.astype(np.float64).reshape(len(labels), -1)
    distance = np.linalg.norm(outputs.astype(np.float64).reshape(expected.shape) - expected, axis=1)
    for size in (expected - expected.mean(axis=0), expected, np.ones_like(expected)):
        spread = float(np.sqrt((size**2).sum(axis=1).mean()))
        if spread > 0:
            break
    near: Array = np.maximum(0.0, 1.0 - distance / spread)
    return near


def _squared(outputs: Array, labels: Array) -> Array:
    return -_per_row((_like(outputs, labels) - labels.astype(np.float64)) ** 2)


def _absolute(outputs: Array, labels: Array) -> Array:
    return -_per_row(np.abs(_like(outputs, labels) - labels.astype(np.float64)))


def _like(outputs: Array, labels: Array) -> Array:
    """Outputs in the labels' shape: (N, 1) serves labels (N,); numpy alone would broadcast them to (N, N)."""
    if outputs.size != labels.size:
        raise ValueError("outputs and labels have different sizes")
    return outputs.astype(np.float64).reshape(labels.shape)


_BUILT_IN: dict[str, Scores] = {
    "accuracy": _accuracy,
    AGREEMENT: _agreement,
    "mse": _squared,
    "mae": _absolute,
}


def _user_function(name: str) -> Scores:
    module, _, attribute = name.partition(":")
    try:
        function: Scores = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(
            f"metric {name!r} cannot be imported: {error}",
            advice="Give module:function, with the module's folder on PYTHONPATH.",
        ) from error
    if not callable(function):
        raise SettingsError(f"metric {name!r} is a {type(function).__name__}, expected a function")
    return function
