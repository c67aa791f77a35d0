"""How sure a model is of each row of its answer. Pure: the same rule in the report and on the device."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgekit.bundle.manifest import Task
from edgekit.tensors import Array

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
