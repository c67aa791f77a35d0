"""Softmax, sigmoid, best classes, box formats and non-maximum suppression."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.preprocess import scores


def test_softmax_does_not_overflow() -> None:
    found = scores.softmax(np.array([[1000.0, 1000.0, -1000.0]], np.float32))
    np.testing.assert_array_equal(found, [[0.5, 0.5, 0.0]])


def test_sigmoid_does_not_overflow() -> None:
    np.testing.assert_allclose(scores.sigmoid(np.array([-1e4, 0, 1e4], np.float32)), [0, 0.5, 1])


def test_equal_scores_keep_the_order_of_the_classes() -> None:
    classes, best = scores.top_k(np.array([[0.1, 0.4, 0.4, 0.1]], np.float32), 3)
    np.testing.assert_array_equal(classes, [[1, 2, 0]])
    np.testing.assert_array_equal(best, np.array([[0.4, 0.4, 0.1]], np.float32))


@pytest.mark.parametrize(
    ("form", "given"),
    [("xyxy", [1, 2, 5, 8]), ("yxyx", [2, 1, 8, 5]), ("cxcywh", [3, 5, 4, 6]), ("xywh", [1, 2, 4, 6])],
)
def test_every_form_becomes_corners(form: str, given: list[float]) -> None:
    np.testing.assert_array_equal(scores.corners(np.array([given], np.float32), form), [[1, 2, 5, 8]])


def test_offsets_of_nothing_are_the_anchors() -> None:
    anchors = np.array([[0.5, 0.4, 0.2, 0.1]], np.float32)  # center y, center x, height, width
    found = scores.from_anchors(np.zeros((1, 1, 4), np.float32), anchors, (10, 10, 5, 5))
    np.testing.assert_allclose(found[0, 0], [0.35, 0.4, 0.45, 0.6], rtol=1e-6)


def test_a_box_hides_those_of_its_class_that_overlap_it() -> None:
    """A box of another class stays, and so does one with little overlap."""
    boxes = np.array([[0, 0, 10, 10], [1, 1, 10, 10], [9, 9, 19, 19]], np.float32)
    rated = np.array([[0.9, 0.0], [0.8, 0.7], [0.6, 0.0]], np.float32)
    found = scores.suppress(boxes, rated, least=0.5, overlap=0.5, most=5, candidates=10)
    assert found.remaining == 3
    np.testing.assert_array_equal(found.classes, [0, 1, 0, -1, -1])
    np.testing.assert_allclose(found.scores, [0.9, 0.7, 0.6, 0, 0])


def test_undefined_boxes_and_scores_do_not_count() -> None:
    boxes = np.array([[0, 0, np.nan, 1], [0, 0, 1, 1]], np.float32)
    found = scores.suppress(
        boxes, np.array([[0.9], [np.nan]], np.float32), least=0.0, overlap=0.5, most=2, candidates=9
    )
    assert found.remaining == 0


def naive(boxes: np.ndarray, rated: np.ndarray, overlap: float) -> list[int]:
    """One class, by definition: a box stays unless it overlaps a better box that stays."""
    kept: list[int] = []
    for i in np.argsort(-rated, kind="stable"):
        if all(iou(boxes[i], boxes[j]) <= overlap for j in kept):
            kept.append(int(i))
    return kept


def iou(a: np.ndarray, b: np.ndarray) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(w, 0) * max(h, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / union if union > 0 else 0.0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 0.9))
def test_what_remains_is_what_the_definition_says(seed: int, overlap: float) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.random((20, 2)) * 10
    boxes = np.concatenate([corner, corner + rng.random((20, 2)) * 8], axis=1).astype(np.float32)
    rated = rng.random(20).astype(np.float32)
    found = scores.suppress(boxes, rated[:, None], least=0.0, overlap=overlap, most=20, candidates=20)
    np.testing.assert_array_equal(found.boxes[: found.remaining], boxes[naive(boxes, rated, overlap)])
