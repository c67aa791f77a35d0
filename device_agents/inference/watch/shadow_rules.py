"""Whether the answers of two bundles to the same input differ. Pure rules on arrays.

Where the task has decisions, an answer differs if the decision does. Otherwise it differs if an output is further from
the active bundle's than the output's limit: a share of the spread of its golden answers (`edgekit.bundle.spread`).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from edgekit.bundle.manifest import Manifest, Task
from edgekit.bundle.scores import CLASSIFICATION, LOGITS, MULTILABEL
from edgekit.bundle.spread import scaled_distances, spreads
from edgekit.bundle.state import client_inputs, client_outputs, state_links
from edgekit.tensors import Array, TensorSpec

LIMIT = 0.05  # in units of the spread, unless the bundle was converted with a larger --max-drop for the output
POSITIONS = 0.05  # of a row with many decisions, such as pixels, so many may change
NO_MODEL, MEMORY, STATEFUL, INPUTS, LOAD = "no-model", "memory", "stateful", "inputs", "load"


def obstacle(active: Manifest | None, candidate: Manifest) -> str:
    """Why two bundles cannot be compared on the same inputs: a word for reports; empty if they can."""
    if active is None:
        return NO_MODEL
    if state_links(active.inputs) or state_links(candidate.inputs):
        return STATEFUL
    before, after = ({one.name: one for one in client_inputs(manifest.inputs)} for manifest in (active, candidate))
    same = before.keys() == after.keys() and all(_alike(before[name], after[name]) for name in before)
    return "" if same else INPUTS


def _alike(one: TensorSpec, other: TensorSpec) -> bool:
    return one.dtype == other.dtype and len(one.shape) == len(other.shape)


class Judge:
    """Compares answers of two bundles.

    Args:
        active, candidate: Their manifests.
        golden: The active bundle's golden answers by output, (N, ...).
    """

    def __init__(self, active: Manifest, candidate: Manifest, golden: Mapping[str, Array]) -> None:
        self._tasks = active.task, candidate.task
        self._outputs = client_outputs(active.inputs, active.outputs)
        own = candidate.quality.outputs if candidate.quality is not None else msgspec.UNSET
        largest = {one.output: one.max_drop for one in own} if own is not msgspec.UNSET else {}
        self._limits = {spec.name: max(LIMIT, largest.get(spec.name, 0.0)) for spec in self._outputs}
        numbers = {name: value for name, value in golden.items() if value.dtype.kind in "fiu"}
        self._spreads = {name: spreads(value) for name, value in numbers.items() if np.isfinite(value).all()}

    def differing(self, active: Mapping[str, Array], candidate: Mapping[str, Array]) -> tuple[int, int]:
        """Rows of an answer, and how many of them differ.

        Args:
            active, candidate: Outputs of both bundles for the same inputs, by logical name.
        """
        decided = self._decided(active, candidate)
        if decided is not None:
            return len(decided), int(decided.sum())
        rows = np.zeros(1, bool)
        for spec in self._outputs:
            found = self._far(spec, active.get(spec.name), candidate.get(spec.name))
            rows = rows | found if len(rows) in (1, len(found)) or len(found) == 1 else np.array([True])
        return len(rows), int(rows.sum())

    def failing(self, active: Mapping[str, Array]) -> int:
        """Rows of an answer of the active bundle, where the other one gave none."""
        return self.differing(active, active)[0]

    def _decided(self, active: Mapping[str, Array], candidate: Mapping[str, Array]) -> Array | None:
        """For each row, whether its decision changed (N,); None where the task has no decisions."""
        task, new = self._tasks
        before = active.get(task.output)
        if task.kind not in (CLASSIFICATION, MULTILABEL) or before is None or before.ndim == 0 or not before.size:
            return None
        before = before if before.ndim > 1 else before[None]
        after = candidate.get(new.output)
        if after is None or new.kind != task.kind:
            return np.ones(len(before), bool)
        after = after if after.ndim > 1 else after[None]
        if after.shape[:-1] != before.shape[:-1]:
            return np.ones(len(before), bool)
        if task.kind == MULTILABEL:
            changed = _labels_differ(before, after, task, new)
        else:
            changed = _named(before.argmax(-1), task, new) != _named(after.argmax(-1), new, task)
        share = changed.reshape(len(before), -1).mean(axis=1)
        broken = np.isnan(after).reshape(len(before), -1).any(axis=1)
        result: Array = (share > (POSITIONS if changed.ndim > 1 else 0.0)) | broken
        return result

    def _far(self, spec: TensorSpec, active: Array | None, candidate: Array | None) -> Array:
        """For each row of one output, whether it is further from the active bundle's than the limit (N,)."""
        if active is None:
            return np.zeros(1, bool)
        active = active if spec.batch_axis == 0 else active[None]
        if candidate is None or candidate.size != active.size:
            return np.ones(len(active), bool)
        candidate = candidate.reshape(active.shape)
        spread = self._spreads.get(spec.name)
        if spread is None or active.dtype.kind not in "fiu":
            changed: Array = (candidate != active).reshape(len(active), -1).any(axis=1)
            return changed
        spread = spread if spread.ndim == active.ndim else np.full((1,) * active.ndim, spread.max())
        distances = scaled_distances(candidate, active, spread)
        far: Array = ~(distances <= self._limits[spec.name])  # NaN is far
        return far


def _named(indices: Array, task: Task, other: Task) -> Array:
    """Decisions as names where both bundles name their classes, so that an order of its own changes nothing."""
    if not task.labels or not other.labels or task.labels == other.labels:
        return indices
    names: Array = np.array(task.labels, object)[np.minimum(indices, len(task.labels) - 1)]
    return names


def _labels_differ(before: Array, after: Array, task: Task, new: Task) -> Array:
    if before.shape != after.shape:
        return np.ones(before.shape[:-1], bool)
    limits = [0.0 if one.scores == LOGITS else 0.5 for one in (task, new)]
    changed: Array = ((before > limits[0]) != (after > limits[1])).any(axis=-1)
    return changed
