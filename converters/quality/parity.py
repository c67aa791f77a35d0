"""Parity: the difference between answers of several runtimes to the same inputs. No runtime is imported here."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from edgekit.bundle.spread import chunks, largest_by_group, largest_deviations, spreads
from edgekit.errors import ParityError
from edgekit.tensors import Array

# Shares of the largest deviation of an output's answers from their mean that count as equal.
FLOAT32_RELATIVE = 1e-4
FLOAT16_RELATIVE = 1e-2
# For answers of a source, by the coarsest float that it computes in.
SOURCE_RELATIVE = {"float32": 1e-4, "float64": 1e-4, "float16": 3e-2, "bfloat16": 2e-1}
NOISE_MULTIPLE = 10.0  # of the float model's own noise, which counts as equal too
ROUNDINGS = 4.0 * float(np.finfo(np.float32).eps)  # of the largest answer: float32 cannot hold it more exactly
FAULT = "This is a fault of the converter, not of the model: please report it with the model's operators."
SMALLEST_LIMIT = 1e-30


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
        output: The output that came nearest to its limit, or exceeded it; empty where no limits were given.
        difference, limit: The difference there, in the output's unit, and its limit.
        excess: The difference divided by its limit: the answers count as equal up to 1.
    """

    runtime: str
    where: str
    max_abs: float
    agreement: float
    equal: bool
    candidate: str = ""
    rows: int = 0
    device: OutputDifference | None = None
    output: str = ""
    difference: float = 0.0
    limit: float = 0.0
    excess: float = 0.0


def compare(
    reference: Mapping[str, Array],
    answers: Mapping[str, Array],
    *,
    runtime: str,
    where: str,
    decision: str,
    limits: Mapping[str, Array] | None = None,
) -> Parity:
    """Compare answers (N, ...) of every output.

    Args:
        reference: Answers of the float model.
        answers: The answers to compare.
        runtime, where: Names for messages and the report.
        decision: Name of the output that holds class scores; empty without classes.
        limits: Result of `tolerances`; None to report differences only.

    Raises:
        ParityError: outputs are missing, have other shapes, or hold undefined values.
    """
    worst, equal = 0.0, True
    nearest = Parity(runtime, where, 0.0, 1.0, True)
    for name, expected in reference.items():
        if name not in answers or answers[name].shape != expected.shape:
            shape = list(answers[name].shape) if name in answers else "missing"
            raise ParityError(f"{runtime} ({where}): output {name} is {shape}, expected {list(expected.shape)}")
        equal = equal and bool(np.array_equal(answers[name], expected))
        allowed = np.broadcast_to(np.inf if limits is None else limits[name], expected.shape)
        for before, after, limit in zip(chunks(expected), chunks(answers[name]), chunks(allowed), strict=True):
            difference = np.abs(after.astype(np.float64) - before.astype(np.float64))
            if not np.isfinite(difference).all():
                raise ParityError(f"{runtime} ({where}): output {name} holds undefined or infinite values")
            worst = max(worst, float(difference.max(initial=0.0)))
            if limits is None or not difference.size:
                continue
            ratio = difference / limit
            place = int(ratio.argmax())
            if not nearest.output or ratio.flat[place] > nearest.excess:
                nearest = msgspec.structs.replace(
                    nearest,
                    output=name,
                    difference=float(difference.flat[place]),
                    limit=float(limit.flat[place]),
                    excess=float(ratio.flat[place]),
                )
    agreement = agreement_of(reference[decision], answers[decision]) if decision else 1.0
    return msgspec.structs.replace(nearest, max_abs=worst, agreement=agreement, equal=equal)


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


def clear_agreement(reference: Array, answers: Array, limit: Array) -> bool:
    """True where every row has the same decision, but for ties: rows whose two largest scores the limit cannot tell.

    Args:
        reference: Scores of the float model (N, ..., classes).
        answers: Scores to compare.
        limit: Limit of the output (see `tolerances`).
    """
    changed = np.argmax(reference, axis=-1) != np.argmax(answers, axis=-1)
    best = np.sort(reference.astype(np.float64), axis=-1)
    margin = best[..., -1] - best[..., -2]
    return not bool(np.any(changed & (margin > 2 * float(limit.max()))))


def tolerances(
    reference: Mapping[str, Array], relative: float, noise: Mapping[str, Array] | None = None
) -> dict[str, Array]:
    """The largest difference of each output that counts as equal; the arrays broadcast with the answers.

    It is `relative` times the largest deviation from the mean answer, which an offset does not change, or
    `NOISE_MULTIPLE` times the model's own noise if that is more, and at least `ROUNDINGS` of the largest answer.
    Integers must be equal, up to the noise.

    Args:
        reference: Answers of the float model (N, ...) by output.
        relative: Share of the deviation, for example `FLOAT32_RELATIVE`.
        noise: Largest noise by output (see `converters.quality.noise`); None where it was not measured.
    """
    limits = {}
    for name, value in reference.items():
        limit = _float_limit(value, relative) if value.dtype.kind == "f" else np.zeros(1)
        if noise is not None and name in noise:
            limit = np.maximum(limit, NOISE_MULTIPLE * noise[name])
        limits[name] = np.maximum(limit, SMALLEST_LIMIT)
    return limits


def with_noise(limits: Mapping[str, Array], noise: Mapping[str, Array]) -> dict[str, Array]:
    """`limits` by output, each at least `NOISE_MULTIPLE` times the `noise` there; both broadcast with the answers."""
    return {name: np.maximum(limit, NOISE_MULTIPLE * noise[name]) for name, limit in limits.items()}


def _float_limit(value: Array, relative: float) -> Array:
    spread = spreads(value)
    limit: Array = np.maximum(relative * largest_deviations(value, spread), rounding(value, spread))
    return limit


def rounding(value: Array, spread: Array) -> Array:
    """Differences that float32 cannot tell in answers (N, ...) of this size, by groups of columns of `spread`."""
    largest = np.zeros(spread.shape)
    for part in chunks(value):
        largest = np.maximum(largest, largest_by_group(np.abs(part.astype(np.float64)), spread))
    return ROUNDINGS * largest


def require(parity: Parity, *, advice: str = FAULT) -> None:
    """Check that one step stays within its limits.

    Args:
        parity: The comparison.
        advice: What to do where it does not.

    Raises:
        ParityError: it changed an output by more.
    """
    if parity.excess > 1.0:
        if parity.limit <= SMALLEST_LIMIT and float(parity.difference).is_integer():
            raise ParityError(
                f"step {parity.runtime} changed output {parity.output}, which holds whole numbers, by "
                f"{parity.difference:.0f}; expected equal numbers",
                advice="Where the model rounds its answers to whole numbers, runtimes may round an answer between two "
                "differently: cut the model before the rounding with --cut OUTPUT[,OUTPUT].",
            )
        raise ParityError(
            f"step {parity.runtime} changed output {parity.output} by {parity.difference:.3g}; "
            f"the limit is {parity.limit:.3g}",
            advice=advice,
        )
