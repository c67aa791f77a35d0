"""Labels that do not fit the model are named, and others are not."""

import numpy as np
import pytest

from converters.quality.baseline import baseline_note

LABELS = np.repeat([0, 1, 2], [60, 20, 20])


def test_a_model_below_its_most_frequent_label_is_named():
    """The warning has both shares, the label, and what to do."""
    note = baseline_note("accuracy", LABELS, 0.31)
    assert "right on 31% of the proof samples, and always answering 0 on 60%" in note
    assert "--metric agreement" in note


@pytest.mark.parametrize(
    ("metric", "labels", "value"),
    [
        ("accuracy", LABELS, 0.9),
        ("accuracy", LABELS, 0.55),
        ("accuracy", LABELS[:10], 0.0),
        ("accuracy", None, 0.0),
        ("accuracy", np.zeros((40, 3)), 0.0),
        ("agreement", LABELS, 0.1),
    ],
    ids=["right", "within chance", "few samples", "no labels", "labels of elements", "another metric"],
)
def test_other_models_are_not(metric, labels, value):
    """A share that chance explains, and labels that are no classes of samples, give no warning."""
    assert baseline_note(metric, labels, value) == ""
