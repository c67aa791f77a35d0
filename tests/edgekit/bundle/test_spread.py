import numpy as np
import pytest

from converters.quality import parity
from converters.quality.divergence import divergence
from edgekit.bundle import spread
from edgekit.bundle.spread import largest_deviations, scaled_distances, spreads

RNG = np.random.default_rng(3)
CONSTANT = [np.zeros((5, 3)), np.full((1, 4), 7.0), np.zeros((0, 3)), np.ones(4), np.zeros((3, 0))]


def test_an_offset_does_not_count():
    """Answers of 1013 and 1018 have the spread of 0 and 5."""
    values = RNG.normal(0, 5, (200, 1))
    assert spreads(1013 + values) == pytest.approx(spreads(values))
    assert largest_deviations(1013 + values, spreads(values)) == pytest.approx(np.abs(values - values.mean()).max())


@pytest.mark.parametrize("axis", [1, 2])
def test_scores_beside_boxes_in_one_output_have_a_spread_of_their_own(axis):
    """Boxes up to 4,000 hide no score that is off by 0.4, on either axis of the output."""
    boxes, scores = RNG.uniform(0, 4000, (20, 4, 50)), RNG.random((20, 3, 50)) ** 4
    whole = np.concatenate([boxes, scores], axis=1)
    off = whole.copy()
    off[:, 5] += 0.4
    if axis == 2:
        whole, off = whole.swapaxes(1, 2), off.swapaxes(1, 2)
    spread = spreads(whole)
    assert spread.shape == tuple(7 if i == axis else 1 for i in range(3))
    assert scaled_distances(off, whole, spread).min() > 0.5
    assert divergence({"y": whole}, {"y": off}, "") > 0.25
    limits = parity.tolerances({"y": whole}, parity.FLOAT16_RELATIVE)
    found = parity.compare({"y": whole}, {"y": off}, runtime="r", where="w", decision="", limits=limits)
    assert found.excess > 10


def test_few_columns_of_other_sizes_are_other_quantities():
    """A position of thousands of pixels beside an angle of one radian."""
    values = RNG.normal(0, 1, (50, 3)) * [4000, 4000, 1]
    assert spreads(values).reshape(-1) == pytest.approx([4000, 4000, 4], rel=0.3)


def test_quiet_pixels_are_not_judged_more_strictly():
    """The dark border of images, and the quiet columns of an embedding, are of the same quantity as the others."""
    images = RNG.random((20, 8, 8, 1))
    images[:, :2] = 0
    embeddings = RNG.normal(0, 1, (20, 64))
    embeddings[:, :8] *= 1e-4
    assert spreads(images).size == spreads(embeddings).size == 1


@pytest.mark.parametrize("values", CONSTANT)
def test_constant_and_empty_answers_have_a_positive_spread(values):
    """No division by zero, and no undefined value."""
    assert np.all(spreads(values) > 0)
    assert np.isfinite(largest_deviations(values, spreads(values))).all()


def test_one_output_does_not_widen_the_limit_of_another():
    """The limit of scores is by their own spread, whatever the boxes are."""
    scores = RNG.normal(0, 1, (50, 4))
    alone = parity.tolerances({"scores": scores}, 1e-2)["scores"]
    beside = parity.tolerances({"boxes": 4000 * scores, "scores": scores}, 1e-2)["scores"]
    assert np.array_equal(alone, beside)


def test_half_precision_of_answers_with_an_offset_is_not_the_same():
    """1013 ± 5 in half precision is off by up to 0.5, and the limit is a hundredth of the deviation."""
    answers = (1013 + RNG.normal(0, 5, (400, 1))).astype(np.float32)
    limits = parity.tolerances({"y": answers}, parity.FLOAT16_RELATIVE)
    halves = {"y": answers.astype(np.float16).astype(np.float32)}
    found = parity.compare({"y": answers}, halves, runtime="r", where="w", decision="", limits=limits)
    assert found.excess > 1
    assert found.output == "y"
    assert found.limit < found.difference <= 0.5


def test_integers_must_be_equal():
    """Class indices that differ are beyond the limit, however large the other indices are."""
    indices = np.arange(1000)
    limits = parity.tolerances({"y": indices}, parity.FLOAT16_RELATIVE)
    for other, beyond in ((indices, False), (np.where(indices == 5, 6, indices), True)):
        found = parity.compare({"y": indices}, {"y": other}, runtime="r", where="w", decision="", limits=limits)
        assert (found.excess > 1) == beyond


def test_ties_are_no_clear_decisions():
    """A decision may change where the limit cannot tell the two largest scores, and nowhere else."""
    reference, answers = np.array([[0.501, 0.499], [0.9, 0.1]]), np.array([[0.499, 0.501], [0.9, 0.1]])
    limit = np.full((1, 1), 0.005)
    assert parity.clear_agreement(reference, answers, limit)
    assert not parity.clear_agreement(reference, answers, limit / 10)
    assert not parity.clear_agreement(reference, answers[::-1], limit)


def test_large_answers_are_judged_in_parts(monkeypatch):
    """Parts of one sample give the spreads and distances of the whole."""
    values = RNG.uniform(0, 1, (40, 6, 30)) * np.where(np.arange(30) < 4, 300.0, 1.0)
    other = values + RNG.normal(0, 0.01, values.shape)
    whole = spreads(values)
    distances = scaled_distances(other, values, whole)
    assert whole.shape == (1, 1, 30)
    monkeypatch.setattr(spread, "CHUNK_ELEMENTS", 1)
    assert spreads(values) == pytest.approx(whole, rel=1e-12)
    assert scaled_distances(other, values, whole) == pytest.approx(distances, rel=1e-12)


def test_large_constants_hide_nothing_that_varies():
    """A column of 1e6 that never changes does not make the scores beside it constant."""
    scores = RNG.uniform(0, 1, (50, 8))
    beside = np.concatenate([np.full((50, 8), 1e6), scores], axis=1)
    assert not spread.is_constant(beside)
    assert spreads(beside)[0, -1] < 1.0
    rounded = 0.02 + RNG.normal(0, 1e-9, (50, 8)) * np.linspace(0.5, 1.5, 8)
    assert spread.is_constant(rounded)


def test_rounded_probabilities_are_still_probabilities():
    """Probabilities of integer artifacts do not add up to 1 exactly; they are compared as they are."""
    expected = np.array([[0.9, 0.07, 0.03], [0.2, 0.5, 0.3]])
    rounded = np.round(expected * 64) / 64 + 1 / 256
    assert divergence({"p": expected}, {"p": rounded}, "p") < 0.01
    logits = np.log(expected) + 3
    assert divergence({"p": logits}, {"p": logits + 1}, "p") < 1e-9
