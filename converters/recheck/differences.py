"""Compares the answers of two runtime versions, and judges them by the bundle's tolerances and budget. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from converters.quality.confidence import paired_drop, upper_share
from converters.quality.metrics import AGREEMENT, find_metric
from edgekit.bundle.evidence import EQUAL, WITHIN, WORSE
from edgekit.bundle.spread import spreads
from edgekit.tensors import Array

INTERVAL = 0.95


class Budget(msgspec.Struct, frozen=True):
    """The budget of the conversion: the largest drop, and the confidence with which it must be proven."""

    max_drop: float = 0.01
    confidence: float = 0.95


class Share(msgspec.Struct, frozen=True):
    """A share of samples, with its two-sided 95 % interval by Clopper and Pearson (1934)."""

    count: int
    n: int
    value: float
    lower: float
    upper: float

    @classmethod
    def of(cls, count: int, n: int) -> Share:
        """The share of `count` in `n` samples."""
        side = (1.0 + INTERVAL) / 2.0
        return cls(count, n, count / n, 1.0 - upper_share(n - count, n, side), upper_share(count, n, side))


class OutputDifference(msgspec.Struct, frozen=True):
    """The difference between two runtime versions in one output.

    Attributes:
        output: Logical output name.
        rows: ``golden`` or ``proof``.
        n: Number of samples.
        equal: Every bit is the same.
        differing: Share of the elements that differ.
        max_abs: Largest difference, in the output's unit; None where an answer is undefined or has another shape.
        max_spread: Largest difference, in units of the spread of the output's answers; None as `max_abs`.
        limit: The manifest's tolerance; None where it has none.
        decisions: Samples whose decision changed; None where the output has no decisions.
        drop: Upper bound of the drop in agreement with the version that the bundle was made with.
        verdict: ``equal``, ``within-budget`` or ``worse``.
        reason: Why it is worse, or why it is within the budget; empty for equal bits.
    """

    output: str
    rows: str
    n: int
    equal: bool
    differing: float = 0.0
    max_abs: float | None = 0.0
    max_spread: float | None = 0.0
    limit: float | None = None
    decisions: Share | None = None
    drop: float = 0.0
    verdict: str = EQUAL
    reason: str = ""


def compare_output(
    name: str,
    rows: str,
    reference: Array,
    answers: Array | None,
    *,
    decisions: bool,
    limit: float | None,
    budget: Budget,
) -> OutputDifference:
    """Compare one output.

    It is within the budget if no element differs by more than the tolerance and no decision changed, because then the
    manifest's own self-test cannot tell the versions apart; or if the bound on the drop in agreement is within the
    budget. A drop of any metric with scores from 0 to 1 is at most the drop in agreement.

    Args:
        name: Logical output name.
        rows: ``golden`` or ``proof``.
        reference: Answers (N, ...) of the version that the bundle was made with.
        answers: Answers of the other version; None where it has no such output.
        decisions: The output has one score per class along its last axis.
        limit: The manifest's tolerance; None where it has none.
        budget: The budget of the conversion.
    """
    n = len(reference)
    made = OutputDifference(name, rows, n, equal=False, limit=limit, verdict=WORSE)
    if answers is None or answers.shape != reference.shape or answers.dtype != reference.dtype:
        found = "missing" if answers is None else f"{answers.dtype} {list(answers.shape)}"
        reason = f"the output is {found}, expected {reference.dtype} {list(reference.shape)}"
        return msgspec.structs.replace(made, differing=1.0, max_abs=None, max_spread=None, reason=reason)
    if _same_bits(reference, answers):
        share = Share.of(0, n) if decisions else None
        return msgspec.structs.replace(made, equal=True, verdict=EQUAL, decisions=share)
    differing = float(np.mean(reference != answers))
    made = msgspec.structs.replace(made, differing=differing)
    if reference.dtype == object:
        reason = f"{differing:.2%} of the texts differ, allowed none"
        return msgspec.structs.replace(made, max_abs=None, max_spread=None, reason=reason)
    if not np.isfinite(answers.astype(np.float64)).all():
        reason = "answers are NaN or infinite"
        return msgspec.structs.replace(made, max_abs=None, max_spread=None, reason=reason)
    return _judged(made, reference, answers, decisions=decisions, budget=budget)


def _same_bits(reference: Array, answers: Array) -> bool:
    if reference.dtype == object:
        return bool(np.array_equal(reference, answers))
    return np.ascontiguousarray(reference).tobytes() == np.ascontiguousarray(answers).tobytes()


def _judged(
    made: OutputDifference, reference: Array, answers: Array, *, decisions: bool, budget: Budget
) -> OutputDifference:
    distance = np.abs(answers.astype(np.float64) - reference.astype(np.float64))
    share, changed = None, 0
    if decisions:
        differ = np.argmax(reference, axis=-1) != np.argmax(answers, axis=-1)
        changed = int(np.sum(differ.reshape(len(differ), -1).any(axis=1)))
        share = Share.of(changed, made.n)
        agreement = 1.0 - differ.reshape(len(differ), -1).any(axis=1)
    else:
        agreement = find_metric(AGREEMENT, None, decisions=False).scores(answers, reference)
    limits = None if decisions else (0.0, 1.0)
    drop = paired_drop(np.ones(made.n), agreement, budget.confidence, limits=limits).upper
    largest = float(distance.max(initial=0.0))
    made = msgspec.structs.replace(
        made,
        max_abs=largest,
        max_spread=float((distance / spreads(reference)).max(initial=0.0)),
        decisions=share,
        drop=drop,
    )
    if made.limit is not None and largest <= made.limit and not changed:
        reason = f"differs by {largest:.3g} at most, allowed {made.limit:.3g}"
        return msgspec.structs.replace(made, verdict=WITHIN, reason=reason)
    what = f"{changed} of {made.n} decisions changed" if decisions else f"answers differ by up to {largest:.3g}"
    bound = f"the drop in agreement is at most {drop:.4f} at {budget.confidence:.0%}, the budget is {budget.max_drop:g}"
    verdict = WITHIN if drop <= budget.max_drop else WORSE
    return msgspec.structs.replace(made, verdict=verdict, reason=f"{what}; {bound}")


def verdict_of(differences: Sequence[OutputDifference], golden_faults: Sequence[str]) -> str:
    """The outcome of all outputs, and of the bundle's golden self-test with the other version."""
    verdicts = {one.verdict for one in differences}
    if golden_faults or WORSE in verdicts:
        return WORSE
    return WITHIN if WITHIN in verdicts else EQUAL


def finite(value: float | None) -> float | None:
    """The value for JSON, which has no infinity; None for none."""
    return value if value is not None and math.isfinite(value) else None


def limits_of(tolerances: Mapping[str, float], name: str) -> float | None:
    """The tolerance of an output; None where the manifest has none that is finite."""
    return finite(tolerances.get(name))
