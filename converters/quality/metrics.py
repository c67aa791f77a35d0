"""Metrics: one score per sample, higher is better. `converters.quality.confidence` bounds their differences."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from converters.data.streams import stream_means
from converters.quality.confidence import paired_drop
from converters.quality.drop import DELONG, Drop
from edgekit.bundle.spread import scaled_distances, spreads
from edgekit.errors import DataError, SettingsError
from edgekit.tensors import Array

Scores = Callable[[Array, Array], Array]
ACCURACY, AGREEMENT, AUC = "accuracy", "agreement", "auc"
LABEL_ACCURACY = "label-accuracy"
ERRORS = ("mse", "mae")


class Metric(msgspec.Struct, frozen=True):
    """A metric by name.

    Attributes:
        name: ``accuracy``, ``label-accuracy``, ``agreement``, ``mse``, ``mae``, ``auc`` or ``module:function``.
        scores: (outputs, labels) -> one score per sample (N,), higher is better.
        error: True where the reported value is an error (lower is better): the mean of the negated scores.
        limits: The lowest and highest possible score, for exact bounds; None where they are unknown.
    """

    name: str
    scores: Scores
    error: bool = False
    limits: tuple[float, float] | None = None

    def value(self, scores: Array) -> float:
        """The mean of `scores` (N,) in the metric's own unit."""
        mean = float(np.mean(scores))
        return -mean if self.error else mean


def find_metric(
    name: str | None, labels: Array | None, *, decisions: bool = True, shape: Sequence[int] | None = None
) -> Metric:
    """The metric `name`.

    The default: accuracy with integer labels, or label-accuracy where they are 0 and 1, several a sample, one for each
    score, and not one-hot; mse with other labels; agreement without labels.

    Args:
        name: Name of the metric, or ``module:function``; None for the default.
        labels: The labels; None without labels.
        shape: Of the output for one sample; None where it is not known. Labels of its elements or pixels need it.
        decisions: The output holds one score per class, so agreement means the same class. Otherwise it means
            closeness.

    Raises:
        SettingsError: there is no such metric, or the user's function cannot be imported.
        DataError: the metric needs labels, or labels of another type.
    """
    if name is None:
        name = AGREEMENT if labels is None else _default_for(labels, shape)
    if ":" in name:
        function = _user_function(name)
        return Metric(name, function, limits=_stated_limits(name, function))
    if name not in _BUILT_IN:
        raise SettingsError(
            f"there is no metric {name!r}", advice=f"Metrics: {', '.join(_BUILT_IN)}, or your own as module:function."
        )
    if name != AGREEMENT and labels is None:
        raise DataError(f"metric {name} needs labels", advice="Add an array 'y' to the data file.")
    of_elements = name == ACCURACY and labels is not None and _are_of_elements(labels, shape)
    if (
        name == ACCURACY
        and labels is not None
        and (labels.dtype.kind not in "iu" or labels.ndim != 1)
        and not of_elements
    ):
        raise DataError(
            f"metric accuracy: labels are {labels.dtype} of shape {list(labels.shape)}, expected integers of shape [N]",
            advice=_class_advice(labels, shape),
        )
    if name == LABEL_ACCURACY and labels is not None and not _are_columns(labels):
        raise DataError(
            f"metric {name}: labels are {labels.dtype} of shape {list(labels.shape)}, "
            "expected 0 and 1, several a sample, one for each score",
            advice="For one class per sample, save class indices of shape [N] and use accuracy.",
        )
    if name == AUC and labels is not None and not _two_classes(labels):
        raise DataError(
            f"metric auc: labels are {labels.dtype} of shape {list(labels.shape)}, expected 0 and 1 of shape [N]",
            advice="For more than two classes, use accuracy.",
        )
    if name == AGREEMENT and not decisions:
        return Metric(name, _closeness, limits=(0.0, 1.0))
    limits = (0.0, 1.0) if name == LABEL_ACCURACY or of_elements else None
    return Metric(name, _BUILT_IN[name], error=name in ERRORS, limits=limits)


def fitted(metric: Metric, answers: Array) -> Metric:
    """The metric for a model with these answers (N, ...): accuracy of single scores needs to know what they are.

    Class 1, or that a label holds, is decided above 0.5 for probabilities, which are all from 0 to 1, and above 0 for
    logits.
    """
    single = metric.name == ACCURACY and answers.size == len(answers)
    if not (single or metric.name == LABEL_ACCURACY) or not answers.size:
        return metric
    cut = 0.5 if answers.min() >= 0.0 and answers.max() <= 1.0 else 0.0
    if metric.name == LABEL_ACCURACY:
        return msgspec.structs.replace(metric, scores=functools.partial(_label_accuracy, cut=cut))
    return msgspec.structs.replace(metric, scores=functools.partial(_accuracy_of_one_score, cut=cut))


def score(metric: Metric, outputs: Array, labels: Array) -> Array:
    """Scores (N,) of `outputs` (N, ...).

    Raises:
        DataError: the metric fails for these shapes, or does not return one finite number per sample.
    """
    try:
        scores = np.asarray(metric.scores(outputs, labels), dtype=np.float64)
    except DataError as error:
        raise DataError(f"metric {metric.name}: {error}", advice=error.advice) from error
    except Exception as error:  # a user's function may raise any error; the conversion ends with it
        raise DataError(
            f"metric {metric.name} failed for outputs {list(outputs.shape)} and labels {list(labels.shape)}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if scores.shape != (len(outputs),) or not np.isfinite(scores).all():
        raise DataError(
            f"metric {metric.name} returned an array of shape {list(scores.shape)}, "
            f"expected {len(outputs)} finite numbers, one per sample"
        )
    if metric.limits is not None and len(scores) and not _within(scores, metric.limits):
        raise DataError(
            f"metric {metric.name} returned scores from {scores.min():.4g} to {scores.max():.4g}, "
            f"expected {metric.limits[0]:g} to {metric.limits[1]:g} as in its attribute limits"
        )
    return scores


def drop_of(
    metric: Metric, reference: Array, candidate: Array, labels: Array, confidence: float, *, method: str = ""
) -> Drop:
    """Bound how much worse `candidate` is than `reference`, both (N,) scores of `metric`; see `paired_drop`."""
    positive = labels.reshape(-1) > 0 if metric.name == AUC else None
    return paired_drop(reference, candidate, confidence, limits=metric.limits, positive=positive, method=method)


def stream_drop(metric: Metric, reference: Array, candidate: Array, streams: Array, confidence: float) -> Drop:
    """As `drop_of` for rows in streams (N,): the samples are the means over each stream, which counts equally.

    The area under the curve has no such means, so nothing is proven of it.
    """
    value = float(np.mean(reference - candidate))
    if metric.name == AUC:
        count = len(np.unique(streams))
        return Drop(value, -float("inf"), float("inf"), count, DELONG, asymptotic=True)
    scores = np.concatenate([reference, candidate])
    limits = metric.limits or ((0.0, 1.0) if np.isin(scores, (0.0, 1.0)).all() else None)
    means = stream_means(reference, streams), stream_means(candidate, streams)
    return paired_drop(*means, confidence, limits=limits)


def _per_row(values: Array) -> Array:
    """The mean over all but the first axis: (N, ...) to (N,)."""
    means: Array = values.astype(np.float64).reshape(len(values), -1).mean(axis=1)
    return means


def _accuracy(outputs: Array, labels: Array) -> Array:
    """1 for the right class, 0 otherwise; with a label for each element (pixel, word), the share of them in a sample.

    Elements with a label below 0 do not count. Samples without any other are right.
    """
    axis = _class_axis(labels.shape[1:], outputs.shape[1:])
    if axis is None:
        raise DataError(
            f"the output has the shape {list(outputs.shape)}, expected {_with_classes(labels.shape)}",
            advice="Choose another metric with --metric, or another output with --metric OUTPUT=accuracy.",
        )
    lowest = 0 if labels.ndim == 1 else labels.min(initial=0)
    if labels.size and (labels.min() < lowest or labels.max() >= outputs.shape[axis]):
        raise DataError(
            f"labels run from {labels.min()} to {labels.max()}, expected 0 to {outputs.shape[axis] - 1}",
            advice="Number the classes from 0, in the order of the model's scores."
            + (" Elements with the label -1 do not count." if labels.ndim > 1 else ""),
        )
    decided = np.argmax(outputs, axis=axis).reshape(len(labels), -1)
    wanted = labels.reshape(len(labels), -1)
    counted = wanted >= 0
    right = ((decided == wanted) & counted).sum(axis=1)
    shares: Array = right / np.maximum(counted.sum(axis=1), 1) + (counted.sum(axis=1) == 0)
    return shares


def _accuracy_of_one_score(outputs: Array, labels: Array, cut: float) -> Array:
    if not np.isin(labels, (0, 1)).all():
        raise DataError(
            f"labels run from {labels.min()} to {labels.max()}, expected 0 and 1: the model has one score per sample",
            advice="Name the classes 0 and 1, or give --metric mse if the model predicts a number.",
        )
    return _per_row((outputs.reshape(len(labels)) > cut) == (labels == 1))


def _label_accuracy(outputs: Array, labels: Array, cut: float = 0.5) -> Array:
    """The share of the labels of each sample that are decided rightly, each by its own score."""
    return _per_row((_like(outputs, labels) > cut) == (labels != 0))


def _agreement(outputs: Array, labels: Array) -> Array:
    """1 for the same class, 0 otherwise; `labels` are the float model's outputs."""
    return _per_row(np.argmax(outputs, axis=-1) == np.argmax(labels, axis=-1))


def _closeness(outputs: Array, labels: Array) -> Array:
    """1 minus the distance from the float model's answer in units of the spread of its answers; at least 0.

    `labels` are the float model's outputs (N, ...). `edgekit.bundle.spread` defines spread and distance. For
    integers it is the share of equal elements.
    """
    if labels.dtype.kind != "f":
        return _per_row(outputs.reshape(labels.shape) == labels)
    near: Array = np.maximum(0.0, 1.0 - scaled_distances(outputs, labels, spreads(labels)))
    return near


def _squared(outputs: Array, labels: Array) -> Array:
    return -_per_row((_like(outputs, labels) - labels.astype(np.float64)) ** 2)


def _absolute(outputs: Array, labels: Array) -> Array:
    return -_per_row(np.abs(_like(outputs, labels) - labels.astype(np.float64)))


def _placements(outputs: Array, labels: Array) -> Array:
    """For a positive, the share of negatives that score less; for a negative, the share of positives that score more.

    Ties count half. The mean over either class, and so over all samples, is the area under the ROC curve.
    """
    scores, positive = _one_score(outputs), labels.reshape(-1) > 0
    if positive.all() or not positive.any():
        raise ValueError("auc needs samples of both classes")
    placements = np.empty(len(scores))
    for own, sign in ((positive, 1.0), (~positive, -1.0)):
        others = np.sort(sign * scores[~own])
        mine = sign * scores[own]
        below, upto = np.searchsorted(others, mine, "left"), np.searchsorted(others, mine, "right")
        placements[own] = (below + upto) / (2.0 * len(others))
    return placements


def _one_score(outputs: Array) -> Array:
    """The score of the positive class: the second of two columns, or the only column."""
    flat = outputs.astype(np.float64).reshape(len(outputs), -1)
    if flat.shape[1] > 2:
        raise ValueError("auc needs outputs of shape [N], [N, 1] or [N, 2]")
    column: Array = flat[:, -1]
    return column


def _default_for(labels: Array, shape: Sequence[int] | None) -> str:
    if _are_of_elements(labels, shape):
        return ACCURACY
    fit = labels.ndim == 2 or (shape is not None and math.prod(shape) == math.prod(labels.shape[1:]))
    if fit and _are_columns(labels) and labels.dtype.kind in "iub" and not _are_one_hot(labels):
        return LABEL_ACCURACY
    return ACCURACY if labels.dtype.kind in "iu" else "mse"


def _class_axis(of_labels: Sequence[int], of_scores: Sequence[int]) -> int | None:
    """The axis of scores (N, ...) that holds the classes of labels (N, ...): the last or the first; None without one.

    The sizes are those of one sample. Axes of one element in the labels do not count.
    """
    sizes = [size for size in of_labels if size != 1]
    for axis in (len(of_scores), 1):
        left = [size for place, size in enumerate(of_scores, 1) if place != axis and size != 1]
        if of_scores and left == sizes and of_scores[axis - 1] > 1:
            return axis
    return None


def _are_of_elements(labels: Array, shape: Sequence[int] | None) -> bool:
    """True for class indices of pixels, words or other elements of each sample."""
    kind = labels.ndim > 1 and math.prod(labels.shape[1:]) > 1 and labels.dtype.kind in "iu"
    return kind and shape is not None and _class_axis(labels.shape[1:], shape) is not None


def _with_classes(shape: Sequence[int]) -> str:
    return "[N, classes]" if len(shape) == 1 else f"[N, {', '.join(map(str, shape[1:]))}, classes]"


def _class_advice(labels: Array, shape: Sequence[int] | None) -> str:
    if labels.ndim > 1 and math.prod(labels.shape[1:]) > 1 and not (labels.ndim == 2 and _are_columns(labels)):
        known = "" if shape is None else f", and the output has the shape {['N', *shape]}".replace("'", "")
        return (
            f"Labels of single elements need scores of the shape {_with_classes(labels.shape)}{known}. For masks of 0 "
            f"and 1 with a score each, use --metric {LABEL_ACCURACY}; for other numbers, mse or mae."
        )
    if not _are_columns(labels):
        return "Save class indices: y.reshape(-1).astype(int), or y.argmax(axis=1) for one column per class."
    if _are_one_hot(labels):
        return (
            "Each row has a single 1, as for one class per sample: save class indices, y.argmax(axis=1). For labels "
            f"of which several can hold, use --metric {LABEL_ACCURACY}."
        )
    return f"Rows have several 1s or none, as for labels of which several can hold: use --metric {LABEL_ACCURACY}."


def _are_columns(labels: Array) -> bool:
    """True for 0 and 1, several a sample."""
    return math.prod(labels.shape[1:]) > 1 and bool(np.isin(labels, (0, 1)).all())


def _are_one_hot(labels: Array) -> bool:
    return labels.ndim == 2 and bool((labels.sum(axis=1) == 1).all())


def _two_classes(labels: Array) -> bool:
    return labels.size == len(labels) and bool(np.isin(labels, (0, 1)).all())


def _within(scores: Array, limits: tuple[float, float]) -> bool:
    return bool(scores.min() >= limits[0] and scores.max() <= limits[1])


def _like(outputs: Array, labels: Array) -> Array:
    """Outputs in the labels' shape: (N, 1) matches labels (N,). numpy alone would broadcast them to (N, N)."""
    if outputs.size != labels.size:
        raise DataError(
            f"answers are {list(outputs.shape)}, and labels {list(labels.shape)} ({labels.dtype})",
            advice="For classes, save their indices as integers: y.astype(int). Other labels have the answer's shape.",
        )
    return outputs.astype(np.float64).reshape(labels.shape)


_BUILT_IN: dict[str, Scores] = {
    ACCURACY: _accuracy,
    LABEL_ACCURACY: _label_accuracy,
    AGREEMENT: _agreement,
    "mse": _squared,
    "mae": _absolute,
    AUC: _placements,
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


def _stated_limits(name: str, function: Scores) -> tuple[float, float] | None:
    """The limits of a user's function: its attribute ``limits = (lowest, highest)``; None without it."""
    stated = getattr(function, "limits", None)
    if stated is None:
        return None
    try:
        low, high = (float(value) for value in stated)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"metric {name!r} has limits {stated!r}, expected (lowest, highest)") from error
    if not low < high:
        raise SettingsError(f"metric {name!r} has limits {stated!r}, expected the lower first")
    return low, high
