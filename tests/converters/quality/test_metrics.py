import numpy as np
import pytest

from converters.quality.confidence import paired_drop, upper_share
from converters.quality.drop import samples_needed
from converters.quality.metrics import find_metric, fitted, score
from edgekit.errors import DataError, SettingsError


def test_299_samples_without_a_loss_prove_one_point():
    """With the exact bound 299 samples are enough and 298 are not."""
    assert upper_share(0, 299, 0.95) <= 0.01 < upper_share(0, 298, 0.95)
    assert samples_needed(0.01, 0.95) == 299


def test_upper_share_covers_as_often_as_it_says():
    """Over the exact binomial distribution the bound fails in at most 5 % of cases."""
    from scipy import stats

    for truth in (0.01, 0.05, 0.3):
        counts = np.arange(101)
        misses = np.array([upper_share(int(k), 100, 0.95) < truth for k in counts])
        assert stats.binom.pmf(counts, 100, truth)[misses].sum() <= 0.05


def test_gains_do_not_pay_for_losses_in_the_bound():
    """Two losses and two gains: the drop is 0, its bound is that of two losses."""
    before, after = np.ones(100), np.ones(100)
    before[:2], after[2:4] = 0, 0
    drop = paired_drop(before, after, 0.95)
    assert drop.value == 0.0
    assert drop.upper == upper_share(2, 100, 0.95)
    assert drop.lower == -upper_share(2, 100, 0.95)


def test_error_metrics_report_errors_and_drop_means_rise():
    """mse: the value is the error, and a candidate with more of it has a drop above 0."""
    labels = np.zeros((50, 2))
    metric = find_metric("mse", labels)
    better, worse = score(metric, np.full((50, 2), 1.0), labels), score(metric, np.full((50, 2), 2.0), labels)
    assert (metric.value(better), metric.value(worse)) == (1.0, 4.0)
    assert paired_drop(better, worse, 0.95).value == 3.0


def test_a_column_serves_flat_labels_without_broadcasting():
    """Outputs (N, 1) against labels (N,) are compared row by row."""
    labels = np.arange(5.0)
    assert list(score(find_metric("mae", labels), labels[:, None] + 1, labels)) == [-1.0] * 5


def test_default_metric_follows_the_labels():
    """Integers give accuracy, arrays mse, none agreement."""
    assert find_metric(None, np.arange(3)).name == "accuracy"
    assert find_metric(None, np.zeros((3, 2))).name == "mse"
    assert find_metric(None, None).name == "agreement"


def test_users_function_is_called_and_held_to_its_shape(tmp_path, monkeypatch):
    """module:function returns the scores; a function that does not return one number per sample is refused."""
    (tmp_path / "mine_metric.py").write_text(
        "def good(outputs, labels):\n    return outputs[:, 0] - labels\n\ndef bad(outputs, labels):\n    return 1.0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    labels = np.zeros(4)
    assert list(score(find_metric("mine_metric:good", labels), np.ones((4, 2)), labels)) == [1.0] * 4
    with pytest.raises(DataError, match="expected 4 finite numbers"):
        score(find_metric("mine_metric:bad", labels), np.ones((4, 2)), labels)
    with pytest.raises(SettingsError, match="cannot be imported"):
        find_metric("mine_metric:none", labels)


def test_labels_beyond_the_classes_are_refused():
    """A label of class 7 in a model of 3 classes is an error and does not score 0."""
    with pytest.raises(DataError, match="labels run from 7 to 7, expected 0 to 2"):
        score(find_metric("accuracy", np.array([7])), np.zeros((1, 3)), np.array([7]))


def test_one_score_per_sample_is_a_binary_classifier():
    """Probabilities are cut at 0.5 and logits at 0, by the float model's answers; other labels are no classes."""
    labels = np.array([0, 1, 1, 0])
    plain = find_metric(None, labels)
    probabilities = fitted(plain, np.array([[0.2], [0.6], [0.4], [0.9]]))
    assert score(probabilities, np.array([[0.2], [0.6], [0.4], [0.9]]), labels).tolist() == [1, 1, 0, 0]
    logits = fitted(plain, np.array([-3.0, 0.4, 2.0, -0.1]))
    assert score(logits, np.array([-3.0, 0.4, 2.0, -0.1]), labels).tolist() == [1, 1, 1, 1]
    assert fitted(plain, np.zeros((4, 3))) is plain
    with pytest.raises(DataError, match="labels run from 3 to 90, expected 0 and 1") as caught:
        score(probabilities, np.zeros((2, 1)), np.array([3, 90]))
    assert "--metric mse" in caught.value.advice


def test_labels_of_another_shape_say_what_to_save():
    """Class indices that were saved as floats are the usual reason: the error shows both shapes, and says so."""
    with pytest.raises(DataError, match=r"answers are \[4, 3\], and labels \[4\] \(float64\)") as caught:
        score(find_metric("mse", np.zeros(4)), np.zeros((4, 3), np.float32), np.zeros(4))
    assert "y.astype(int)" in caught.value.advice


def test_unknown_metric_lists_the_known():
    """The error for an unknown metric lists the known ones."""
    with pytest.raises(SettingsError) as caught:
        find_metric("acuracy", np.arange(3))
    assert "accuracy" in caught.value.advice


def test_metric_that_needs_labels_says_so():
    """The error of accuracy without labels asks for y."""
    with pytest.raises(DataError, match="needs labels"):
        find_metric("accuracy", None)


def test_metric_function_that_raises_is_a_data_error(tmp_path, monkeypatch):
    """The error of a user's function is quoted with its type."""
    (tmp_path / "broken_metric.py").write_text("def fails(outputs, labels):\n    return {}['key']\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(DataError, match="KeyError"):
        score(find_metric("broken_metric:fails", np.zeros(2)), np.ones((2, 1)), np.zeros(2))
    with pytest.raises(SettingsError, match="cannot be imported"):
        find_metric(":", np.zeros(2))


def test_agreement_of_what_is_no_class_is_closeness():
    """Agreement of an autoencoder is by distance: a tenth of the spread away is 0.9."""
    rng = np.random.default_rng(0)
    expected = 1000.0 + rng.normal(0, 1.0, (400, 8))
    metric = find_metric(None, None, decisions=False)
    direction = rng.normal(0, 1.0, (400, 8))
    direction *= np.sqrt(8) / np.linalg.norm(direction, axis=1, keepdims=True)
    near, far = (metric.value(score(metric, expected + d * direction, expected)) for d in (0.1, 5.0))
    assert near == pytest.approx(0.9, abs=0.01)
    assert far == 0.0
    assert metric.value(score(metric, expected, expected)) == 1.0
    assert metric.value(score(metric, np.zeros((3, 2)), np.zeros((3, 2)))) == 1.0


def test_several_labels_of_one_sample_are_judged_one_by_one():
    """Integer labels of 0 and 1 in columns: the share that is decided rightly, above 0.5 or, for logits, above 0."""
    labels = np.array([[1, 0, 1], [0, 0, 0]])
    for answers in (np.array([[0.9, 0.6, 0.7], [0.1, 0.2, 0.3]]), np.array([[4.0, 1.0, 2.0], [-1.0, -3.0, -2.0]])):
        metric = fitted(find_metric(None, labels), answers)
        assert metric.name == "label-accuracy"
        assert score(metric, answers, labels) == pytest.approx([2 / 3, 1.0])
    assert find_metric(None, labels.astype(bool)).name == "label-accuracy"
    assert find_metric(None, labels.astype(float)).name == "mse"


@pytest.mark.parametrize("axis", [3, 1])
def test_classes_of_pixels_are_judged_by_the_share_of_right_ones(axis):
    """Scores (N, H, W, classes) or (N, classes, H, W) with labels (N, H, W): pixels labelled -1 do not count."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, (5, 4, 6))
    scores = np.moveaxis(np.eye(3)[labels], 3, axis)
    metric = find_metric(None, labels, shape=scores.shape[1:])
    assert (metric.name, metric.limits) == ("accuracy", (0.0, 1.0))
    assert score(metric, scores, labels) == pytest.approx(1.0)
    wrong = labels.copy()
    wrong[0, 0, :3] = (wrong[0, 0, :3] + 1) % 3
    assert score(metric, scores, wrong)[0] == pytest.approx(21 / 24)
    wrong[0, 0, :3] = -1
    wrong[1] = -1
    assert score(metric, scores, wrong) == pytest.approx(1.0)
    with pytest.raises(DataError, match="labels run from -1 to 255, expected 0 to 2") as caught:
        score(metric, scores, np.where(labels == 0, 255, wrong))
    assert "-1 do not count" in caught.value.advice


def test_classes_of_words_are_judged_also_where_all_are_0_or_1():
    """Labels (N, words) beside scores (N, words, 2) are classes, not labels of which several can hold."""
    labels = np.array([[0, 1, 1], [1, 0, -1]])
    assert find_metric(None, labels.clip(0), shape=(3, 2)).name == "accuracy"
    assert score(find_metric(None, labels, shape=(3, 2)), np.eye(2)[labels], labels) == pytest.approx(1.0)


def test_masks_have_a_decision_for_each_pixel():
    """0 and 1 in the output's shape: the share of pixels that are decided rightly."""
    labels = np.random.default_rng(2).integers(0, 2, (3, 8, 8))
    answers = (0.2 + 0.6 * labels)[..., None]
    metric = fitted(find_metric(None, labels, shape=(8, 8, 1)), answers)
    assert metric.name == "label-accuracy"
    assert score(metric, answers, labels) == pytest.approx(1.0)
    assert score(metric, 1.0 - answers, labels) == pytest.approx(0.0)


def test_labels_of_elements_that_fit_no_output_are_refused():
    """The message has both shapes."""
    with pytest.raises(DataError, match=r"labels are int64 of shape \[2, 5\]") as caught:
        find_metric(None, np.full((2, 5), 7), shape=(4, 8))
    assert "[N, 5, classes], and the output has the shape [N, 4, 8]" in caught.value.advice


def test_labels_in_columns_are_refused_by_what_they_look_like():
    """One-hot labels become indices; several labels at once have a metric of their own."""
    with pytest.raises(DataError) as caught:
        find_metric(None, np.eye(3, dtype=int))
    assert "y.argmax(axis=1)" in caught.value.advice
    with pytest.raises(DataError) as caught:
        find_metric("accuracy", np.array([[1, 0, 1], [0, 0, 0]]))
    assert "--metric label-accuracy" in caught.value.advice
    with pytest.raises(DataError, match=r"metric label-accuracy: labels are int64 of shape \[4\], expected 0 and 1"):
        find_metric("label-accuracy", np.arange(4))
