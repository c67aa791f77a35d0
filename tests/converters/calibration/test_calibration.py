import functools
import zlib

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import helper

from converters.calibration.calibrate import Calibration, calibrate
from converters.calibration.range_rules import read_range
from converters.data.samples import Samples
from converters.frontends.onnx import canonical
from edgekit.bundle.recipe import RANGES
from edgekit.errors import CalibrationError
from edgekit.sketches.histogram import BINS, Histogram
from tests.simulators import models

LIMIT = 2.0**100
values = st.floats(-LIMIT, LIMIT, width=32)
parts = st.lists(arrays(np.float32, st.integers(1, 20), elements=values), min_size=1, max_size=6)


def same(one, other):
    return (one.minimum, one.maximum, one.exponent, one.zeros) == (
        other.minimum,
        other.maximum,
        other.exponent,
        other.zeros,
    ) and np.array_equal(one.counts, other.counts)


@settings(max_examples=60, deadline=None)
@given(parts=parts, data=st.data())
def test_merging_in_any_order_gives_what_one_pass_would(parts, data):
    """Histograms of any scales merge exactly, so data can be calibrated in parts or in parallel."""
    whole = Histogram.of(np.concatenate(parts))
    shuffled = data.draw(st.permutations([Histogram.of(part) for part in parts]))
    assert same(functools.reduce(Histogram.merged, shuffled), whole)
    while len(shuffled) > 1:  # and as a tree
        shuffled = [functools.reduce(Histogram.merged, shuffled[i : i + 2]) for i in range(0, len(shuffled), 2)]
    assert same(shuffled[0], whole)


@settings(max_examples=40, deadline=None)
@given(array=arrays(np.float32, st.integers(1, 60), elements=values))
def test_bins_hold_their_values(array):
    """Every value lies in its bin, and at most half of the bins' range is unused."""
    found = Histogram.of(array)
    index = np.searchsorted(found.edges, array.astype(np.float64), side="right") - 1
    np.testing.assert_array_equal(np.bincount(index, minlength=BINS), found.counts)
    reach = max(abs(found.minimum), abs(found.maximum))
    assert reach == 0 or found.edges[-1] <= max(2 * reach, 2.0**-99)


@settings(max_examples=40, deadline=None)
@given(parts=parts, steps=st.integers(0, 5))
def test_coarser_counts_still_merge_exactly(parts, steps):
    """A stored calibration merges with a later one, in any order."""
    first, *rest = [Histogram.of(part) for part in parts]
    kept = functools.reduce(Histogram.merged, rest, first.coarser(steps))
    other = functools.reduce(lambda one, two: two.merged(one), rest, first.coarser(steps))
    assert same(kept, other)
    assert int(kept.counts.sum()) == sum(part.size for part in parts)
    assert (kept.minimum, kept.maximum) == (min(p.min() for p in parts), max(p.max() for p in parts))


def test_histogram_of_zeros_merges():
    """A tensor that is always zero has a range of zero and merges with any other."""
    merged = Histogram.of(np.zeros(10)).merged(Histogram.of(np.array([5.0, -3.0])))
    assert (merged.minimum, merged.maximum, int(merged.counts.sum()), merged.zeros) == (-3.0, 5.0, 12, 10)


@pytest.mark.parametrize("rule", RANGES)
@settings(max_examples=25, deadline=None)
@given(array=arrays(np.float32, st.integers(1, 60), elements=values))
def test_ranges_lie_inside_the_extremes(rule, array):
    """Ranges of every rule lie inside the extremes, for any values; few values are not clipped."""
    found = Histogram.of(array)
    low, high = read_range(found, rule)
    assert found.minimum <= low <= high <= found.maximum


def test_rules_clip_a_far_outlier_and_minmax_does_not():
    """One value of a million that is ten times the others is clipped."""
    rng = np.random.default_rng(0)
    array = np.append(np.clip(rng.normal(0, 1, 1_000_000), -4, 4), 40.0)
    found = {rule: read_range(Histogram.of(array), rule) for rule in RANGES}
    assert found["minmax"] == (-4.0, 40.0)
    for rule in ("percentile", "entropy", "mse"):
        low, high = found[rule]
        assert -4.0 <= low < -1.5
        assert 1.5 < high < 20, rule


def test_mse_is_the_best_clip_of_a_grid():
    """No range between minmax and half of it has an error more than 5 % below the rule's range."""
    rng = np.random.default_rng(1)
    array = np.maximum(rng.laplace(0, 1, 50_000), 0)

    def loss(high):
        step = high / 255
        return float(((np.clip(np.rint(array / step), 0, 255) * step - array) ** 2).mean())

    low, high = read_range(Histogram.of(array), "mse")
    assert low == 0.0
    assert loss(high) < 1.05 * min(loss(array.max() * ratio) for ratio in np.linspace(0.3, 1, 71))
    assert loss(high) < loss(array.max())


def test_uniform_values_are_not_clipped_by_error():
    """Where clipping loses more than finer steps gain, the range covers all values."""
    low, high = read_range(Histogram.of(np.linspace(-1, 3, 10_001)), "mse")
    assert low < -0.95
    assert high > 2.95


def test_calibration_of_halves_is_that_of_the_whole():
    """Data can be calibrated in parts."""
    graph = canonical(models.classifier(), "test")
    x = np.random.default_rng(1).random((40, 1, 8, 8)).astype(np.float32)
    whole = calibrate(graph, Samples({"image": x}))
    halves = calibrate(graph, Samples({"image": x[:20]})).merged(calibrate(graph, Samples({"image": x[20:]})))
    assert halves.rows == whole.rows == 40
    assert set(whole.tensors) >= {"image", "c", "r", "scores"}
    for name, (low, high) in whole.ranges().items():
        np.testing.assert_allclose(halves.ranges()[name], (low, high), rtol=1e-5, atol=1e-6)


def test_calibration_is_read_back_as_it_was_saved():
    """A stored calibration has at most about one kilobyte per tensor."""
    graph = canonical(models.classifier(), "test")
    found = calibrate(graph, Samples({"image": np.random.default_rng(1).random((40, 1, 8, 8)).astype(np.float32)}))
    data = found.to_bytes()
    assert len(data) < 1024 * len(found.tensors)
    read = Calibration.from_bytes(data)
    assert read.rows == found.rows
    assert read.tensors.keys() == found.tensors.keys()
    assert all(same(read.tensors[name], found.tensors[name]) for name in found.tensors)


def _packed(value):
    return zlib.compress(msgspec.msgpack.encode(value))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"junk",
        _packed([2, 1, {}]),
        _packed([1, 1, {"x": [0.0, 1.0, 0, 0, BINS - 1, [1, 1]]}]),
        _packed([1, 1, {"x": [0.0, 1.0, 0, 0, 0, [-1]]}]),
        _packed([1, 1, {"x": [1.0, 0.0, 0, 0, 0, [1]]}]),
        _packed([1, 1, {"x": [0.0, 1.0, 9999, 0, 0, [1]]}]),
        _packed([1, 1, {}])[:-3],
        zlib.compress(b"\0" * 100_000_000),
    ],
    ids=["empty", "junk", "format", "overlong", "negative", "inverted", "exponent", "short", "bomb"],
)
def test_damaged_calibration_is_refused(data):
    """Damaged data is an error, and no large data is unpacked."""
    with pytest.raises(CalibrationError, match="calibration"):
        Calibration.from_bytes(data)


def test_undefined_tensor_is_named():
    """Samples that overflow until there are no numbers any more are refused; the error names the tensor."""
    graph = canonical(models.classifier(), "test")
    with pytest.raises(CalibrationError, match=r"tensor \w+ has undefined values"):
        calibrate(graph, Samples({"image": np.full((2, 1, 8, 8), 3e38, np.float32)}))


def test_infinite_values_of_a_mask_are_no_part_of_a_range():
    """Scores that are masked before ArgMax or TopK: a pitch detector could not be converted for them."""
    weights = {"limit": np.float32(0.5), "least": np.float32(-np.inf)}
    nodes = [
        helper.make_node("Less", ["x", "limit"], ["low"]),
        helper.make_node("Where", ["low", "x", "least"], ["masked"]),
        helper.make_node("Where", ["low", "least", "least"], ["nothing"]),
        helper.make_node("Max", ["masked", "nothing"], ["most"]),
        helper.make_node("ReduceMax", ["most"], ["y"], axes=[1], keepdims=0),
    ]
    graph = canonical(models.model_of(nodes, {"x": ["N", 4]}, {"y": ["N"]}, weights), "test")
    x = np.array([[0.1, -2.0, 0.9, 0.4], [0.2, 7.0, 0.3, -1.0]], np.float32)
    tensors = calibrate(graph, Samples({"x": x})).tensors
    assert (tensors["masked"].minimum, tensors["masked"].maximum) == pytest.approx((-2.0, 0.4))
    assert (tensors["nothing"].minimum, tensors["nothing"].maximum) == (0.0, 0.0)
