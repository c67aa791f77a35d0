"""Rules of the spool: which rows are kept and why, and what is given up where there is no room. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec
import numpy as np

from device_agents.inference.row_splitting import may_split
from device_agents.inference.watch.observation import Observation
from edgekit.bundle.manifest import Task
from edgekit.bundle.scores import CLASSIFICATION, LOGITS, MULTILABEL
from edgekit.mqtt.sample_reasons import SampleReason, value_of
from edgekit.tensors import Array, TensorSpec

_ID = re.compile(r"([1-9])(\d{9})[0-9a-f]{16}")
_NUMBERS = 10**9


class Rule(msgspec.Struct, frozen=True):
    """Which answers are kept.

    Attributes:
        reasons: Kept for these reasons.
        share: Share of all answers that is also kept by chance, 0 to 1.
        model: Only of this model; empty for all.
    """

    reasons: tuple[SampleReason, ...] = ()
    share: float = 0.0
    model: str = ""

    @property
    def active(self) -> bool:
        """True where it keeps anything."""
        return bool(self.reasons) or self.share > 0

    def choose(self, model: str, reason: SampleReason | None, chance: float) -> SampleReason | None:
        """The reason for which a row is kept; None where it is not.

        Args:
            model: Name of the model.
            reason: From `reasons_of`; None for an ordinary row.
            chance: A random number from 0 to 1.
        """
        if self.model not in ("", model):
            return None
        if reason is not None and reason in self.reasons:
            return reason
        return SampleReason.RANDOM if chance < self.share else None


class Ask(msgspec.Struct, frozen=True):
    """A rule that an operator sent, until `left` samples are kept or the wall clock shows `expires`."""

    rule: Rule
    left: int
    expires: float

    def holds(self, now: float) -> bool:
        """True while it is in force; `now` is wall clock seconds."""
        return self.left > 0 and now < self.expires


class Entry(NamedTuple):
    """One stored sample: its id, from `new_id`, and its bytes."""

    id: str
    size: int

    @property
    def order(self) -> tuple[int, int]:
        """Value, then number: the smallest is given up first."""
        match = _ID.fullmatch(self.id)
        return (0, 0) if match is None else (int(match[1]), int(match[2]))


def is_id(text: str) -> bool:
    """True for the id of a sample of this spool."""
    return _ID.fullmatch(text) is not None


def new_id(reason: SampleReason, entries: Iterable[Entry], token: str) -> str:
    """An id that orders a new sample behind those of the same value; `token` (16 hex digits) makes it unique."""
    last = max((entry.order[1] for entry in entries), default=0)
    return f"{value_of(reason)}{(last + 1) % _NUMBERS:09d}{token}"


def make_room(entries: Iterable[Entry], new: Entry, capacity: int) -> list[Entry] | None:
    """The samples to give up for a new one: the oldest of the least value first.

    Returns:
        None where the new one itself has no room beside what is worth more.
    """
    ordered = sorted(entries, key=lambda entry: entry.order)
    used, given_up = sum(entry.size for entry in ordered), []
    while used + new.size > capacity:
        if not ordered or ordered[0].order > new.order:
            return None
        used -= ordered[0].size
        given_up.append(ordered.pop(0))
    return given_up


def upload_order(entries: Iterable[Entry]) -> list[Entry]:
    """The order in which samples are sent: the most valuable first, of them the oldest."""
    return sorted(entries, key=lambda entry: (-entry.order[0], entry.order[1]))


def row_count(seen: Observation) -> int | None:
    """Number of rows that can be kept one by one; None where the request cannot be split.

    A model without any free axis takes one row a request.
    """
    axes = [(spec.batch_axis, seen.inputs.get(spec.name)) for spec in seen.input_specs]
    if all(axis is None for axis, _ in axes):
        return 1
    sizes = {value.shape[axis] for axis, value in axes if axis is not None and value is not None}
    if len(sizes) != 1:
        return None
    (n,) = sizes
    splits = may_split(seen.input_specs, seen.output_specs, seen.inputs, seen.local, n)
    return n if splits or n == 1 else None


def reasons_of(seen: Observation, n: int) -> list[SampleReason | None]:
    """Why each of the `n` rows is worth keeping; None for an ordinary one."""
    unsure = _each(seen.unsure, n)
    answered = np.zeros(n, bool) if seen.cloud is None else _each(seen.cloud_rows, n, default=True)
    differs = np.zeros(n, bool) if seen.cloud is None else differing_rows(seen.task, seen.local, seen.cloud, n)
    return [
        _reason(bool(u), bool(a), None if differs is None else bool(differs[i]))
        for i, (u, a) in enumerate(zip(unsure, answered, strict=True))
    ]


def _reason(unsure: bool, answered: bool, differs: bool | None) -> SampleReason | None:
    if not answered:
        return SampleReason.UNSURE if unsure else None
    if unsure:
        return SampleReason.DISAGREEMENT if differs else SampleReason.UNSURE
    return SampleReason.REFUTED if differs else SampleReason.EXPLORED


def _each(rows: Array | None, n: int, *, default: bool = False) -> Array:
    """One truth value a row; rows without a value of their own take that of the whole request."""
    if rows is None or rows.size == 0:
        return np.full(n, default)
    each: Array = np.asarray(rows.reshape(n, -1).any(axis=1)) if rows.size % n == 0 else np.full(n, bool(rows.any()))
    return each


def differing_rows(task: Task, local: Mapping[str, Array], cloud: Mapping[str, Array], n: int) -> Array | None:
    """True for each row (n,) on which the two decide differently; None where the task has no decisions to compare."""
    mine, theirs = local.get(task.output), cloud.get(task.output)
    if mine is None or theirs is None or mine.shape != theirs.shape or not mine.size or not mine.ndim:
        return None
    if task.kind == CLASSIFICATION:
        differ = np.asarray(mine.argmax(-1) != theirs.argmax(-1))
    elif task.kind == MULTILABEL:
        limit = 0.0 if task.scores == LOGITS else 0.5
        differ = np.asarray(((mine >= limit) != (theirs >= limit)).any(-1))
    else:
        return None
    return _each(np.atleast_1d(differ), n)


def row_of(specs: Iterable[TensorSpec], values: Mapping[str, Array], row: int, n: int) -> dict[str, Array]:
    """One of the `n` rows of every tensor, without its sample axis.

    A tensor without a free axis is taken as it is; of a first axis of one, its only entry. One whose free axis counts
    something else than rows, for example found boxes, is left out.
    """
    axes = {spec.name: spec.batch_axis for spec in specs}
    taken = {}
    for name, value in values.items():
        axis = axes.get(name)
        if axis is not None and value.shape[axis] == n:
            taken[name] = np.take(value, row, axis=axis)
        elif axis is None:
            taken[name] = value[0] if value.ndim and value.shape[0] == 1 else value
    return taken
