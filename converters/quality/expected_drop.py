"""The drop of accuracy that the float model's own probabilities foretell. Pure.

Where a candidate decides for class j and the float model for class i, it loses p_i - p_j in expectation, if p are true
probabilities of the classes. The mean over the rows varies much less than the measured drop, in which gains and losses
by chance cancel. So it shows which of many candidates was only lucky on the samples that it was chosen by.
"""

from __future__ import annotations

import numpy as np

from converters.quality.divergence import TINY, are_logits
from edgekit.tensors import Array

TEMPERATURES = np.geomspace(0.25, 32.0, 29)
MOST_ROWS = 2000  # that the temperature is fitted to


def expected_drop(reference: Array, answers: Array, labels: Array) -> float:
    """The expected drop of accuracy, from 0 to 1; 0 where all decisions are equal.

    The float model's scores become probabilities by the softmax temperature under which the labels are likeliest
    (Guo et al. 2017), so that a model that is too sure of itself foretells no more than it should.

    Args:
        reference: Class scores (N, classes) of the float model, at least two classes.
        answers: Class scores (N, classes) of a candidate.
        labels: Class indices (N,).
    """
    before, after = reference.argmax(axis=1), answers.argmax(axis=1)
    rows = np.flatnonzero(before != after)
    if not len(rows):
        return 0.0
    logs = reference.astype(np.float64) if are_logits(reference) else np.log(np.maximum(reference, TINY))
    known = (labels >= 0) & (labels < reference.shape[1])
    fitted = np.flatnonzero(known)[:MOST_ROWS]
    temperature = min(TEMPERATURES, key=lambda one: _surprise(logs[fitted], labels[fitted], one))
    probabilities = np.exp(_log_probabilities(logs[rows], temperature))
    each = np.arange(len(rows))
    return float(np.sum(probabilities[each, before[rows]] - probabilities[each, after[rows]]) / len(reference))


def _surprise(logs: Array, labels: Array, temperature: float) -> float:
    """The mean negative log likelihood of the labels; 0 without any."""
    if not len(labels):
        return 0.0
    return -float(_log_probabilities(logs, temperature)[np.arange(len(labels)), labels].mean())


def _log_probabilities(logs: Array, temperature: float) -> Array:
    values = logs / temperature
    values -= values.max(axis=1, keepdims=True)
    result: Array = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
    return result
