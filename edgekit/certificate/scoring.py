"""How sure an edge model is of each answer: the score functions of certificates. Pure.

The same code runs where a certificate is made and on the device, so a threshold means the same in both places.
"""

from __future__ import annotations

import msgspec
import numpy as np

from edgekit.tensors import Array

MAX_SOFTMAX, MARGIN, ENTROPY, ENERGY, HEAD = "max-softmax", "margin", "entropy", "energy", "head"
FUNCTIONS = (MAX_SOFTMAX, MARGIN, ENTROPY, ENERGY, HEAD)
FEATURES = 5  # of the head, before one for each class
MAX_HEAD_CLASSES = 64
_TINY = 1e-7  # probabilities of 0 are taken for this one; int8 models answer 0 exactly


class ScoreFunction(msgspec.Struct, frozen=True):
    """A score function with its parameters.

    Attributes:
        name: One of FUNCTIONS.
        scores: What the model's output holds: ``probabilities`` or ``logits``.
        temperature: Divides the logits.
        weights: Of the head: one for the constant, one for each feature, one for each class (or none for classes).
    """

    name: str = MAX_SOFTMAX
    scores: str = "probabilities"
    temperature: float = 1.0
    weights: tuple[float, ...] = ()


def logits(values: Array, scores: str) -> Array:
    """The logits of an output (N, classes), in float64; those of probabilities are their logarithms."""
    given = values.astype(np.float64)
    return given if scores == "logits" else np.log(np.clip(given, _TINY, 1.0))


def log_softmax(values: Array) -> Array:
    """The logarithm of the softmax of (N, classes)."""
    shifted = values - values.max(axis=-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def score(function: ScoreFunction, values: Array) -> Array:
    """The score of each row; higher is surer. A row with NaN or infinity scores negative infinity.

    * ``max-softmax``: the largest probability.
    * ``margin``: the largest probability less the second.
    * ``entropy``: 1 less the entropy as a share of its maximum.
    * ``energy``: T logsumexp(z / T), of Liu et al. 2020.
    * ``head``: the weighted sum of the other scores, the second probability and a constant of the predicted class.

    Args:
        function: The function.
        values: The decision output (N, classes), at least two classes.

    Returns:
        float64 (N,).
    """
    usable: Array = np.isfinite(values.astype(np.float64).sum(axis=-1))
    z = logits(np.where(usable[:, None], values, 0), function.scores)
    if function.name == ENERGY:
        result = _energy(z, function.temperature)
    elif function.name == HEAD:
        result = features(z, function.temperature, classes=len(function.weights) > FEATURES + 1) @ np.array(
            function.weights
        )
    else:
        result = _simple(z / function.temperature)[function.name]
    return np.where(usable, result, -np.inf)


def features(z: Array, temperature: float, *, classes: bool) -> Array:
    """Features of the head for logits `z` (N, classes): (N, 1 + FEATURES), and one column a class with `classes`."""
    simple = _simple(z / temperature)
    energy = np.clip(_energy(z, temperature), -100.0, 100.0)
    second = simple[MAX_SOFTMAX] - simple[MARGIN]
    columns = [np.ones(len(z)), simple[MAX_SOFTMAX], simple[MARGIN], simple[ENTROPY], second, energy / 10]
    stacked = np.stack(columns, axis=1)
    if not classes:
        return stacked
    predicted = np.eye(z.shape[1])[z.argmax(axis=1)]
    return np.concatenate([stacked, predicted], axis=1)


def function_faults(function: ScoreFunction) -> list[str]:
    """Every reason why a function from outside cannot be used."""
    faults = []
    if function.name not in FUNCTIONS:
        faults.append(f"score function {function.name!r} is unknown, expected one of {', '.join(FUNCTIONS)}")
    if function.scores not in ("probabilities", "logits"):
        faults.append(f"scores are {function.scores!r}, expected probabilities or logits")
    if not (np.isfinite(function.temperature) and function.temperature > 0):
        faults.append(f"the temperature is {function.temperature}, expected a number above 0")
    if not all(np.isfinite(one) for one in function.weights):
        faults.append("a weight of the head is not a finite number")
    if function.name == HEAD and not FEATURES + 1 <= len(function.weights) <= FEATURES + 1 + MAX_HEAD_CLASSES:
        faults.append(f"the head has {len(function.weights)} weights, expected {FEATURES + 1} or more")
    return faults


def _energy(z: Array, temperature: float) -> Array:
    scaled = z / temperature
    largest = scaled.max(axis=-1)
    result: Array = temperature * (largest + np.log(np.exp(scaled - largest[:, None]).sum(axis=-1)))
    return result


def _simple(scaled: Array) -> dict[str, Array]:
    log_p = log_softmax(scaled)
    p = np.exp(log_p)
    best = np.partition(p, -2, axis=-1)[:, -2:]
    entropy = -(p * log_p).sum(axis=-1) / np.log(p.shape[-1])
    return {MAX_SOFTMAX: best[:, 1], MARGIN: best[:, 1] - best[:, 0], ENTROPY: 1 - entropy}
