"""The data of a training, and its steps. Pure."""

from __future__ import annotations

import math

import msgspec

from edgekit.tensors import Array

WARM_UP = 0.05  # share of the steps in which the rate rises


class Lesson(msgspec.Struct, frozen=True):
    """The rows to train on.

    Attributes:
        inputs: Inputs (N, ...) by name.
        answers: Answers (N, ...) of the original model, by output.
        layers: Outputs of the original layers without the removed channels, by tensor: (N, ...), or (N, k, ...) where
            the tensor's first axis is rows times k.
        decision: The output that holds class scores; empty without classes.
        logits: These scores go through a softmax first.
        labels: Class indices (N,); None without labels.
    """

    inputs: dict[str, Array]
    answers: dict[str, Array]
    layers: dict[str, Array]
    decision: str = ""
    logits: bool = False
    labels: Array | None = None


class Schedule(msgspec.Struct, frozen=True):
    """Number of steps, rows of each, the largest step as a share of a tensor's root mean square, and the seed."""

    steps: int
    rows: int
    rate: float
    seed: int


def rate_at(number: int, schedule: Schedule) -> float:
    """The rate of step `number` (from 0): it rises at the start and then falls as a cosine."""
    rising = (number + 1) / max(1.0, WARM_UP * schedule.steps)
    return schedule.rate * min(1.0, rising) * 0.5 * (1 + math.cos(math.pi * number / schedule.steps))
