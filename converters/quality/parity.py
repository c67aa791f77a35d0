"""Parity: the difference between answers of several runtimes to the same inputs. No runtime is imported here."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from edgekit.errors import ParityError
from edgekit.tensors import Array

FLOAT32_RELATIVE = 1e-4
FLOAT16_RELATIVE = 1e-2


class OutputDifference(msgspec.Struct, frozen=True):
    """Difference between the answers of one runtime variant and the device's runtime.

    Attributes:
        max_abs: Largest absolute difference over all outputs, in the outputs' unit.
        agreement: Share of rows with the same largest score; 1.0 where outputs are not class scores.
        equal: True where every bit is the same.
        steps: Largest difference in steps of an integer output; None where outputs are floats.
        promised: Equal bits were required.
    """

    max_abs: float
    agreement: float
    equal: bool
    steps: int | None = None
    promised: bool = False


class Parity(msgspec.Struct, frozen=True):
    """One comparison with the float model.

    Attributes:
        runtime: Name of the pass or runtime that was compared.
        where: Machine and provider that it ran on, or the step.
        max_abs: Largest absolute difference over all outputs, in the outputs' unit.
        agreement: Share of rows with the same largest score; 1.0 where outputs are not class scores.
        equal: True where every bit is the same.
        candidate: Id of the candidate; empty for a step on the canonical graph, and for the chosen artifact on an
            installed runtime.
        rows: Number of compared rows; 0 means the whole choice and proof splits.
        device: Comparison with the device's runtime; only for the chosen artifact on an installed runtime.
    """

    runtime: str
    where: str
    max_abs: float
    agreement: float
    equal: bool
    candidate: str = ""
    rows: int = 0
    device: OutputDifference | None = None


def compare(
    reference: Mapping[str, Array], answers: Mapping[str, Array], *, runtime: str, where: str, decision: str
) -> Parity:
    """Compare answers (N, ...); `decision` names the output that holds class scores, or is empty.

    Raises:
        ParityError: outputs are missing, have other shapes, or hold undefined values.
    """
    worst, equal = 0.0, True
    for name, expected in reference.items():
        if name not in answers or answers[name].shape != expected.shape:
            shape = list(answers[name].shape) if name in answers else "missing"
            raise ParityError(f"{runtime} ({where}): output {name} is {shape}, expected {list(expected.shape)}")
        difference = answers[name].astype(np.float64) - expected.astype(np.float64)
        if not np.isfinite(difference).all():
            raise ParityError(f"{runtime} ({where}): output {name} holds undefined or infinite values")
        worst = max(worst, float(np.abs(difference).max(initial=0.0)))
        equal = equal and bool(np.array_equal(answers[name], expected))
    agreement = agreement_of(reference[decision], answers[decision]) if decision else 1.0
    return Parity(runtime, where, worst, agreement, equal)


def compare_with_device(
    device_answers: Mapping[str, Array],
    answers: Mapping[str, Array],
    *,
    runtime: str,
    where: str,
    decision: str,
    scales: Mapping[str, float | Array],
    promised: bool,
) -> OutputDifference:
    """Compare answers (N, ...) of one runtime variant with those of the device's runtime.

    Args:
        device_answers: Answers of the device's runtime.
        answers: Answers of the variant.
        runtime, where: Name of the variant, for messages.
        decision: Name of the output that holds class scores; empty without classes.
        scales: Real value of one step of each output that holds integers in the artifact; an array where parts differ.
        promised: Equal bits are required.

    Raises:
        ParityError: as `compare`; or one bit differs where equal bits are required.
    """
    compared = compare(device_answers, answers, runtime=runtime, where=where, decision=decision)
    if promised and not compared.equal:
        raise ParityError(
            f"{runtime} ({where}) differs by {compared.max_abs:.3g} from the device's runtime, expected equal bits",
            advice="This is a fault of the runtime, not of the model: please report it with the report's versions.",
        )
    steps = [
        int(np.rint((np.abs(answers[name].astype(np.float64) - device_answers[name]) / scale).max(initial=0.0)))
        for name, scale in scales.items()
    ]
    return OutputDifference(compared.max_abs, compared.agreement, compared.equal, max(steps, default=None), promised)


def agreement_of(reference: Array, answers: Array) -> float:
    """Share of rows whose largest score has the same index."""
    return float(np.mean(np.argmax(reference, axis=-1) == np.argmax(answers, axis=-1)))


def tolerance(reference: Mapping[str, Array], relative: float) -> float:
    """The largest difference that counts as equal: `relative` times the largest answer, or times 1 if that is more."""
    largest = max(float(np.abs(value).max(initial=0.0)) for value in reference.values())
    return relative * max(1.0, largest)


def require(parity: Parity, limit: float) -> None:
    """Check that one step stays within its tolerance.

    Raises:
        ParityError: it changed the answers by more than `limit`.
    """
    if parity.max_abs > limit:
        raise ParityError(
            f"step {parity.runtime} changed the answers by {parity.max_abs:.3g}; the limit is {limit:.3g}",
            advice="This is a fault of the converter, not of the model: please report it with the model's operators.",
        )
