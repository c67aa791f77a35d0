"""Which rows of a request are sent to the cloud tier, and how its answers join the device's own. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from device_agents.inference.cascade.certified import Held
from edgekit.bundle.manifest import Task
from edgekit.bundle.scores import row_scores
from edgekit.tensors import Array, TensorSpec


def unsure_rows(
    held: Held | None, certified: Array | None, task: Task, outputs: Mapping[str, Array], threshold: float
) -> Array | None:
    """True for each row (N,) whose answer is not sure enough; None where rows have no scores of their own.

    Args:
        held: The certificate; None without one.
        certified: Its scores (N,); None where it does not apply.
        task, outputs: Task of the model and its answer.
        threshold: The threshold of the settings; it counts without a certificate, and beside one that was refuted.
    """
    scores = row_scores(task, outputs)
    plain = None if scores is None or scores.ndim != 1 else ~(scores >= threshold)
    if held is None or certified is None:
        return plain
    unsure: Array = ~(certified >= held.certificate.threshold)
    return unsure | plain if held.refuted and plain is not None else unsure


def unusable_rows(outputs: Sequence[TensorSpec], local: Mapping[str, Array]) -> Array | None:
    """True for each row (N,) whose answer holds NaN; None where the rows cannot be told apart."""
    found: Array | None = None
    for spec in outputs:
        value = local.get(spec.name)
        if value is None or value.dtype.kind != "f" or not np.isnan(value).any():
            continue
        if spec.batch_axis is None:
            return None
        count = value.shape[spec.batch_axis]
        rows = np.asarray(np.isnan(np.moveaxis(value, spec.batch_axis, 0)).reshape(count, -1).any(axis=1))
        if found is not None and len(found) != len(rows):
            return None
        found = rows if found is None else found | rows
    return found


def may_split(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    sent: Mapping[str, Array],
    local: Mapping[str, Array],
    n: int,
) -> bool:
    """True where each of the `n` rows is one entry along a free axis of every tensor."""
    tensors = [(spec, sent.get(spec.name)) for spec in inputs if spec.name in sent]
    tensors += [(spec, local.get(spec.name)) for spec in outputs]
    return all(
        value is not None and spec.batch_axis is not None and value.shape[spec.batch_axis] == n
        for spec, value in tensors
    )


def take(specs: Sequence[TensorSpec], values: Mapping[str, Array], rows: Array) -> dict[str, Array]:
    """The rows where `rows` (N,) is true, of every tensor."""
    axes = {spec.name: spec.batch_axis or 0 for spec in specs}
    return {name: np.compress(rows, value, axis=axes.get(name, 0)) for name, value in values.items()}


def joined(
    specs: Sequence[TensorSpec], local: Mapping[str, Array], answered: Mapping[str, Array], rows: Array
) -> dict[str, Array]:
    """The outputs that the cloud tier answered: its rows where `rows` (N,) is true, and the device's elsewhere."""
    axes = {spec.name: spec.batch_axis or 0 for spec in specs}
    result = {}
    for name, value in answered.items():
        merged = np.moveaxis(local[name].copy(), axes[name], 0)
        merged[rows] = np.moveaxis(value, axes[name], 0)
        result[name] = np.ascontiguousarray(np.moveaxis(merged, 0, axes[name]))
    return result
