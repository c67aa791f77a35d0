"""Samples as a table: arrays with one row a sample, which `edgekit collect` writes as .npz. Pure.

A model's inputs have their own names, as `--data` expects. All else has names that begin with PREFIX, which readers of
data leave out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np

from edgekit.errors import DataError
from edgekit.samples.sample import Sample, TensorBytes, to_array
from edgekit.tensors import Array

PREFIX = "edgekit_"
LOCAL, CLOUD = f"{PREFIX}local.", f"{PREFIX}cloud."
ID, TIME, REASON = f"{PREFIX}id", f"{PREFIX}time", f"{PREFIX}reason"
_TEXTS = {
    ID: "id",
    f"{PREFIX}device": "device",
    f"{PREFIX}version": "version",
    f"{PREFIX}model": "digest",
    f"{PREFIX}cloud_model": "cloud_model",
}
Table = Mapping[str, Array]


def interface_of(sample: Sample) -> str:
    """The interface that samples of one table share: their inputs and local outputs, as 8 hex digits."""
    parts = [
        [(name, one.dtype.value, one.shape) for name, one in sorted(group.items())]
        for group in (sample.inputs, sample.local)
    ]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:8]


def table_of(samples: Sequence[Sample]) -> dict[str, Array]:
    """The table of samples of one model and interface.

    Arrays beside the inputs: ``edgekit_id``, ``_device``, ``_version``, ``_model`` (digest), ``_reason``, ``_time``
    (seconds since 1970), ``_score`` (NaN where there is none), ``_cloud`` (whether the cloud tier answered),
    ``_cloud_model``, and ``edgekit_local.OUTPUT`` and ``edgekit_cloud.OUTPUT``. Where the cloud tier gave no output,
    its row is NaN, or 0 for integers.

    Raises:
        DataError: an input has a name of this table.
    """
    table: dict[str, Array] = {
        name: np.array([getattr(one, field) for one in samples], np.str_) for name, field in _TEXTS.items()
    }
    table[REASON] = np.array([one.reason.value for one in samples], np.str_)
    table[TIME] = np.array([one.at for one in samples], np.float64)
    scores = [np.nan if one.score is None else one.score for one in samples]
    table[f"{PREFIX}score"] = np.array(scores, np.float64)
    table[f"{PREFIX}cloud"] = np.array([bool(one.cloud) for one in samples])
    for name in samples[0].inputs:
        if name.startswith(PREFIX):
            raise DataError(f"model {samples[0].model} has an input {name!r}; names with {PREFIX} are taken")
        table[name] = np.stack([to_array(one.inputs[name]) for one in samples])
    for name, like in samples[0].local.items():
        table[LOCAL + name] = np.stack([to_array(one.local[name]) for one in samples])
        if any(name in one.cloud for one in samples):
            table[CLOUD + name] = np.stack([_or_missing(one.cloud.get(name), like) for one in samples])
    return table


def _or_missing(tensor: TensorBytes | None, like: TensorBytes) -> Array:
    if tensor is not None and (tensor.dtype, tensor.shape) == (like.dtype, like.shape):
        return to_array(tensor)
    return _missing(to_array(like))


def _missing(like: Array) -> Array:
    return np.full_like(like, np.nan if like.dtype.kind == "f" else 0)


def joined(before: Table, new: Table) -> dict[str, Array]:
    """The rows of two tables of the same interface, each id once, ordered by time and id.

    Raises:
        DataError: the tables do not have the same inputs.
    """
    if (inputs_of(before), ID in before) != (inputs_of(new), True):
        raise DataError(f"the table has the inputs {sorted(inputs_of(before))}, expected {sorted(inputs_of(new))}")
    fresh = ~np.isin(new[ID], before[ID])
    table = {}
    for name in {**before, **new}:
        parts = [_column(one, name, like) for one, like in ((before, new), (new, before))]
        table[name] = np.concatenate([parts[0], parts[1][fresh]])
    order = np.lexsort((table[ID], table[TIME]))
    return {name: value[order] for name, value in table.items()}


def _column(table: Table, name: str, other: Table) -> Array:
    """A column of a table; rows of missing values where it has none."""
    if name in table:
        return table[name]
    like = other[name]
    return np.stack([_missing(like[0])] * len(table[ID])) if len(table[ID]) else like[:0]


def inputs_of(table: Iterable[str]) -> set[str]:
    """Names of the inputs in a table."""
    return {name for name in table if not name.startswith(PREFIX)}
