import numpy as np
import pytest

from converters.quality.confidence import betting_upper, likely_method, paired_drop, upper_share
from converters.quality.metrics import drop_of, find_metric, score
from edgekit.errors import DataError, SettingsError


@pytest.mark.parametrize(("losses", "gains"), [(0.01, 0.0), (0.02, 0.015), (0.2, 0.2)])
def test_betting_bound_misses_the_truth_at_most_as_often_as_it_says(losses, gains):
    """2,000 draws of 200 samples: the upper bound lies below the true mean in at most 5 %."""
    rng = np.random.default_rng(3)
    draws = rng.choice([1.0, -1.0, 0.0], size=(2000, 200), p=[losses, gains, 1 - losses - gains])
    missed = np.mean([betting_upper(draw, 1.0, 0.95) < losses - gains for draw in draws])
    assert missed <= 0.05


def test_betting_bound_holds_for_skewed_errors_within_limits():
    """One large loss in a hundred with small gains otherwise: the bound needs no normal distribution."""
    rng = np.random.default_rng(4)
    draws = np.where(rng.random((2000, 100)) < 0.01, 1.0, -0.01)
    truth = 0.01 * 1.0 - 0.99 * 0.01
    assert np.mean([betting_upper(draw, 1.0, 0.95) < truth for draw in draws]) <= 0.05


def test_betting_counts_gains_where_many_samples_change_both_ways():
    """3 % worse and 3 % better of 3,000: betting shows about one point, counting losses alone 3.5."""
    before, after = np.ones(3000), np.ones(3000)
    after[:90], before[90:180] = 0, 0
    betting, exact = (paired_drop(before, after, 0.95, method=m) for m in ("betting", ""))
    assert betting.upper < 0.012 < 0.03 < exact.upper
    assert (betting.method, exact.method) == ("betting", "clopper-pearson")


def test_the_method_is_taken_from_other_samples():
    """With few changes the losses are counted; with many changes both ways, betting is used."""
    before, few, many = np.ones(400), np.ones(400), np.ones(400)
    few[0] = 0
    assert likely_method(before, few, 400, 0.95) == "clopper-pearson"
    many[:40] = 0
    before[40:80] = 0
    assert likely_method(before, many, 1200, 0.95) == "betting"
    assert likely_method(before * 0.5, many, 1200, 0.95) == ""


def test_errors_without_a_limit_are_marked_asymptotic_and_need_30_samples():
    """Student's t is asymptotic: it is marked so, and gives no bound for few samples."""
    rng = np.random.default_rng(0)
    scores = -rng.random(60)
    drop = paired_drop(scores, scores - 0.1, 0.95)
    assert (drop.method, drop.asymptotic) == ("student-t", True)
    assert drop.upper == pytest.approx(0.1)
    assert paired_drop(scores[:29], scores[:29] - 0.1, 0.95).upper == float("inf")


def test_auc_is_the_share_of_pairs_in_order():
    """The area under the curve equals a count of all pairs, with ties as half."""
    rng = np.random.default_rng(1)
    outputs, labels = rng.integers(0, 5, 80).astype("float32"), rng.integers(0, 2, 80)
    metric = find_metric("auc", labels)
    pairs = [(a > b) + 0.5 * (a == b) for a in outputs[labels == 1] for b in outputs[labels == 0]]
    assert metric.value(score(metric, outputs, labels)) == pytest.approx(np.mean(pairs))
    two = np.stack([1 - outputs, outputs], axis=1)
    assert metric.value(score(metric, two, labels)) == pytest.approx(np.mean(pairs))


def test_auc_bound_covers_the_true_drop():
    """DeLong on 300 draws of two scores of the same samples: the bound misses the truth in about 5 %."""
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1], 150)
    metric = find_metric("auc", labels)
    drops = []
    for _ in range(300):
        shared = labels + rng.normal(0, 1, 300)
        first, second = shared, shared + rng.normal(0, 0.7, 300)
        found = drop_of(metric, score(metric, first, labels), score(metric, second, labels), labels, 0.95)
        drops.append((found.value, found.upper))
    truth = np.mean([value for value, _ in drops])
    assert np.mean([upper < truth for _, upper in drops]) <= 0.08
    assert found.method == "delong"
    assert found.asymptotic


def test_auc_says_what_it_lacks():
    """One class, three classes, three columns, and too few samples of a class are errors or have no bound."""
    with pytest.raises(DataError, match="expected 0 and 1"):
        find_metric("auc", np.arange(3))
    labels = np.array([0, 1] * 5)
    metric = find_metric("auc", labels)
    with pytest.raises(DataError, match="both classes"):
        score(metric, np.ones(3), np.ones(3, dtype=int))
    with pytest.raises(DataError, match="outputs of shape"):
        score(metric, np.ones((10, 3)), labels)
    scores = score(metric, labels.astype("float32"), labels)
    assert drop_of(metric, scores, scores, labels, 0.95).upper == float("inf")


def test_equal_auc_on_few_samples_is_no_proof():
    """Without any change, the bound depends on the size of the smaller class."""
    labels = np.array([0] * 100 + [1] * 20)
    metric = find_metric("auc", labels)
    scores = score(metric, labels.astype("float32"), labels)
    assert drop_of(metric, scores, scores, labels, 0.95).upper == upper_share(0, 20, 0.95)


def test_a_function_that_states_its_limits_gets_an_exact_bound(tmp_path, monkeypatch):
    """With an attribute `limits` the bound is exact; scores outside the limits are refused."""
    (tmp_path / "limited_metric.py").write_text(
        "def near(outputs, labels):\n    return outputs[:, 0]\n\nnear.limits = (0, 1)\n\n"
        "def odd(outputs, labels):\n    return outputs[:, 0]\n\nodd.limits = (1, 0)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    labels = np.zeros(10)
    metric = find_metric("limited_metric:near", labels)
    first, second = (score(metric, np.full((10, 1), value), labels) for value in (0.9, 0.5))
    drop = drop_of(metric, first, second, labels, 0.95)
    assert (drop.method, drop.asymptotic) == ("betting", False)
    assert drop.value == pytest.approx(0.4)
    with pytest.raises(DataError, match="expected 0 to 1"):
        score(metric, np.full((10, 1), 2.0), labels)
    with pytest.raises(SettingsError, match="the lower first"):
        find_metric("limited_metric:odd", labels)


def test_no_bound_is_on_the_wrong_side_of_the_measured_drop():
    """Late samples are worse: betting has its bound from the first ones, below the mean of all, which then counts."""
    before, after = np.full(120, 0.999), np.full(120, 0.999)
    order = np.random.default_rng(20240229).permutation(120)
    after[order[90:]] = 0.1
    changes = before - after
    assert betting_upper(changes, 1.0, 0.95) < changes.mean()
    drop = paired_drop(before, after, 0.95, limits=(0.0, 1.0))
    assert drop.lower <= drop.value <= drop.upper


def test_rounding_of_a_mean_is_no_drop():
    """Shares of six labels that differ in both directions cancel exactly."""
    before, after = np.tile([1 / 6, 5 / 6, 2 / 6], 30), np.tile([5 / 6, 1 / 6, 2 / 6], 30)
    assert paired_drop(before, after, 0.95, limits=(0.0, 1.0)).value == 0.0
