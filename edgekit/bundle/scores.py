"""How sure a model is of each row of its answer, and whether another model's scores are of the same form.

Pure: the same rules in the report, in a calibration and on the device.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgekit.bundle.manifest import Task
from edgekit.tensors import Array

RANGE_SLACK = 0.01  # int8 and half-precision probabilities may lie a little outside 0..1
SUM_SLACK = 0.05  # and a row of them may add up to a little more or less than 1
CLASSIFICATION, MULTILABEL, OTHER = "classification", "multilabel", "other"
PROBABILITIES, LOGITS = "probabilities", "logits"


def row_scores(task: Task, outputs: Mapping[str, Array]) -> Array | None:
    """The score of each row, 0 to 1; NaN where the row holds NaN. None where the task has no scores.

    classification: the largest probability (of the softmax, for logits). multilabel: the certainty of the least certain
    label, max(p, 1 - p) of its probability (of the sigmoid, for logits).

    Args:
        task: Names the output with the scores.
        outputs: Outputs by logical name; the scores are (N, classes).

    Returns:
        float64 (N,), or of the shape of all axes but the last.
    """
    if task.kind not in (CLASSIFICATION, MULTILABEL) or task.scores not in (PROBABILITIES, LOGITS):
        return None
    if task.output not in outputs:
        return None
    values = outputs[task.output].astype(np.float64)
    if values.size == 0 or values.ndim == 0:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        if task.kind == MULTILABEL:
            p = 1 / (1 + np.exp(-values)) if task.scores == LOGITS else values
            certain: Array = np.maximum(p, 1 - p).min(axis=-1)
            return certain
        if task.scores == LOGITS:
            shifted = np.exp(values - values.max(axis=-1, keepdims=True))
            values = shifted / shifted.sum(axis=-1, keepdims=True)
    largest: Array = values.max(axis=-1)
    return largest


def probability_faults(task: Task, value: Array, local: Array | None) -> list[str]:
    """Why another model's answer is not of the form of this one's; empty where it is, or where the form is free.

    Args:
        task: Of the device's model; only classifiers with probabilities set a form.
        value: The other model's scores (..., classes).
        local: The device's own; None for none.
    """
    if task.kind != CLASSIFICATION or task.scores != PROBABILITIES or value.size == 0:
        return []
    values = value.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if low < -RANGE_SLACK or high > 1 + RANGE_SLACK:
        return [f"{task.output} has values from {low:.3g} to {high:.3g} where probabilities are due"]
    if local is not None and local.size and _is_distribution(local) and not _is_distribution(value):
        return [f"{task.output} has rows that do not add up to 1, as the device's do"]
    return []


def _is_distribution(value: Array) -> bool:
    return value.ndim > 0 and bool((np.abs(value.astype(np.float64).sum(axis=-1) - 1) < SUM_SLACK).all())
