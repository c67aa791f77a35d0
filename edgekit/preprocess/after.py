"""Steps after the model: each step is data, checks its input tensors, and processes a whole batch.

A step reads tensors by name (`of`; empty if there is only one) and replaces them. Other tensors stay unchanged.
"""

# No `from __future__ import annotations`: msgspec would compile each annotation, in every start of a process.

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
    """One step: `specs` checks its input tensors and returns the output tensors; `apply` processes a batch."""

    def specs(self, tensors: Specs) -> Specs:
        raise NotImplementedError

    def apply(self, tensors: Arrays, tools: Tools) -> Arrays:
        raise NotImplementedError

    def files(self) -> dict[str, str]:
        """Names of the bundle's files that the step reads, with their kind: ``vocabulary`` or ``anchors``."""
        return {}

    @property
    def name(self) -> str:
        """The step's name in documents."""
        return str(self.__struct_config__.tag)

    def _spec(self, tensors: Specs, of: str, rank: int | None = None) -> TensorSpec:
        if not of and len(tensors) != 1:
            raise DataError(f"{self.name}: 'of' must name one of {', '.join(tensors)}")
        if of and of not in tensors:
            raise DataError(f"{self.name}: there is no tensor {of!r}, found {', '.join(tensors)}")
        spec = tensors[of] if of else next(iter(tensors.values()))
        if spec.dtype not in _REALS or (rank is not None and len(spec.shape) != rank) or len(spec.shape) < 2:
            expected = f"floats with {rank or 'two or more'} axes"
            raise DataError(f"{self.name}: {spec.name} is {spec.dtype.value} {spec.shape_text}, expected {expected}")
        return spec


def _value(tensors: Arrays, of: str) -> tuple[str, Array]:
    name = of or next(iter(tensors))
    return name, tensors[name]


class Softmax(_Step, frozen=True, tag="softmax"):
    """Softmax over the last axis."""

    of: str = ""

    def specs(self, tensors: Specs) -> Specs:
        """float32."""
        spec = self._spec(tensors, self.of)
        return {**tensors, spec.name: TensorSpec(spec.name, DType.FLOAT32, spec.shape)}

    def apply(self, tensors: Arrays, tools: Tools) -> Arrays:
        """Compute."""
        name, value = _value(tensors, self.of)
        return {**tensors, name: scores.softmax(value)}


class Sigmoid(_Step, frozen=True, tag="sigmoid"):
    """Sigmoid of each score."""

    of: str = ""

    def specs(self, tensors: Specs) -> Specs:
        """float32."""
        spec = self._spec(tensors, self.of)
        return {**tensors, spec.name: TensorSpec(spec.name, DType.FLOAT32, spec.shape)}

    def apply(self, tensors: Arrays, tools: Tools) -> Arrays:
        """Compute."""
        name, value = _value(tensors, self.of)
        return {**tensors, name: scores.sigmoid(value)}


class Threshold(_Step, frozen=True, tag="threshold"):
    """Booleans: True where a value is at least `least`."""

    least: float
    of: str = ""

    def specs(self, tensors: Specs) -> Specs:
        """Booleans."""
        spec = self._spec(tensors, self.of)
        return {**tensors, spec.name: TensorSpec(spec.name, DType.BOOL, spec.shape)}

    def apply(self, tensors: Arrays, tools: Tools) -> Arrays:
        """Compare."""
        name, value = _value(tensors, self.of)
        return {**tensors, name: value >= self.least}


class TopK(_Step, frozen=True, tag="top-k"):
    """Replace scores (N, C) by ``classes`` (N, k), ``scores`` (N, k) and, with labels, ``labels`` (N, k) of BYTES."""

    k: int = 5
    of: str = ""
    labels: tuple[str, ...] = ()

    def specs(self, tensors: Specs) -> Specs:
        """Two or three tensors instead of one."""
        spec = self._spec(tensors, self.of, rank=2)
        classes = spec.shape[1]
        if classes is None or not 1 <= self.k <= classes:
            raise DataError(f"{self.name}: k is {self.k}, expected 1 to the number of classes ({classes})")
        if self.labels and len(self.labels) != classes:
            raise DataError(f"{self.name}: {len(self.labels)} labels for {classes} classes")
        rows = (spec.shape[0], self.k)
        outputs = {
            "classes": TensorSpec("classes", DType.INT64, rows),
            "scores": TensorSpec("scores", spec.dtype, rows),
        }
        if self.labels:
            outputs["labels"] = TensorSpec("labels", DType.BYTES, rows)
        return _replace_specs(self.name, tensors, [spec.name], outputs)

    def apply(self, tensors: Arrays, tools: Tools) -> Arrays:
        """Select the best classes."""
        name, value = _value(tensors, self.of)
        classes, best = scores.top_k(value, self.k)
        outputs: Arrays = {"classes": classes, "scores": best}
        if self.labels:
            outputs["labels"] = _label_bytes(classes, self.labels)
        return _replace_arrays(tensors, [name], outputs)


class DecodeBoxes(_Step, frozen=True, tag="decode-boxes"):
    """Convert boxes (N, M, 4) to left, top, right, bottom.

    Attributes:
        form: ``xyxy``, ``yxyx``, ``cxcywh``, ``xywh``, or ``anchors``: offsets from anchors, as in SSD models.
        anchors: A file of the bundle: .npy of float32 (M, 4) = (center y, center x, height, width).
        scales: Divisors of the four offsets.
    """

    form: Literal["xyxy", "yxyx", "cxcywh", "xywh", "anchors"]
    of: str = ""
    anchors: str = ""
    scales: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)

    def specs(self, tensors: Specs) -> Specs:
        """float32."""
        spec = self._spec(tensors, self.of, rank=3)
        if spec.shape[2] != 4:
            raise DataError(f"{self.name}: {spec.name} has shape {spec.shape_text}, expected 4 numbers per box")
        if (self.form == "anchors") != bool(self.anchors):
            raise DataError(
                f"{self.name}: expected a file of anchors with the form 'anchors', and none with other forms"
            )
        if not all(scale > 0 for scale in self.scales):
            raise DataError(f"{self.name}: scales are {list(self.scales)}, expected numbers above 0")
        return {**tensors, spec.name: TensorSpec(spec.name, DType.FLOAT32, spec.shape)}

    def files(self) -> dict[str, str]:
        """The file of anchors, if there is one."""
        return {self.anchors: "anchors"} if self.anchors else {}

    def apply(self, tensors: Arrays, tools: Tools) -> Arrays:
        """Convert."""
        name, value = _value(tensors, self.of)
        boxes = value.astype(np.float32)
        if not self.anchors:
            return {**tensors, name: scores.corners(boxes, self.form)}
        anchors = tools.anchors[self.anchors]
        if len(anchors) != boxes.shape[1]:
            raise DataError(f"{self.name}: there are {len(anchors)} anchors for {boxes.shape[1]} boxes")
        return {**tensors, name: scores.from_anchors(boxes, anchors, self.scales)}


class SplitBoxes(_Step, frozen=True, tag="split-boxes"):
    """Split one tensor (N, 4 + C, M), or (N, M, 4 + C), into ``boxes`` (N, M, 4) and ``scores`` (N, M, C)."""

    of: str = ""
    channels: Literal["first", "last"] = "first"

    def specs(self, tensors: Specs) -> Specs:
        """Two tensors instead of one."""
        spec = self._spec(tensors, self.of, rank=3)
        batch, wide, boxes = spec.shape if self.channels == "first" else (spec.shape[0], spec.shape[2], spec.shape[1])
        if wide is None or wide < 5:
            raise DataError(f"{self.name}: {spec.name} has {wide} channels, expected 4 and one per class")
        outputs = {
            "boxes": TensorSpec("boxes", spec.dtype, (batch, boxes, 4)),
            "scores": TensorSpec("scores", spec.dtype, (batch, boxes, wide - 4)),
        }
        return _replace_specs(self.name, tensors, [spec.name], outputs)

    def apply(self, tensors: Arrays, tools: Tools) -> Arrays:
        """Split."""
        name, value = _value(tensors, self.of)
        rows = value.transpose(0, 2, 1) if self.channels == "first" else value
        return _replace_arrays(tensors, [name], {"boxes": rows[..., :4], "scores": rows[..., 4:]})


class Suppress(_Step, frozen=True, tag="nms"):
    """Non-maximum suppression.

    The outputs are ``boxes`` (N, most, 4), ``scores`` (N, most), ``classes`` (N, most) and ``count`` (N,). Rows after
    the last box have the class -1.

    Attributes:
        boxes, scores: Names of the inputs: (N, M, 4) left, top, right, bottom, and (N, M, classes).
        least: Lower scores are ignored.
        overlap: Intersection over union above which the lower score of one class is dropped.
        most: Largest number of boxes to keep.
        candidates: Number of the best boxes to compare.
        labels: Class names; if set, the output ``labels`` is added.
    """

    boxes: str = "boxes"
    scores: str = "scores"
    least: float = 0.25
    overlap: float = 0.5
    most: int = 100
    candidates: int = 1000
    labels: tuple[str, ...] = ()

    def specs(self, tensors: Specs) -> Specs:
        """Four or five tensors instead of two."""
        boxes, rated = self._spec(tensors, self.boxes, rank=3), self._spec(tensors, self.scores, rank=3)
        if boxes.shape[2] != 4 or boxes.shape[:2] != rated.shape[:2]:
            detections = f"boxes {boxes.shape_text} and scores {rated.shape_text}"
            raise DataError(f"{self.name}: the input is {detections}, expected [N, M, 4] and [N, M, classes]")
        if not 1 <= self.most <= self.candidates <= 10_000 or not 0 <= self.overlap <= 1:
            raise DataError(
                f"{self.name}: most is {self.most}, candidates {self.candidates} and overlap {self.overlap:g}, "
                "expected 1 <= most <= candidates <= 10000 and 0 <= overlap <= 1"
            )
        if self.labels and len(self.labels) != rated.shape[2]:
            raise DataError(f"{self.name}: {len(self.labels)} labels for {rated.shape[2]} classes")
        rows = (boxes.shape[0], self.most)
        outputs = {
            "boxes": TensorSpec("boxes", DType.FLOAT32, (*rows, 4)),
            "scores": TensorSpec("scores", DType.FLOAT32, rows),
            "classes": TensorSpec("classes", DType.INT64, rows),
            "count": TensorSpec("count", DType.INT64, rows[:1]),
        }
        if self.labels:
            outputs["labels"] = TensorSpec("labels", DType.BYTES, rows)
        return _replace_specs(self.name, tensors, [boxes.name, rated.name], outputs)

    def apply(self, tensors: Arrays, tools: Tools) -> Arrays:
        """Suppress overlapping boxes, image by image."""
        detections = [
            scores.suppress(
                boxes,
                rated,
                least=self.least,
                overlap=self.overlap,
                most=self.most,
                candidates=self.candidates,
            )
            for boxes, rated in zip(tensors[self.boxes], tensors[self.scores], strict=True)
        ]
        outputs: Arrays = {
            "boxes": np.array([one.boxes for one in detections], np.float32).reshape(len(detections), self.most, 4),
            "scores": np.array([one.scores for one in detections], np.float32).reshape(len(detections), self.most),
            "classes": np.array([one.classes for one in detections], np.int64).reshape(len(detections), self.most),
            "count": np.array([one.remaining for one in detections], np.int64),
        }
        if self.labels:
            outputs["labels"] = _label_bytes(outputs["classes"], self.labels)
        return _replace_arrays(tensors, [self.boxes, self.scores], outputs)


AfterStep = Softmax | Sigmoid | Threshold | TopK | DecodeBoxes | SplitBoxes | Suppress


def _label_bytes(classes: Array, labels: tuple[str, ...]) -> Array:
    """Labels of `classes` as bytes; empty for class -1."""
    names = np.array([*(label.encode() for label in labels), b""], dtype=object)
    named: Array = names[classes]
    return named


def _replace_specs(step: str, tensors: Specs, read: list[str], outputs: Specs) -> Specs:
    unread = {name: spec for name, spec in tensors.items() if name not in read}
    twice = sorted(unread.keys() & outputs.keys())
    if twice:
        raise DataError(f"{step}: makes {', '.join(twice)}, but other tensors have these names already")
    return {**unread, **outputs}


def _replace_arrays(tensors: Mapping[str, Array], read: list[str], outputs: Arrays) -> Arrays:
    return {**{name: value for name, value in tensors.items() if name not in read}, **outputs}
