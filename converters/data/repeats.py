"""Finds rows that come again, within data and between two files, and leaves copies out. Pure.

A proof takes each row as a draw of its own. Rows that come again by chance, because inputs have few values, are such
draws; copies are not, and a sample that was used for the choice cannot be used for the proof.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from converters.data.samples import Samples, row_digests
from edgekit.errors import DataError
from edgekit.tensors import Array

LEAST_DIFFERENT = 5  # samples; fewer cannot be split in three
_MORE = 1.5  # times as many equal pairs as chance explains
_LEAST, _LEAST_SHARE = 3, 0.01  # and so many beside, in pairs and as a share of the rows
_ALIKE = 1.2  # times as many pairs with one equal half as pairs that are equal; by chance there are more
_SEED = 0


def repeated(rows: Sequence[Hashable]) -> int:
    """How many rows equal an earlier one; rows are given by their digests."""
    return len(rows) - len(set(rows))


def without_copies(samples: Samples) -> Samples:
    """The samples without those that are copies of an earlier one: the same inputs, labels and group.

    Rows are copies where hardly any two rows have one half of their values in common and not the other. Where inputs
    have few values, many have, and rows that are equal by chance stay. Rows of one value throughout (silence, a blank
    image) stay, and so do rows of streams, where the order counts.
    """
    if samples.stream is not None:
        return samples
    inputs = [value.reshape(len(value), -1) for _, value in sorted(samples.inputs.items())]
    varied = np.flatnonzero(np.any([(value != value[:, :1]).any(axis=1) for value in inputs], axis=0))
    equal = _equal_pairs(_digests(inputs, varied))
    if not equal or _pairs_equal_in_half(inputs, varied) > 2 * _ALIKE * equal:
        return samples
    judged = (samples.labels, *samples.other_labels.values(), samples.groups)
    identities = _digests([*inputs, *(one for one in judged if one is not None)], varied)
    kept, seen = np.ones(len(samples), bool), set[bytes]()
    for row, identity in zip(varied, identities, strict=True):
        kept[row] = identity not in seen
        seen.add(identity)
    return samples.take(np.flatnonzero(kept))


def different_samples(samples: Samples) -> Samples:
    """As `without_copies`, for a proof.

    Raises:
        DataError: hardly any sample is left, too few to be split.
    """
    different = without_copies(samples)
    if len(different) < min(LEAST_DIFFERENT, len(samples)):
        raise DataError(
            f"the {len(samples)} samples are copies of only {len(different)}, expected at least {LEAST_DIFFERENT} that "
            "differ",
            advice="Give samples as they come in use; 500 with labels can prove a budget of one point at 95 %.",
        )
    return different


def repeat_notes(given: Samples, different: Samples) -> list[str]:
    """Sentences for the report on copies that were left out, and on equal rows that stayed."""
    notes = []
    if len(different) < len(given):
        notes.append(
            f"{len(given) - len(different)} of the {len(given)} samples are copies of others and were left out: a "
            "proof counts each sample as a draw of its own"
        )
    count = 0 if different.stream is not None else repeated(row_digests(different))
    if count:
        notes.append(
            f"{count} of the {len(different)} samples have the same inputs as an earlier one; the proof takes them for "
            "draws of their own, which is right where such inputs come again in use, and wrong for copies"
        )
    return notes


def copied(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """How many rows of `second` equal one of `first`, where chance does not explain it; else 0.

    Equal pairs within each of two fair samples say how many pairs between them are equal by chance.

    Args:
        first, second: Digests of the rows of two files.
    """
    one, other = Counter(first), Counter(second)
    equal = sum(count * other[digest] for digest, count in one.items())
    within = _equal_pairs(first) + _equal_pairs(second)
    pairs = sum(len(rows) * (len(rows) - 1) // 2 for rows in (first, second))
    by_chance = len(first) * len(second) * within / max(pairs, 1)
    if one != other and equal <= _MORE * by_chance + max(_LEAST, _LEAST_SHARE * len(first)):
        return 0
    return sum(count for digest, count in other.items() if digest in one)


def _equal_pairs(rows: Sequence[Hashable]) -> int:
    return sum(count * (count - 1) // 2 for count in Counter(rows).values())


def _pairs_equal_in_half(inputs: Sequence[Array], rows: Array) -> int:
    """Pairs of the rows that are equal in one random half of the columns, and those that are in the other half."""
    widths = [value.shape[1] for value in inputs]
    in_first = np.arange(sum(widths)) < sum(widths) // 2
    np.random.default_rng(_SEED).shuffle(in_first)
    masks = np.split(in_first, np.cumsum(widths)[:-1])
    return _equal_pairs(_digests(inputs, rows, masks)) + _equal_pairs(_digests(inputs, rows, [~one for one in masks]))


def _digests(arrays: Sequence[Array], rows: Array, masks: Sequence[Array] | None = None) -> list[bytes]:
    """One digest for each of the given rows of several arrays (N, ...), of the columns of `masks` alone."""
    taken = masks if masks is not None else [...] * len(arrays)
    return [
        hashlib.sha256(b"".join(value[row][part].tobytes() for value, part in zip(arrays, taken, strict=True))).digest()
        for row in rows
    ]
