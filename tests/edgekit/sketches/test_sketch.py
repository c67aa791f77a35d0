"""Sketches: they merge exactly in any order, stay small, and estimate quantiles within one bin."""

from __future__ import annotations

import functools
import random

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.sketches.histogram import Histogram, of_histogram
from edgekit.sketches.signals import Signal, latency_ms, latency_value, parse_signal
from edgekit.sketches.sketch import MAX_BINS, Recorder, Sketch, merge, sketch_fault

VALUES = st.lists(st.floats(-1e6, 1e6) | st.floats(-1.0, 1.0) | st.integers(-50, 50).map(float), min_size=1)


def sketch(values: list[float], exponent: int = -6) -> Sketch:
    recorder = Recorder(exponent)
    for value in values:
        recorder.add(value)
    found = recorder.sketch()
    assert found is not None
    return found


@given(st.lists(VALUES, min_size=1, max_size=6), st.integers(0, 2**32))
def test_parts_merge_to_the_sketch_of_all_values(parts: list[list[float]], seed: int) -> None:
    """Whatever the order, and whatever the widths that the parts came to have."""
    whole = sketch([value for part in parts for value in part])
    shuffled = random.Random(seed).sample(parts, len(parts))
    left = merge(map(sketch, parts))
    right = functools.reduce(lambda one, other: other.merged(one), map(sketch, shuffled))
    assert left == right == whole
    assert sketch_fault(whole) == ""
    assert whole.total == whole.samples == sum(map(len, parts))


@given(VALUES, st.floats(0, 1))
def test_quantiles_are_within_one_bin(values: list[float], share: float) -> None:
    """Of the value at that place among the sorted ones."""
    found = sketch(values)
    exact = sorted(values)[max(0, int(np.ceil(share * len(values))) - 1)]
    assert abs(found.quantile(share) - exact) <= 2.0**found.exponent


def test_it_is_never_larger_than_its_bins() -> None:
    """The bytes in a message: at most 64 counts, two extremes and three numbers, however many values there were."""
    rng = np.random.default_rng(1)
    small = sketch(list(rng.normal(0, 1e-3, 100)))
    large = sketch(list(rng.normal(0, 1e5, 50_000)))
    assert max(len(small.counts), len(large.counts)) <= MAX_BINS
    assert len(msgspec.msgpack.encode(large)) <= 240
    assert len(msgspec.msgpack.encode(sketch([3.0]))) <= 32


def test_calibrations_histogram_becomes_a_sketch_of_the_same_counts() -> None:
    """Their grids are the same, so merging before or after makes no difference."""
    rng = np.random.default_rng(2)
    parts = [rng.normal(scale=scale, size=500) for scale in (1e-3, 1.0, 300.0)]
    histograms = [Histogram.of(part) for part in parts]
    before = of_histogram(functools.reduce(Histogram.merged, histograms), samples=30)
    after = merge(of_histogram(one, samples=10) for one in histograms)
    assert before == after
    assert (before.total, before.samples) == (1500, 30)


def test_what_is_no_number_is_left_out() -> None:
    """Neither NaN nor infinity, and a recorder of nothing has no sketch."""
    recorder = Recorder(0)
    for value in (float("nan"), float("inf"), -float("inf"), 1e300):
        recorder.add(value)
    assert recorder.sketch() is None


@pytest.mark.parametrize(
    "odd",
    [
        Sketch(10_000, 0, (1,), 0.0, 0.0, 1),
        Sketch(0, 0, (), 0.0, 0.0, 1),
        Sketch(0, 0, (1,) * 65, 0.0, 0.0, 1),
        Sketch(0, 2**60, (1,), 0.0, 0.0, 1),
        Sketch(0, 0, (1, -1, 1), 0.0, 0.0, 1),
        Sketch(0, 0, (1,), float("nan"), 0.0, 1),
        Sketch(0, 0, (1,), 2.0, 1.0, 1),
        Sketch(0, 0, (1,), 0.0, 0.0, 5),
        Sketch(0, 0, (2**60,), 0.0, 0.0, 1),
    ],
)
def test_sketches_of_strangers_are_judged(odd: Sketch) -> None:
    """Sizes and numbers out of range have a reason."""
    assert sketch_fault(odd)


@pytest.mark.parametrize(
    ("key", "signal"),
    [
        ("digits@0123456789ab/latency", Signal("digits", "0123456789ab", "latency")),
        ("digits@0123456789ab/input.pixel values", Signal("digits", "0123456789ab", "input.pixel values")),
        ("agent/temperature", Signal("agent", "", "temperature")),
    ],
)
def test_names_are_read_back(key: str, signal: Signal) -> None:
    """A key names bundle and signal."""
    assert parse_signal(key) == signal
    assert signal.key == key


@pytest.mark.parametrize("key", ["", "digits", "digits@xyz/latency", "../x/latency", "a/b/c", "a/input.\n", "A/score"])
def test_other_names_are_none(key: str) -> None:
    """They come from devices."""
    assert parse_signal(key) is None


def test_latency_is_counted_in_octaves() -> None:
    """Nine percent wide bins from a microsecond to hours."""
    assert latency_ms(latency_value(0.016)) == pytest.approx(16)
    assert latency_ms(latency_value(0.0)) < 0.001


@given(VALUES, VALUES, st.integers(-8, 2))
def test_sketches_of_one_width_merge_to_the_sketch_of_all_values(
    one: list[float], other: list[float], exponent: int
) -> None:
    """Their counts are added without a look at single bins, where they fit."""
    assert sketch(one, exponent).merged(sketch(other, exponent)) == sketch([*one, *other], exponent)


def test_a_sketch_with_empty_ends_merges_like_one_without() -> None:
    """One may come from outside."""
    odd, other = Sketch(0, 0, (0, 3, 0), 1.0, 1.5, 3), Sketch(0, 1, (2,), 1.0, 1.0, 2)
    assert odd.merged(other) == Sketch(0, 1, (5,), 1.0, 1.5, 5)
