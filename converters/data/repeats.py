"""Finds rows that come again, within data and between two files. Pure.

A proof takes each row as a draw of its own. Rows that come again by chance, because inputs have few values, are such
draws; copies are not, and a sample that was used for the choice cannot be used for the proof.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

_MORE = 1.5  # times as many equal pairs as chance explains
_LEAST, _LEAST_SHARE = 3, 0.01  # and so many beside, in pairs and as a share of the rows


def repeated(digests: Sequence[bytes]) -> int:
    """How many rows equal an earlier one."""
    return len(digests) - len(set(digests))


def copied(first: Sequence[bytes], second: Sequence[bytes]) -> int:
    """How many rows of `second` equal one of `first`, where chance does not explain it; else 0.

    Equal pairs within each of two fair samples say how many pairs between them are equal by chance.

    Args:
        first, second: Digests of the rows of two files.
    """
    one, other = Counter(first), Counter(second)
    equal = sum(count * other[digest] for digest, count in one.items())
    within = sum(count * (count - 1) // 2 for rows in (one, other) for count in rows.values())
    pairs = sum(len(rows) * (len(rows) - 1) // 2 for rows in (first, second))
    by_chance = len(first) * len(second) * within / max(pairs, 1)
    if one != other and equal <= _MORE * by_chance + max(_LEAST, _LEAST_SHARE * len(first)):
        return 0
    return sum(count for digest, count in other.items() if digest in one)
