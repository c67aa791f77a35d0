"""The same inputs through every runtime: how far the answers are apart. Runtimes are given, none is imported."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from edgekit.errors import ParityError
from edgekit.tensors import Array

FLOAT32_RELATIVE = 1e-4
FLOAT16_RELATIVE = 1e-2


class Likeness(msgspec.Struct, frozen=True):
    """How near the answers of one way to run an artifact are to those of the device's own way.

    Attributes:
        max_abs: Largest absolute difference over all outputs, in the outputs' unit.
        agreement: Share of rows whose largest score is in the same place; 1.0 where outputs are no scores.
        equal: True where every bit is the same.
        steps: The largest difference in steps of an integer output; None where outputs are floats.
        promised: `equal` was asserted.
    """

    max_abs: float
    agreement: float
    equal: bool
    steps: int | None = None
    promised: bool = False


class Parity(msgspec.Struct, frozen=True):
    """One comparison with the float model.

    Attributes:
        runtime: What was compared with the reference: a pass, or a runtime.
        where: The machine and provider it ran on, or the step.
        max_abs: Largest absolute difference over all outputs, in the outputs' unit.
        agreement: Share of rows whose largest score is in the same place; 1.0 where outputs are no scores.
        equal: True where every bit is the same.
        candidate: Id of the candidate that ran; empty for a step on the canonical graph, and for the chosen artifact on
            one of the runtimes that are installed.
        rows: How many were compared; 0 where it is all of the choice and proof splits.
        device: The same answers beside the device's own; None but for the chosen artifact on each runtime.
    """

    runtime: str
    where: str
    max_abs: float
    agreement: float
    equal: bool
    candidate: str = ""
    rows: int = 0
    device: Likeness | None = None


def compare(
    reference: Mapping[str, Array], found: Mapping[str, Array], *, runtime: str, where: str, decision: str
) -> Parity:
    """Compare answers (N, ...); `decision` names the output that holds scores, or is empty.

    Raises:
        ParityError: outputs are missing, have other shapes, or hold undefined values.
    """
    worst, equal = 0.0, True
    for name, expected in reference.items():
        if name not in found or found[name].shape != expected.shape:
            shape = list(found[name].shape) if name in found else "missing"
            raise ParityError(f"{runtime} ({where}): output {name} is {shape}, expected {list(expected.shape)}")
        difference = found[name].astype(np.float64) - expected.astype(np.float64)
        if not np.isfinite(difference).all():
            raise ParityError(f"{runtime} ({where}): output {name} holds undefined or infinite values")
        worst = max(worst, float(np.abs(difference).max(initial=0.0)))
        equal = equal and bool(np.array_equal(found[name], expected))
    agreement = agreement_of(reference[decision], found[decision]) if decision else 1.0
    return Parity(runtime, where, worst, agreement, equal)


def beside_device(
    answers: Mapping[str, Array],
    found: Mapping[str, Array],
    *,
    runtime: str,
    where: str,
    decision: str,
    scales: Mapping[str, float | Array],
    promised: bool,
) -> Likeness:
    """Compare answers (N, ...) of one way to run an artifact with the device's own.

    Args:
        answers: The device's own.
        found: Those of the other way.
        runtime, where: What the other way is called.
        decision: The output that holds scores, or empty.
        scales: Real value of one step, of each output of integers in the artifact; an array where it has several.
        promised: The same bits are.

    Raises:
        ParityError: as `compare`; or one bit differs where the same bits are promised.
    """
    seen = compare(answers, found, runtime=runtime, where=where, decision=decision)
    if promised and not seen.equal:
        raise ParityError(
            f"{runtime} ({where}) answers {seen.max_abs:.3g} apart from the device's own way, expected the same bits",
            advice="This is a fault of the runtime, not of the model: please report it with the report's versions.",
        )
    steps = [
        int(np.rint((np.abs(found[name].astype(np.float64) - answers[name]) / scale).max(initial=0.0)))
        for name, scale in scales.items()
    ]
    return Likeness(seen.max_abs, seen.agreement, seen.equal, max(steps, default=None), promised)


def agreement_of(reference: Array, found: Array) -> float:
    """Share of rows whose largest score is in the same place."""
    return float(np.mean(np.argmax(reference, axis=-1) == np.argmax(found, axis=-1)))


def tolerance(reference: Mapping[str, Array], relative: float) -> float:
    """The largest difference that counts as the same: `relative` times the largest answer, at least of 1."""
    largest = max(float(np.abs(value).max(initial=0.0)) for value in reference.values())
    return relative * max(1.0, largest)


def require(parity: Parity, limit: float) -> None:
    """Hold one step to its tolerance.

    Raises:
        ParityError: it changed the answers by more than `limit`.
    """
    if parity.max_abs > limit:
        raise ParityError(
            f"step {parity.runtime} changed the answers by {parity.max_abs:.3g}, allowed are {limit:.3g}",
            advice="This is a fault of the converter, not of the model: please report it with the model's operators.",
        )
