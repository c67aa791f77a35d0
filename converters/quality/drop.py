"""A drop in quality with its bounds, and the number of samples that can prove a budget."""

from __future__ import annotations

import math

import msgspec

CLOPPER_PEARSON, BETTING, STUDENT_T, DELONG = "clopper-pearson", "betting", "student-t", "delong"


class Drop(msgspec.Struct, frozen=True):
    """How much worse a candidate is than the float model on the same samples, in the metric's unit; below 0 is better.

    Attributes:
        value: The mean drop on the samples.
        lower, upper: One-sided bounds, each at the given confidence; infinite where there are too few samples.
        n: Number of samples.
        method: How the bounds were found: ``clopper-pearson``, ``betting``, ``student-t`` or ``delong``.
        asymptotic: True where the bounds hold for many samples only; False where they hold for any number of samples.
    """

    value: float
    lower: float
    upper: float
    n: int
    method: str
    asymptotic: bool = False


def samples_needed(budget: float, confidence: float) -> int:
    """How many samples prove `budget` if none of them gets worse; 0 where no number of samples can."""
    if not 0.0 < budget < 1.0:
        return 0
    return math.ceil(math.log(1.0 - confidence) / math.log(1.0 - budget))
