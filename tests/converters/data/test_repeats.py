"""Rows that come again by chance, and copies."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from scipy.stats import binom

from converters.data.repeats import copied, different_samples, repeat_notes, repeated, without_copies
from converters.data.samples import Samples, split_samples
from edgekit.errors import DataError


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


def test_equal_rows_are_spread_over_the_parts() -> None:
    """Of two values, each part has its fair share; the order of the rows does not matter, and no row is lost."""
    values = np.random.default_rng(3).integers(0, 2, 2000)
    split = split_samples(Samples({"x": values[:, None].astype(np.float32)}))
    parts = [part.inputs["x"] for part in (split.calibration, split.choice, split.proof)]
    assert [len(part) for part in parts] == [400, 400, 1200]
    assert all(abs(part.mean() - values.mean()) < 0.1 for part in parts)
    assert sum(part.sum() for part in parts) == values.sum()


def drawn(rng: np.random.Generator, kind: str, rows: int) -> Samples:
    """Rows of a kind of input whose values come again by chance."""
    x = {
        "categories": lambda: rng.integers(0, 4, (rows, 3)),
        "one-hot": lambda: np.eye(50)[rng.integers(0, 50, rows)],
        "one number": lambda: rng.integers(0, 100, (rows, 1)),
        "short texts": lambda: np.where(
            np.arange(32) < rng.integers(1, 4, (rows, 1)), rng.zipf(1.5, (rows, 32)) % 30, 0
        ),
        "half of it silence": lambda: np.where(rng.random((rows, 1)) < 0.5, rng.normal(size=(rows, 40)), 0),
    }[kind]()
    return Samples({"x": x.astype(np.float32)}, rng.integers(0, 3, rows))


@pytest.mark.parametrize("kind", ["categories", "one-hot", "one number", "short texts", "half of it silence"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rows_that_are_equal_by_chance_stay(kind: str, seed: int) -> None:
    """They are draws of their own, and the report says how many they are."""
    samples = drawn(np.random.default_rng(seed), kind, 600)
    different = without_copies(samples)
    assert len(different) == 600
    assert "right where such inputs come again in use" in repeat_notes(samples, different)[0]


@pytest.mark.parametrize("copies", [2, 10])
def test_copies_are_left_out(copies: int) -> None:
    """Images of which each is there several times are so many different ones; the first of each stays, in its place."""
    rng = np.random.default_rng(4)
    x, y = rng.integers(0, 17, (60, 8, 8)).astype(np.float32), rng.integers(0, 10, 60)
    order = rng.permutation(60 * copies)
    samples = Samples({"x": np.repeat(x, copies, axis=0)[order]}, np.repeat(y, copies)[order])
    different = without_copies(samples)
    assert len(different) == len({row.tobytes() for row in different.inputs["x"]}) == 60
    assert len(repeat_notes(samples, different)) == 1
    assert f"{60 * (copies - 1)} of the {60 * copies} samples are copies" in repeat_notes(samples, different)[0]
    other = Samples(samples.inputs, np.arange(60 * copies))
    assert len(without_copies(other)) == 60 * copies  # other labels: somebody looked at each of them


def test_promise_holds_where_inputs_have_few_values() -> None:
    """Of 50 inputs the candidate loses some. The proof may miss a budget that is broken in 5 % of draws.

    With equal rows in one part the proof sees only some of the inputs, and misses it far more often.
    """
    rng = np.random.default_rng(5)
    missed = {False: 0, True: 0}
    for _ in range(200):
        lost = rng.random(50) < 0.1
        values = rng.integers(0, 50, 1000)
        truth = lost.mean()
        for together in missed:
            proof = split_samples(Samples({"x": values[:, None].astype(np.float32)}), together=together).proof
            losses = lost[proof.inputs["x"][:, 0].astype(int)]
            budget = truth - 1e-9  # just broken
            missed[together] += bool(binom.cdf(losses.sum(), len(losses), budget) <= 0.05) if truth else 0
    assert missed[False] <= 10 + 2 * np.sqrt(10)
    assert missed[True] > 30


def test_halves_are_found_for_several_inputs_and_odd_shapes() -> None:
    """Inputs without a value, with one value and of other types."""
    rng = np.random.default_rng(6)
    inputs = {
        "a": rng.normal(size=(20, 4, 3)),
        "b": np.zeros((20, 0)),
        "c": rng.integers(0, 9, (20, 1)),
        "d": np.ones(20),
    }
    samples = Samples({name: np.concatenate([value, value]) for name, value in inputs.items()})
    assert len(without_copies(samples)) == 20
    assert without_copies(samples.take(slice(0, 20))).inputs["a"].shape == (20, 4, 3)


def test_copies_of_a_few_samples_are_no_data() -> None:
    """200 copies of three rows are refused by these numbers, not as three rows that the user never gave."""
    rows = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    with pytest.raises(DataError, match="the 201 samples are copies of only 3, expected at least 5"):
        different_samples(Samples({"x": np.tile(rows, (67, 1))}))
