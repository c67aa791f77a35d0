"""Drops in quality with their bounds, and the number of samples that can prove a budget."""

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


class OutputDrop(msgspec.Struct, frozen=True):
    """The result of one output.

    Attributes:
        name: The output.
        metric: Name of its metric.
        choice_drop: Drop on the choice split, in the metric's unit.
        drop: Drop on the proof split, with the bounds of the test: each at the confidence of the budget.
        shown: The same drop with bounds that hold together for all outputs of the report, both sides.
        estimate: Point estimate on both splits together.
        value: The metric's value on the proof split.
    """

    name: str
    metric: str
    choice_drop: float
    drop: Drop
    shown: Drop
    estimate: float
    value: float


class ClassDrop(msgspec.Struct, frozen=True):
    """The result of one class or group; `drop` and `shown` as in OutputDrop, on the class's rows of the proof split."""

    name: str
    drop: Drop
    shown: Drop


class Judgement(msgspec.Struct, frozen=True):
    """The results of one candidate.

    Attributes:
        outputs: One result per judged output, the decision output first.
        worst: The class or group with the largest drop; None without classes.
        hardest: The class or group with the largest upper bound, which proves least; None without classes.
        expected: The drop of the decision output's accuracy that the float model's probabilities foretell on both
            splits (see `expected_drop`); None for other metrics.
        expected_on_choice: The same on the choice split, which the search may look at.
    """

    outputs: tuple[OutputDrop, ...]
    worst: ClassDrop | None = None
    hardest: ClassDrop | None = None
    expected: float | None = None
    expected_on_choice: float | None = None


def samples_needed(budget: float, confidence: float) -> int:
    """How many samples prove `budget` if none of them gets worse; 0 where no number of samples can."""
    if not 0.0 < budget < 1.0:
        return 0
    return math.ceil(math.log(1.0 - confidence) / math.log(1.0 - budget))
