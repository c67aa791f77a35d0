"""Several requests as one run: which may be joined, how, and whether it pays. Rules only.

Nobody waits for others to come: what stands in the queue when a copy of the model is free is joined, and a request that
is alone runs alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgekit.bundle.bindings import Binding
from edgekit.bundle.manifest import Manifest
from edgekit.errors import DataError
from edgekit.runtimes.logical import check_inputs
from edgekit.tensors import Array, TensorSpec

ROWS = (2, 4, 8, 16)
LEAST_GAIN = 1.25  # rows a second, over one at a time; less is not worth the longer run that each then waits for
CALIBRATION_SECONDS = 0.3


def can_batch(manifest: Manifest) -> bool:
    """Whether the artifact takes any number of rows at once; one with a batch of 1 runs row by row and gains none."""

    def is_free(binding: Binding) -> bool:
        return binding.spec.shape[:1] == (None,) and binding.artifact.shape[:1] == (None,)

    return all(map(is_free, (*manifest.inputs, *manifest.outputs)))


def shape_of(specs: Sequence[TensorSpec], inputs: Mapping[str, Array]) -> tuple[object, int]:
    """What requests must have in common to run as one, and the rows of this one; (None, 1) for one that must run alone.

    A request that does not fit the model runs alone, so that its error is its own.
    """
    try:
        rows = check_inputs(specs, inputs)
    except DataError:
        return None, 1
    if not rows:
        return None, 1
    return tuple((name, inputs[name].shape[1:]) for name in sorted(inputs)), rows


def join(requests: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """The inputs of several requests of one shape, one after the other."""
    return {name: np.concatenate([one[name] for one in requests]) for name in requests[0]}


def split(outputs: Mapping[str, Array], rows: Sequence[int]) -> list[dict[str, Array]]:
    """The answers of each request, from those of all; copies, so that none keeps the others' in memory."""
    ends = np.cumsum(rows)
    return [
        {name: value[end - n : end].copy() for name, value in outputs.items()}
        for n, end in zip(rows, ends, strict=True)
    ]


def best_rows(seconds: Mapping[int, float]) -> int:
    """How many rows are worth joining, from the measured time of a run with so many; 1 for none.

    The smallest number that comes within a tenth of the best rate: a larger one only makes runs longer.
    """
    rates = {rows: rows / max(one, 1e-9) for rows, one in seconds.items()}
    best = max(rates.values())
    if best < LEAST_GAIN * rates[1]:
        return 1
    return min(rows for rows, rate in rates.items() if rate >= 0.9 * best)


def differs(manifest: Manifest, alone: Mapping[str, Array], joined: Mapping[str, Array]) -> bool:
    """Whether answers change by more than the bundle's golden tolerance when rows are joined."""
    limits = {t.output: t.max_abs for t in manifest.golden.tolerances if t.runtime == manifest.runtime}
    for name, value in alone.items():
        other = joined[name]
        if value.dtype.kind == "f":
            if not np.allclose(value, other, rtol=0.0, atol=limits.get(name, 0.0), equal_nan=True):
                return True
        elif not np.array_equal(value, other):
            return True
    return False
