"""The statistics of one sample, and what they ignore."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.bundle.manifest import Task
from edgekit.drift.statistics import LARGEST, answer_statistics, input_statistics, subject_of

DENSE = {"mean", "spread", "minimum", "maximum"}


def half() -> float:
    return 0.5


def measures(sample: np.ndarray) -> set[str]:
    return {name.removeprefix("input.x.") for name in input_statistics("x", sample, half)}


def test_each_kind_of_input_has_its_own_statistics() -> None:
    """Images in both layouts, gray ones, series, table rows, tokens, and inputs that hold no numbers."""
    colours = {"roughness", "channel.0", "channel.1", "channel.2"}
    assert measures(np.zeros((8, 9, 3), np.uint8)) == DENSE | colours
    assert measures(np.zeros((3, 8, 9), np.float32)) == DENSE | colours
    assert measures(np.zeros((8, 8, 1), np.float32)) == DENSE | {"roughness"}
    assert measures(np.zeros((50, 2), np.float32)) == DENSE | {"roughness", "channel.0", "channel.1"}
    assert measures(np.zeros((8, 8), np.float32)) == DENSE | {"roughness"}
    assert measures(np.zeros(3, np.float32)) == {"feature.0", "feature.1", "feature.2"}
    assert measures(np.zeros((), np.float32)) == {"feature.0"}
    assert measures(np.zeros(17, np.float32)) == DENSE
    assert measures(np.zeros(40, np.int64)) == {"element", "zeros"}
    assert measures(np.array([b"text"], object)) == measures(np.zeros((0, 3), np.float32)) == set()


def test_both_layouts_of_an_image_give_the_same_numbers() -> None:
    """A bundle for NCHW and one for NHWC see the same data."""
    image = np.random.default_rng(1).random((12, 11, 3)).astype(np.float32)
    other = np.ascontiguousarray(np.moveaxis(image, -1, 0))
    assert input_statistics("x", image, half) == input_statistics("x", other, half)


def test_numbers_are_what_they_say() -> None:
    """Small enough to check by hand."""
    found = input_statistics("x", np.array([[[0.0], [1.0]], [[4.0], [3.0]]], np.float32), half)
    assert found == {
        "input.x.mean": 2.0,
        "input.x.spread": 1.58114,
        "input.x.minimum": 0.0,
        "input.x.maximum": 4.0,
        "input.x.roughness": 1.0,
    }
    tokens = input_statistics("ids", np.array([5, 7] * 5 + [0] * 10, np.int32), half)
    assert tokens == {"input.ids.element": 0.0, "input.ids.zeros": 0.5}


@pytest.mark.parametrize(
    ("value", "expected"), [(np.nan, LARGEST), (np.inf, LARGEST), (-np.inf, -LARGEST), (1e38, 1e30)]
)
def test_values_that_are_no_numbers_are_the_largest(value: float, expected: float) -> None:
    """A sensor that begins to send NaN is a drift, and never an error."""
    assert input_statistics("x", np.array([value], np.float32), half) == {"input.x.feature.0": expected}


def test_a_large_sample_is_read_in_part() -> None:
    """At most MAX_VALUES values; neighbours along a row stay neighbours."""
    stripes = np.tile(np.array([0.0, 1.0], np.float32), (3000, 1000))[..., None]
    assert input_statistics("x", stripes, half)["input.x.roughness"] == 1.0


def test_answers_have_a_score_and_a_class() -> None:
    """Logits and probabilities; a model without scores has neither."""
    outputs = {"y": np.array([[0.1, 0.7, 0.2]], np.float32)}
    assert answer_statistics(Task("classification", "y", "probabilities"), outputs) == {"score": 0.7, "class": 1.0}
    assert answer_statistics(Task("multilabel", "y", "probabilities"), outputs) == {"score": 0.7}
    assert answer_statistics(Task("other", "y"), outputs) == {}
    assert answer_statistics(Task("classification", "z", "logits"), outputs) == {}


@pytest.mark.parametrize(
    ("statistic", "subject"),
    [
        ("input.x.mean", "input.x"),
        ("input.x.channel.2", "input.x"),
        ("input.a.mean.feature.0", "input.a.mean"),
        ("score", "score"),
    ],
)
def test_statistics_of_one_input_have_one_subject(statistic: str, subject: str) -> None:
    """Whatever the input's name is."""
    assert subject_of(statistic) == subject
