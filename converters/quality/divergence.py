"""Divergence from the float model's answers: one number that also shows changes too small to change a decision."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from edgekit.bundle.spread import chunks, scaled_distances, spreads
from edgekit.tensors import Array

TINY = 1e-7
ONE = 1e-3


def divergence(
    expected: Mapping[str, Array], answers: Mapping[str, Array], decision: str, judged: Collection[str] | None = None
) -> float:
    """How far answers (N, ...) are from the float model's: the sum over the judged outputs; 0 for equal answers.

    For the output `decision` it is the mean Kullback-Leibler divergence in nats; scores that are not probabilities go
    through softmax first. For each other output it is the mean squared distance in units of its spread.

    Args:
        expected: Answers of the float model.
        answers: The answers to compare.
        decision: Name of the output that holds class scores; empty without classes.
        judged: Names of the outputs that count; None for all.
    """
    total = 0.0
    for name, value in expected.items():
        if not value.size or (judged is not None and name not in judged):
            continue
        if name == decision:
            logits = are_logits(value)  # of the float model alone: rounded probabilities do not add up to 1
            pairs = zip(chunks(value), chunks(answers[name].reshape(value.shape)), strict=True)
            total += float(np.mean(np.concatenate([_lost(*pair, logits=logits) for pair in pairs])))
        else:
            total += float(np.mean(scaled_distances(answers[name], value, spreads(value)) ** 2))
    return total


def are_logits(scores: Array) -> bool:
    """True where scores (N, ..., classes) are not probabilities: some are negative, or they do not add up to 1."""
    sums = (np.abs(part.sum(axis=-1, dtype=np.float64) - 1.0).max(initial=0.0) for part in chunks(scores))
    return bool(scores.min(initial=0.0) < 0.0 or any(off > ONE for off in sums))


def _lost(expected: Array, answers: Array, *, logits: bool) -> Array:
    """The Kullback-Leibler divergence of each row (N, ...) of scores (N, ..., classes), in nats."""
    before, after = _probabilities(expected, logits=logits), _probabilities(answers, logits=logits)
    lost: Array = np.sum(before * (np.log(before) - np.log(after)), axis=-1)
    return lost


def _probabilities(scores: Array, *, logits: bool) -> Array:
    values = scores.astype(np.float64)
    if logits:
        values = np.exp(values - values.max(axis=-1, keepdims=True))
    values = np.maximum(values, TINY)
    normal: Array = values / values.sum(axis=-1, keepdims=True)
    return normal
