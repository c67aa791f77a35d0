"""Steps after the model: each is data, knows what tensors it makes of what, and does it to a whole batch.

Steps read tensors by name (`of`; empty where there is only one) and replace them; what no step reads stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec
import numpy as np

from edgekit.errors import DataError
from edgekit.preprocess import scores
from edgekit.preprocess.steps import Tools
from edgekit.tensors import Array, DType, TensorSpec

Specs = dict[str, TensorSpec]
Arrays = dict[str, Array]

_REALS = (DType.FLOAT16, DType.FLOAT32, DType.FLOAT64)


class _Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="do"):
    """One step. `specs` says what tensors it makes of what, and raises DataError where it cannot; `apply` does it."""

    def specs(self, given: Specs) -> Specs:
        raise NotImplementedError

    def apply(self, given: Arrays, tools: Tools) -> Arrays:
        raise NotImplementedError

    def files(self) -> dict[str, str]:
        """Names of the bundle's files that it reads, with their kind: ``vocabulary`` or ``anchors``."""
        return {}

    @property
    def name(self) -> str:
        """As documents call it."""
        return str(self.__struct_config__.tag)

    def _spec(self, given: Specs, of: str, rank: int | None = None) -> TensorSpec:
        if not of and len(given) != 1:
            raise DataError(f"{self.name}: 'of' must name one of {', '.join(given)}")
        if of and of not in given:
            raise DataError(f"{self.name}: there is no tensor {of!r}, found {', '.join(given)}")
        spec = given[of] if of else next(iter(given.values()))
        if spec.dtype not in _REALS or (rank is not None and len(spec.shape) != rank) or len(spec.shape) < 2:
            expected = f"floats with {rank or 'two or more'} axes"
            raise DataError(f"{self.name}: {spec.name} is {spec.dtype.value} {spec.shape_text}, expected {expected}")
        return spec


def _value(given: Arrays, of: str) -> tuple[str, Array]:
    name = of or next(iter(given))
    return name, given[name]


class Softmax(_Step, frozen=True, tag="softmax"):
    """Scores to probabilities, over the last axis."""

    of: str = ""

    def specs(self, given: Specs) -> Specs:
        """float32."""
        spec = self._spec(given, self.of)
        return {**given, spec.name: TensorSpec(spec.name, DType.FLOAT32, spec.shape)}

    def apply(self, given: Arrays, tools: Tools) -> Arrays:
        """Compute."""
        name, value = _value(given, self.of)
        return {**given, name: scores.softmax(value)}


class Sigmoid(_Step, frozen=True, tag="sigmoid"):
    """Each score to a probability of its own."""

    of: str = ""

    def specs(self, given: Specs) -> Specs:
        """float32."""
        spec = self._spec(given, self.of)
        return {**given, spec.name: TensorSpec(spec.name, DType.FLOAT32, spec.shape)}

    def apply(self, given: Arrays, tools: Tools) -> Arrays:
        """Compute."""
        name, value = _value(given, self.of)
        return {**given, name: scores.sigmoid(value)}


class Threshold(_Step, frozen=True, tag="threshold"):
    """True where a value is `least` or more."""

    least: float
    of: str = ""

    def specs(self, given: Specs) -> Specs:
        """Booleans."""
        spec = self._spec(given, self.of)
        return {**given, spec.name: TensorSpec(spec.name, DType.BOOL, spec.shape)}

    def apply(self, given: Arrays, tools: Tools) -> Arrays:
        """Compare."""
        name, value = _value(given, self.of)
        return {**given, name: value >= self.least}


class TopK(_Step, frozen=True, tag="top-k"):
    """Scores (N, classes) become ``classes`` (N, k), ``scores`` (N, k) and, with labels, ``labels`` (N, k) of bytes."""

    k: int = 5
    of: str = ""
    labels: tuple[str, ...] = ()

    def specs(self, given: Specs) -> Specs:
        """Two or three tensors for one."""
        spec = self._spec(given, self.of, rank=2)
        classes = spec.shape[1]
        if classes is None or not 1 <= self.k <= classes:
            raise DataError(f"{self.name}: k is {self.k}, expected 1 to the number of classes ({classes})")
        if self.labels and len(self.labels) != classes:
            raise DataError(f"{self.name}: {len(self.labels)} labels for {classes} classes")
        rows = (spec.shape[0], self.k)
        made = {"classes": TensorSpec("classes", DType.INT64, rows), "scores": TensorSpec("scores", spec.dtype, rows)}
        if self.labels:
            made["labels"] = TensorSpec("labels", DType.BYTES, rows)
        return _replaced(self.name, given, [spec.name], made)

    def apply(self, given: Arrays, tools: Tools) -> Arrays:
        """Choose."""
        name, value = _value(given, self.of)
        classes, best = scores.top_k(value, self.k)
        made: Arrays = {"classes": classes, "scores": best}
        if self.labels:
            made["labels"] = _named(classes, self.labels)
        return _merged(given, [name], made)


class DecodeBoxes(_Step, frozen=True, tag="decode-boxes"):
    """Boxes (N, M, 4) to left, top, right, bottom.

    Attributes:
        form: ``xyxy``, ``yxyx``, ``cxcywh``, ``xywh``, or ``anchors``: offsets from anchors, as SSD models give them.
        anchors: A file of the bundle: .npy of float32 (M, 4) = (center y, center x, height, width).
        scales: What the four offsets are divided by.
    """

    form: Literal["xyxy", "yxyx", "cxcywh", "xywh", "anchors"]
    of: str = ""
    anchors: str = ""
    scales: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)

    def specs(self, given: Specs) -> Specs:
        """float32."""
        spec = self._spec(given, self.of, rank=3)
        if spec.shape[2] != 4:
            raise DataError(f"{self.name}: {spec.name} has shape {spec.shape_text}, expected 4 numbers a box")
        if (self.form == "anchors") != bool(self.anchors):
            raise DataError(f"{self.name}: the form 'anchors' and a file of anchors go together")
        if not all(scale > 0 for scale in self.scales):
            raise DataError(f"{self.name}: scales are {list(self.scales)}, expected numbers above 0")
        return {**given, spec.name: TensorSpec(spec.name, DType.FLOAT32, spec.shape)}

    def files(self) -> dict[str, str]:
        """The anchors."""
        return {self.anchors: "anchors"} if self.anchors else {}

    def apply(self, given: Arrays, tools: Tools) -> Arrays:
        """Convert."""
        name, value = _value(given, self.of)
        boxes = value.astype(np.float32)
        if not self.anchors:
            return {**given, name: scores.corners(boxes, self.form)}
        anchors = tools.anchors[self.anchors]
        if len(anchors) != boxes.shape[1]:
            raise DataError(f"{self.name}: there are {len(anchors)} anchors for {boxes.shape[1]} boxes")
        return {**given, name: scores.from_anchors(boxes, anchors, self.scales)}


class SplitBoxes(_Step, frozen=True, tag="split-boxes"):
    """One tensor (N, 4 + classes, M), or (N, M, 4 + classes), becomes ``boxes`` (N, M, 4) and ``scores`` (N, M, C)."""

    of: str = ""
    channels: Literal["first", "last"] = "first"

    def specs(self, given: Specs) -> Specs:
        """Two tensors for one."""
        spec = self._spec(given, self.of, rank=3)
        batch, wide, boxes = spec.shape if self.channels == "first" else (spec.shape[0], spec.shape[2], spec.shape[1])
        if wide is None or wide < 5:
            raise DataError(f"{self.name}: {spec.name} has {wide} channels, expected 4 and one a class")
        made = {
            "boxes": TensorSpec("boxes", spec.dtype, (batch, boxes, 4)),
            "scores": TensorSpec("scores", spec.dtype, (batch, boxes, wide - 4)),
        }
        return _replaced(self.name, given, [spec.name], made)

    def apply(self, given: Arrays, tools: Tools) -> Arrays:
        """Split."""
        name, value = _value(given, self.of)
        rows = value.transpose(0, 2, 1) if self.channels == "first" else value
        return _merged(given, [name], {"boxes": rows[..., :4], "scores": rows[..., 4:]})


class Suppress(_Step, frozen=True, tag="nms"):
    """Non-maximum suppression: ``boxes`` (N, most, 4), ``scores``, ``classes`` (-1 past the last), ``count`` (N,).

    Attributes:
        boxes, scores: The tensors that are read: (N, M, 4) left, top, right, bottom, and (N, M, classes).
        least: Lower scores do not count.
        overlap: Intersection over union above which the lower score of one class is dropped.
        most: Boxes that remain at most, of at most `candidates` that are looked at.
        labels: Names of the classes; with them there is ``labels``.
    """

    boxes: str = "boxes"
    scores: str = "scores"
    least: float = 0.25
    overlap: float = 0.5
    most: int = 100
    candidates: int = 1000
    labels: tuple[str, ...] = ()

    def specs(self, given: Specs) -> Specs:
        """Four or five tensors for two."""
        boxes, rated = self._spec(given, self.boxes, rank=3), self._spec(given, self.scores, rank=3)
        if boxes.shape[2] != 4 or boxes.shape[:2] != rated.shape[:2]:
            found = f"boxes {boxes.shape_text} and scores {rated.shape_text}"
            raise DataError(f"{self.name}: is given {found}, expected [N, M, 4] and [N, M, classes]")
        if not 1 <= self.most <= self.candidates <= 10_000 or not 0 <= self.overlap <= 1:
            raise DataError(f"{self.name}: 1 <= most <= candidates <= 10000 and overlap from 0 to 1 are expected")
        if self.labels and len(self.labels) != rated.shape[2]:
            raise DataError(f"{self.name}: {len(self.labels)} labels for {rated.shape[2]} classes")
        rows = (boxes.shape[0], self.most)
        made = {
            "boxes": TensorSpec("boxes", DType.FLOAT32, (*rows, 4)),
            "scores": TensorSpec("scores", DType.FLOAT32, rows),
            "classes": TensorSpec("classes", DType.INT64, rows),
            "count": TensorSpec("count", DType.INT64, rows[:1]),
        }
        if self.labels:
            made["labels"] = TensorSpec("labels", DType.BYTES, rows)
        return _replaced(self.name, given, [boxes.name, rated.name], made)

    def apply(self, given: Arrays, tools: Tools) -> Arrays:
        """Suppress, image by image."""
        found = [
            scores.suppress(
                boxes,
                rated,
                least=self.least,
                overlap=self.overlap,
                most=self.most,
                candidates=self.candidates,
            )
            for boxes, rated in zip(given[self.boxes], given[self.scores], strict=True)
        ]
        made: Arrays = {
            "boxes": np.array([one.boxes for one in found], np.float32).reshape(len(found), self.most, 4),
            "scores": np.array([one.scores for one in found], np.float32).reshape(len(found), self.most),
            "classes": np.array([one.classes for one in found], np.int64).reshape(len(found), self.most),
            "count": np.array([one.kept for one in found], np.int64),
        }
        if self.labels:
            made["labels"] = _named(made["classes"], self.labels)
        return _merged(given, [self.boxes, self.scores], made)


AfterStep = Softmax | Sigmoid | Threshold | TopK | DecodeBoxes | SplitBoxes | Suppress


def _named(classes: Array, labels: tuple[str, ...]) -> Array:
    """Labels of `classes` as bytes; of -1 nothing."""
    names = np.array([*(label.encode() for label in labels), b""], dtype=object)
    named: Array = names[classes]
    return named


def _replaced(step: str, given: Specs, read: list[str], made: Specs) -> Specs:
    left = {name: spec for name, spec in given.items() if name not in read}
    twice = sorted(left.keys() & made.keys())
    if twice:
        raise DataError(f"{step}: makes {', '.join(twice)}, which another tensor is called already")
    return {**left, **made}


def _merged(given: Mapping[str, Array], read: list[str], made: Arrays) -> Arrays:
    return {**{name: value for name, value in given.items() if name not in read}, **made}
