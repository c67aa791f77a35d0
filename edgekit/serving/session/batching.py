"""Joining several requests in one run: which may be joined, how, and whether it pays. Rules only.

Requests never wait for others to arrive: when a copy of the model becomes free, the requests in the queue are joined,
and a single request runs alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgekit.bundle.bindings import Binding
from edgekit.bundle.manifest import Manifest
from edgekit.bundle.state import state_links
from edgekit.errors import DataError
from edgekit.runtimes.logical import check_inputs
from edgekit.tensors import Array, TensorSpec

BATCH_ROWS = (2, 4, 8, 16)
MIN_GAIN = 1.25  # of rows a second, over one row at a time; less gain is not worth the longer wait for each run
CALIBRATION_SECONDS = 0.3


def can_batch(manifest: Manifest) -> bool:
    """True where the artifact takes any number of rows at once. An artifact with a batch of 1 runs row by row.

    Requests of a model with state are never joined: each stream has its own.
    """
    if state_links(manifest.inputs):
        return False

    def is_free(binding: Binding) -> bool:
        return None in binding.spec.shape and binding.artifact.shape[:1] == (None,)

    read = [binding for binding in manifest.inputs if binding.in_artifact]
    return all(map(is_free, (*read, *manifest.outputs)))


def batch_axes(specs: Sequence[TensorSpec]) -> dict[str, int | None]:
    """The axis along which requests are joined, by tensor; None for a tensor without a batch."""
    return {spec.name: spec.batch_axis for spec in specs}


def shape_of(specs: Sequence[TensorSpec], inputs: Mapping[str, Array]) -> tuple[object, int]:
    """The shape of a request and its rows; (None, 1) for a request that must run alone.

    Requests of equal shape may be joined. A request that does not fit the model runs alone, so that no other request
    fails with it.
    """
    try:
        rows = check_inputs(specs, inputs)
    except DataError:
        return None, 1
    if not rows:
        return None, 1
    return tuple((spec.name, _shape_in(spec, inputs[spec.name])) for spec in specs if spec.name in inputs), rows


def _shape_in(spec: TensorSpec, value: Array) -> object:
    """The part of an input that must be equal in joined requests: its other axes, or without a batch its bytes."""
    axis = spec.batch_axis
    return value.tobytes() if axis is None else value.shape[:axis] + value.shape[axis + 1 :]


def join(requests: Sequence[Mapping[str, Array]], axes: Mapping[str, int | None]) -> dict[str, Array]:
    """The inputs of several requests of one shape, one after the other along the batch, which `axes` gives by name."""
    first = requests[0]
    return {
        name: first[name] if (axis := axes[name]) is None else np.concatenate([one[name] for one in requests], axis)
        for name in first
    }


def split(outputs: Mapping[str, Array], rows: Sequence[int], axes: Mapping[str, int | None]) -> list[dict[str, Array]]:
    """The answers of each request, copied from the joined outputs, so that no answer keeps the others in memory.

    Args:
        outputs: The joined outputs.
        rows: The rows of each request.
        axes: The batch axis of each output; only models whose every output has a batch are joined.
    """
    ends = np.cumsum(rows)
    return [
        {name: _part(value, axes[name] or 0, end - n, end) for name, value in outputs.items()}
        for n, end in zip(rows, ends, strict=True)
    ]


def _part(value: Array, axis: int, start: int, end: int) -> Array:
    part: Array = value[(slice(None),) * axis + (slice(start, end),)].copy()
    return part


def best_rows(seconds: Mapping[int, float]) -> int:
    """The number of rows to join, 1 for none, from the measured seconds of a run by its number of rows.

    It is the smallest number whose rate is within a tenth of the best; a larger one only makes runs longer.
    """
    rates = {rows: rows / max(one, 1e-9) for rows, one in seconds.items()}
    best = max(rates.values())
    if best < MIN_GAIN * rates[1]:
        return 1
    return min(rows for rows, rate in rates.items() if rate >= 0.9 * best)


def differs(manifest: Manifest, alone: Mapping[str, Array], joined: Mapping[str, Array]) -> bool:
    """True where joining rows changes the answers by more than the bundle's golden tolerance."""
    limits = {t.output: t.max_abs for t in manifest.golden.tolerances if t.runtime == manifest.runtime}
    for name, value in alone.items():
        other = joined[name]
        if value.dtype.kind == "f":
            if not np.allclose(value, other, rtol=0.0, atol=limits.get(name, 0.0), equal_nan=True):
                return True
        elif not np.array_equal(value, other):
            return True
    return False
