"""The noise of a float model: how much its own answers vary where they should not.

Float arithmetic rounds, and a network may enlarge what rounding does: large values that cancel, or a variance as the
mean of squares minus the square of the mean. Then the same model in the same runtime answers otherwise for another
batch size, or for inputs that differ by one unit in the last place. No conversion can be nearer to it than that, so the
limits of parity checks allow a multiple of this noise (`converters.quality.parity.NOISE_MULTIPLE`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
import numpy as np

from edgekit.bundle.spread import largest_by_group, spreads
from edgekit.tensors import Array

Run = Callable[[Mapping[str, Array]], dict[str, Array]]
BATCH_ENDS = (1, 4)  # rows after which another batch begins: batches of 1, of 3, and of all other rows
SEED = 5


class OutputNoise(msgspec.Struct, frozen=True):
    """The noise of one output: its largest value, and that value as a share of the output's usual parity limit."""

    name: str
    noise: float
    share: float


def measure_noise(run: Run, inputs: Mapping[str, Array], answers: Mapping[str, Array]) -> dict[str, Array]:
    """The largest noise of each output on these inputs, for each group of its columns (see `spreads`).

    Three variations are run: other batch sizes, and inputs moved by one unit in the last place, twice.

    Args:
        run: Runs the model: inputs (N, ...) to outputs (N, ...).
        inputs: Inputs (N, ...).
        answers: The model's answers to them.

    Returns:
        By output, an array that broadcasts with its answers.
    """
    rows = len(next(iter(inputs.values())))
    ends = [end for end in BATCH_ENDS if end < rows]
    batches = [slice(*ends_of) for ends_of in zip([0, *ends], [*ends, rows], strict=True)]
    parts = [run({name: value[batch] for name, value in inputs.items()}) for batch in batches]
    varied = [{name: np.concatenate([part[name] for part in parts]) for name in answers}]
    return differences(answers, [*varied, *_moved_answers(run, inputs)])


def row_noise(run: Run, inputs: Mapping[str, Array], answers: Mapping[str, Array]) -> dict[str, Array]:
    """The noise of each row of each output, by group of columns, as `measure_noise` does it for all rows together.

    Args:
        run: Runs the model; it may be another form of it than the one that gave `answers`.
        inputs: Inputs (N, ...).
        answers: The model's answers to them.

    Returns:
        By output, an array (N, ...) that broadcasts with its answers.
    """
    varied = [run(inputs), *_moved_answers(run, inputs)]
    rows = range(len(next(iter(inputs.values()))))
    parts = [
        differences(
            {name: value[row : row + 1] for name, value in answers.items()},
            [{name: value[row : row + 1] for name, value in other.items()} for other in varied],
            {name: spreads(value) for name, value in answers.items()},
        )
        for row in rows
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in answers} if parts else {}


def _moved_answers(run: Run, inputs: Mapping[str, Array]) -> list[dict[str, Array]]:
    """Answers to inputs moved by one unit in the last place; none where no input is a float."""
    if all(value.dtype.kind != "f" for value in inputs.values()):
        return []
    rng = np.random.default_rng(SEED)
    return [run({name: moved(value, rng) for name, value in inputs.items()}) for _ in range(2)]


def differences(
    answers: Mapping[str, Array], varied: list[dict[str, Array]], spread_of: Mapping[str, Array] | None = None
) -> dict[str, Array]:
    """The largest difference by output between `answers` (N, ...) and each of `varied`, which hold their first rows.

    The result has one value for each group of columns. `spread_of` gives the groups by output; None finds them in
    `answers`.
    """
    noise = {}
    for name, value in answers.items():
        spread = spreads(value) if spread_of is None else spread_of[name]
        largest = np.zeros(spread.shape)
        for other in varied:
            rows = min(len(value), len(other[name]))
            if other[name][:rows].shape != value[:rows].shape:
                continue  # the size of this output depends on the batch; parity checks report it
            difference = np.abs(other[name][:rows].astype(np.float64) - value[:rows].astype(np.float64))
            largest = np.maximum(largest, largest_by_group(np.nan_to_num(difference), spread))
        noise[name] = largest
    return noise


def moved(value: Array, rng: np.random.Generator) -> Array:
    """`value` with each float moved by one unit in the last place, up or down; zeros and other types as they are."""
    if value.dtype.kind != "f":
        return value
    directions = np.where(rng.integers(0, 2, value.shape) == 1, np.inf, -np.inf).astype(value.dtype)
    result: Array = np.where(value == 0, value, np.nextafter(value, directions)).astype(value.dtype)
    return result
