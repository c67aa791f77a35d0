"""Divergence from the float model's answers: one number that also shows changes too small to change a decision."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgekit.tensors import Array

TINY = 1e-7
ONE = 1e-3


def divergence(expected: Mapping[str, Array], answers: Mapping[str, Array], decision: str) -> float:
    """Mean Kullback-Leibler divergence in nats of the output `decision`; without one, the relative squared error.

    The relative squared error is the mean squared difference of an output (N, ...) divided by its variance, averaged
    over outputs. Scores that are not probabilities go through softmax first.
    """
    if decision:
        before, after = _probabilities(expected[decision]), _probabilities(answers[decision])
        return float(np.mean(np.sum(before * (np.log(before) - np.log(after)), axis=-1)))
    errors = []
    for name, value in expected.items():
        truth = value.astype(np.float64)
        spread = float(np.var(truth)) or float(np.mean(truth**2)) or 1.0
        errors.append(float(np.mean((answers[name].astype(np.float64) - truth) ** 2)) / spread)
    return float(np.mean(errors))


def _probabilities(scores: Array) -> Array:
    values = scores.astype(np.float64)
    if values.min(initial=0.0) < 0.0 or np.abs(values.sum(axis=-1) - 1.0).max(initial=0.0) > ONE:
        values = np.exp(values - values.max(axis=-1, keepdims=True))
    values = np.maximum(values, TINY)
    normal: Array = values / values.sum(axis=-1, keepdims=True)
    return normal
