"""Divergence from the float model's answers: one number that also shows changes too small to change a decision."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np

from edgekit.bundle.spread import chunks, scaled_distances, spreads
from edgekit.tensors import Array

TINY = 1e-7
ONE = 1e-3
FORETOLD = 0.1  # share of decisions that change for each root of a nat: a seventh of Pinsker's bound
FORETOLD_ROWS = 100  # samples that say as much about a share of 0.01 as the divergence does


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


def likely_drop(drop: float, rows: int, moved: float) -> float:
    """A share of changed decisions that was counted on few samples, mixed with the one that the divergence foretells.

    Of 16 samples, none changes in most candidates that lose more than a hundredth of all. The divergence sees changes
    of every score. By Pinsker's inequality, decisions change on at most the root of half of it; a seventh of that is
    what networks for classification show at small divergences.

    Args:
        drop: The share on `rows` samples.
        rows: Number of samples.
        moved: The divergence in nats.
    """
    foretold = FORETOLD * math.sqrt(moved)
    return (rows * drop + FORETOLD_ROWS * foretold) / (rows + FORETOLD_ROWS)


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
