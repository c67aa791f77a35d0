"""Fits the score functions of an edge model and chooses the one that sends least. Pure.

The temperature and the head are fitted on samples of their own; the choice is made on others. Temperature scaling is
that of Guo et al. 2017. The head is a logistic regression of "sending this answer would gain nothing" on the other
scores, as optimal deferral depends on the difference of both models (Jitkrittum et al. 2023).
"""

from __future__ import annotations

import numpy as np
from scipy import optimize

from converters.cascade.certifying import Pairs, curve
from edgekit.certificate.document import KEPT_ACCURACY
from edgekit.certificate.scoring import (
    ENERGY,
    ENTROPY,
    FEATURES,
    HEAD,
    MARGIN,
    MAX_HEAD_CLASSES,
    MAX_SOFTMAX,
    ScoreFunction,
    features,
    log_softmax,
    logits,
)
from edgekit.tensors import Array

LEAST_FOR_HEAD = 20  # samples of each kind, gain and no gain
_PENALTY = 1.0
_LOWEST, _HIGHEST = -3.0, 4.0  # of the logarithm of the temperature


def tied(scores: Array) -> Array:
    """The scores (N,) as precise as float32, so that those that differ by rounding alone are equal.

    Another processor, or another number of rows, rounds the last digits of a score in another way. Where many answers
    have one score, as those of int8 models do, a threshold between such digits would send them all here or none there.
    """
    with np.errstate(over="ignore"):
        result: Array = scores.astype(np.float32).astype(np.float64)
    return result


def below_ties(threshold: float) -> float:
    """The middle between a threshold from scores of `tied` and the next lower one; the same scores reach both."""
    return (threshold + float(np.nextafter(np.float32(threshold), np.float32(-np.inf)))) / 2


def fit_temperature(values: Array, scores: str, classes: Array) -> float:
    """The temperature with the highest likelihood of `classes` (N,), for an output (N, classes)."""
    z, rows = logits(values, scores), np.arange(len(classes))

    def loss(log_temperature: float) -> float:
        return -float(log_softmax(z / np.exp(log_temperature))[rows, classes].mean())

    found = optimize.minimize_scalar(loss, bounds=(_LOWEST, _HIGHEST), method="bounded")
    return float(round(np.exp(found.x), 6))


def functions(values: Array, scores: str, temperature: float, pairs: Pairs) -> list[ScoreFunction]:
    """The score functions to choose from, the head fitted on these samples where there are enough.

    Args:
        values: Decision output of the edge model (N, classes).
        scores: ``probabilities`` or ``logits``.
        temperature: From `fit_temperature`.
        pairs: The same samples; their scores are not used.
    """
    names = [MAX_SOFTMAX, MARGIN, ENTROPY] + ([ENERGY] if scores == "logits" else [])
    found = [ScoreFunction(name, scores, temperature) for name in names]
    if pairs.edge_wrong is not None and pairs.cloud_wrong is not None:
        gains = pairs.edge_wrong & ~pairs.cloud_wrong
    else:
        gains = pairs.differs
    if min(gains.sum(), (~gains).sum()) < LEAST_FOR_HEAD:
        return found
    x = features(logits(values, scores), temperature, classes=values.shape[1] <= MAX_HEAD_CLASSES)
    return [*found, ScoreFunction(HEAD, scores, temperature, _logistic(x, ~gains))]


def area(pairs: Pairs, target: str) -> float:
    """Mean loss over all shares sent; the smaller, the better the score ranks the samples."""
    found = curve(pairs, target)
    weights = np.diff(found.sent)
    losses = found.loss[:-1] * (1 - found.sent[:-1] if target == KEPT_ACCURACY else 1.0)
    return float(np.nansum(losses * weights))


def _logistic(x: Array, positive: Array) -> tuple[float, ...]:
    """Weights of a logistic regression with a ridge penalty on all weights but the constant."""
    sign = np.where(positive, 1.0, -1.0)
    penalty = np.full(x.shape[1], _PENALTY)
    penalty[0] = 0.0
    penalty[1 : FEATURES + 1] = _PENALTY / 100

    def loss(w: Array) -> tuple[float, Array]:
        margin = sign * (x @ w)
        share = 1 / (1 + np.exp(np.clip(margin, -500, 500)))
        return float(np.logaddexp(0, -margin).sum() + (penalty * w * w).sum() / 2), -(
            x.T @ (sign * share)
        ) + penalty * w

    found = optimize.minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B")
    return tuple(float(round(one, 6)) for one in found.x)
