import numpy as np
import pytest

from converters.quality.drop import Judgement, OutputDrop
from converters.quality.judging import JudgedOutput, Split, Stratum, classes_of, groups_of, judge
from converters.quality.measured import Budget, unproven_class, unproven_outputs
from converters.quality.metrics import Metric, find_metric
from edgekit.errors import DataError

ACCURACY = find_metric("accuracy", np.zeros(1, int))


def one_hot(classes, count):
    """Scores with the decisions `classes`."""
    return np.eye(count)[classes]


def test_budget_of_every_class_is_broken_and_certified_in_at_most_5_percent_of_draws():
    """Five classes, of which the truth of one or of all is just beyond the limit; all tests are at the full level.

    With one class beyond, the others pass nearly always, so this is the worst case for the family of tests.
    """
    rng = np.random.default_rng(2)
    draws, rows, limit = 1000, 400, 0.05
    metric = Metric("own:given", lambda outputs, labels: outputs[:, 0])
    budget = Budget(max_drop=0.5, max_drop_any_class=limit)
    strata = [Stratum(f"class {i}", np.arange(i * rows, (i + 1) * rows)) for i in range(5)]
    for truth in ([0.0, 0.0, 0.0, 0.0, 0.051], [0.051] * 5):
        certified = 0
        for _ in range(draws):
            lost = np.concatenate([rng.random(rows) < share for share in truth])
            reference, answers = np.ones((5 * rows, 1)), (~lost).astype(float)[:, None]
            proof = Split({"y": reference}, {"y": answers}, {})
            judged = judge(
                [JudgedOutput("y", metric)], Split({"y": reference[:5]}, {"y": answers[:5]}, {}), proof, strata, 0.95
            )
            certified += unproven_class(judged, budget) is None
        assert certified <= 0.05 * draws
    assert unproven_class(judge_without_losses(metric, strata, 5 * rows), budget) is None


def judge_without_losses(metric, strata, rows):
    """The judgement of answers that equal the float model's."""
    same = Split({"y": np.ones((rows, 1))}, {"y": np.ones((rows, 1))}, {})
    return judge([JudgedOutput("y", metric)], same, same, strata, 0.95)


def test_output_beyond_its_limit_is_certified_in_at_most_5_percent_of_draws():
    """Two outputs, the second truly beyond its limit: it passes its own test rarely, whatever the first does."""
    rng = np.random.default_rng(3)
    draws, rows = 500, 600
    metric = Metric("own:given", lambda outputs, labels: outputs[:, 0])
    judged = [JudgedOutput("a", metric), JudgedOutput("b", metric)]
    passed = 0
    for _ in range(draws):
        reference = {name: np.ones((rows, 1)) for name in "ab"}
        answers = {"a": reference["a"], "b": (rng.random((rows, 1)) >= 0.0101).astype(float)}
        split = Split(reference, answers, {})
        passed += not unproven_outputs(
            judge(judged, split, split, [], 0.95), Budget(max_drop=0.5, max_drops={"b": 0.01})
        )
    assert passed <= 0.05 * draws


def test_worst_class_shows_what_the_mean_hides():
    """One class of ten is destroyed: the mean drop is small, and the worst class is named with its bounds."""
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 10, 3000)
    wrong = np.where(labels == 7, 3, labels)
    split = Split({"y": one_hot(labels, 10)}, {"y": one_hot(wrong, 10)}, {"y": labels})
    strata = classes_of(ACCURACY, labels, split.reference["y"], ["zero", "one"], decisions=True)
    found = judge([JudgedOutput("y", ACCURACY)], split, split, strata, 0.95)
    assert found.outputs[0].drop.value < 0.12
    assert (found.worst.name, found.worst.drop.value) == ("class 7", 1.0)
    assert found.worst.shown.lower < found.worst.drop.lower  # the bounds of all classes hold together
    assert [stratum.name for stratum in strata[:3]] == ["zero", "one", "class 2"]


def test_class_without_samples_is_the_hardest_and_never_the_worst():
    """Nothing is known of it: it is not proven, and no drop is shown for it."""
    labels = np.array([0, 0, 1, 1] * 50)
    split = Split({"y": one_hot(labels, 3)}, {"y": one_hot(labels, 3)}, {"y": labels})
    strata = classes_of(ACCURACY, labels, split.reference["y"], [], decisions=True)
    found = judge([JudgedOutput("y", ACCURACY)], split, split, strata, 0.95)
    assert (found.hardest.name, found.hardest.drop.n) == ("class 2", 0)
    assert found.worst.drop.n == 100


def test_one_score_for_two_classes_has_two_classes():
    """The labels say the class; without labels one score has none."""
    labels = np.array([0, 1, 1, 0])
    strata = classes_of(ACCURACY, labels, np.zeros((4, 1)), ["bad", "good"], decisions=True)
    assert [(one.name, one.rows.tolist()) for one in strata] == [("bad", [0, 3]), ("good", [1, 2])]
    assert classes_of(ACCURACY, None, np.zeros((4, 1)), [], decisions=True) == []


def test_without_labels_the_class_is_the_float_models_decision():
    """Strata are the float model's decisions; outputs that hold no class scores have none."""
    answers = one_hot(np.array([2, 0, 2]), 3)
    agreement = find_metric(None, None)
    strata = classes_of(agreement, None, answers, [], decisions=True)
    assert [list(stratum.rows) for stratum in strata] == [[1], [], [0, 2]]
    assert classes_of(agreement, None, answers, [], decisions=False) == []


@pytest.mark.parametrize("groups", [np.array(["b", "a", "b"]), np.array([2, 1, 2])])
def test_groups_are_names_or_integers(groups):
    """Each group is a stratum, in order of its name."""
    assert [list(stratum.rows) for stratum in groups_of(groups)] == [[1], [0, 2]]
    assert groups_of(None) == []


def test_bounds_shown_side_by_side_are_wider_than_those_of_a_test():
    """With two outputs, the shown bounds hold together; with one output they are those of the test."""
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 3, 500)
    split = Split(
        {"a": one_hot(labels, 3), "b": rng.normal(0, 1, (500, 2))},
        {"a": one_hot(labels, 3), "b": rng.normal(0, 1, (500, 2))},
        {"a": labels},
    )
    closeness = find_metric("agreement", None, decisions=False)
    both = judge([JudgedOutput("a", ACCURACY), JudgedOutput("b", closeness)], split, split, [], 0.95)
    assert all(one.shown.upper > one.drop.upper for one in both.outputs)
    alone = judge([JudgedOutput("a", ACCURACY)], split, split, [], 0.95)
    assert isinstance(alone, Judgement)
    assert isinstance(alone.outputs[0], OutputDrop)
    assert alone.outputs[0].shown == alone.outputs[0].drop


def test_missing_labels_are_an_error_and_not_the_float_models_answers():
    """Accuracy without labels is refused; agreement and a metric of the user compare with the float model."""
    answers = {"y": one_hot(np.array([0, 1]), 3)}
    with pytest.raises(DataError, match="metric accuracy of output y needs labels"):
        JudgedOutput("y", ACCURACY).labels(None, answers)
    assert JudgedOutput("y", find_metric("agreement", None)).labels(None, answers) is answers["y"]
    own = Metric("mine:score", lambda outputs, labels: outputs[:, 0])
    assert JudgedOutput("y", own).labels(None, answers) is answers["y"]
