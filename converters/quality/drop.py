"""A drop in quality as a value, and how many samples could prove one."""

from __future__ import annotations

import math

import msgspec

CLOPPER_PEARSON, BETTING, STUDENT_T, DELONG = "clopper-pearson", "betting", "student-t", "delong"


class Drop(msgspec.Struct, frozen=True):
    """How much worse a candidate is than the float model on the same samples, in the metric's unit; below 0 is better.

    Attributes:
        value: Of the samples at hand.
        lower, upper: One-sided bounds, each at the stated confidence; infinite where nothing can be claimed.
        n: Number of samples.
        method: How the bounds were found: ``clopper-pearson``, ``betting``, ``student-t`` or ``delong``.
        asymptotic: True where the bounds hold for many samples only; False where they hold for any number.
    """

    value: float
    lower: float
    upper: float
    n: int
    method: str
    asymptotic: bool = False


def samples_needed(budget: float, confidence: float) -> int:
    """How many samples, none of them changed for the worse, prove `budget`; 0 where no number can."""
    if not 0.0 < budget < 1.0:
        return 0
    return math.ceil(math.log(1.0 - confidence) / math.log(1.0 - budget))
