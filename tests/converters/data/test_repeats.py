"""Rows that come again by chance, and copies."""

from __future__ import annotations

import hashlib

import numpy as np

from converters.data.repeats import copied, repeated
from converters.data.samples import Samples, split_samples


def digests(values: np.ndarray) -> list[bytes]:
    return [hashlib.sha256(int(value).to_bytes(8, "big")).digest() for value in values]


def test_rows_that_equal_an_earlier_one_are_counted() -> None:
    """Three rows with the value 1 are two repeats."""
    assert repeated(digests(np.array([1, 2, 1, 3, 1]))) == 2


def test_fair_samples_of_few_values_are_no_copies_and_a_part_of_the_same_rows_is() -> None:
    """Two draws of the same few values share most of them; fifty rows of a file that are in the other are found."""
    rng = np.random.default_rng(2)
    for values, n in ((40, 300), (5000, 1000), (10**9, 2000)):
        first, second = digests(rng.integers(0, values, n)), digests(rng.integers(0, values, 4 * n))
        assert copied(first, second) == 0
        assert copied(first, first[::-1]) == n
    assert copied(first, [*second, *first[:50]]) == 50


def test_equal_rows_are_spread_over_the_parts_where_that_is_asked() -> None:
    """Of two values, each part has its fair share; the order of the rows does not matter, and no row is lost."""
    values = np.random.default_rng(3).integers(0, 2, 2000)
    split = split_samples(Samples({"x": values[:, None].astype(np.float32)}), together=False)
    parts = [part.inputs["x"] for part in (split.calibration, split.choice, split.proof)]
    assert [len(part) for part in parts] == [400, 400, 1200]
    assert all(abs(part.mean() - values.mean()) < 0.1 for part in parts)
    assert sum(part.sum() for part in parts) == values.sum()
