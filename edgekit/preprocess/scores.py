"""Functions on a model's outputs: softmax, sigmoid, top-k classes, box formats, non-maximum suppression."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edgekit.tensors import Array


class Detections(NamedTuple):
    """Detections of one image, the best first: boxes (K, 4), scores (K,), classes (K,), with K the requested maximum.

    Rows after the first `remaining` have zeros, and class -1.
    """

    boxes: Array
    scores: Array
    classes: Array
    remaining: int


def softmax(values: Array) -> Array:
    """Softmax over the last axis, in float32; the largest value is subtracted first against overflow."""
    shifted = np.exp(values.astype(np.float32) - values.max(axis=-1, keepdims=True, initial=-np.inf))
    total: Array = shifted / shifted.sum(axis=-1, keepdims=True)
    return total


def sigmoid(values: Array) -> Array:
    """1 / (1 + e^-x) in float32, computed by tanh, which cannot overflow."""
    half: Array = np.float32(0.5) * (np.float32(1.0) + np.tanh(np.float32(0.5) * values.astype(np.float32)))
    return half


def top_k(values: Array, k: int) -> tuple[Array, Array]:
    """Classes (N, k) int64 and their scores (N, k) of `values` (N, classes); equal scores in order of the index."""
    order = np.argsort(-values, axis=-1, kind="stable")[:, :k]
    return order.astype(np.int64), np.take_along_axis(values, order, axis=-1)


def corners(boxes: Array, form: str) -> Array:
    """Convert boxes (..., 4) in `form` (``xyxy``, ``yxyx``, ``cxcywh`` or ``xywh``) to left, top, right, bottom."""
    a, b, c, d = (boxes[..., i] for i in range(4))
    if form == "yxyx":
        parts = (b, a, d, c)
    elif form == "cxcywh":
        parts = (a - c / 2, b - d / 2, a + c / 2, b + d / 2)
    elif form == "xywh":
        parts = (a, b, a + c, b + d)
    else:
        parts = (a, b, c, d)
    return np.stack(parts, axis=-1)


def from_anchors(codes: Array, anchors: Array, scales: tuple[float, float, float, float]) -> Array:
    """Convert offsets (..., M, 4) = (dy, dx, dh, dw) from `anchors` (M, 4) = (cy, cx, h, w) to corners.

    W. Liu et al., SSD: Single Shot MultiBox Detector (2016), equation 2, after dividing each offset by its scale.
    """
    dy, dx, dh, dw = (codes[..., i] / np.float32(scales[i]) for i in range(4))
    cy, cx, h, w = (anchors[:, i] for i in range(4))
    with np.errstate(over="ignore"):
        sizes = [dx * w + cx, dy * h + cy, np.exp(dw) * w, np.exp(dh) * h]
    return corners(np.stack(sizes, axis=-1), "cxcywh")


def suppress(boxes: Array, scores: Array, *, least: float, overlap: float, most: int, candidates: int) -> Detections:
    """Non-maximum suppression within each class: keep the best box, drop boxes that overlap it, and repeat.

    Args:
        boxes: (M, 4) left, top, right, bottom.
        scores: (M, C); a box is ignored if it or its score has NaN or infinity.
        least: Lower scores are ignored.
        overlap: Intersection over union above which the lower score is dropped.
        most: Largest number of boxes to keep.
        candidates: How many of the best boxes are considered.
    """
    sound: Array = np.asarray(np.isfinite(boxes).all(axis=1)).reshape(-1, 1) & np.isfinite(scores)
    rows, classes = np.nonzero(sound & (scores >= least))
    order = np.argsort(-scores[rows, classes], kind="stable")[:candidates]
    rows, classes = rows[order], classes[order]
    remaining: list[int] = []
    alive = np.ones(len(rows), bool)
    for index in range(len(rows)):
        if not alive[index]:
            continue
        remaining.append(index)
        if len(remaining) == most:
            break
        alive &= (classes != classes[index]) | (_overlap(boxes[rows[index]], boxes[rows]) <= overlap)
    count = len(remaining)
    detections = Detections(
        np.zeros((most, 4), np.float32), np.zeros(most, np.float32), np.full(most, -1, np.int64), count
    )
    detections.boxes[:count] = boxes[rows[remaining]]
    detections.scores[:count] = scores[rows[remaining], classes[remaining]]
    detections.classes[:count] = classes[remaining]
    return detections


def _overlap(box: Array, others: Array) -> Array:
    """Intersection over union of one box (4,) with each of (M, 4); 0 if both are empty."""
    width = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
    height = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
    shared = np.maximum(width, 0) * np.maximum(height, 0)
    areas = np.maximum(others[:, 2] - others[:, 0], 0) * np.maximum(others[:, 3] - others[:, 1], 0)
    area = max(box[2] - box[0], 0) * max(box[3] - box[1], 0)
    union = area + areas - shared
    ratio: Array = np.divide(shared, union, out=np.zeros_like(union), where=union > 0)
    return ratio
