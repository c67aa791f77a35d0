"""Proposes where to cut a model, and the steps after it that take the place of what is removed."""

from __future__ import annotations

import msgspec
import onnx
from onnx import helper

from converters.frontends.onnx.cut import cut_at
from converters.frontends.onnx.nodes import free_name, taken_names
from converters.frontends.onnx.shapes import correct_shapes, known_shapes
from converters.frontends.onnx.tails import Suppression, Tail, tail_of
from edgekit.errors import SettingsError
from edgekit.preprocess.after import AfterStep, DecodeBoxes, SplitBoxes, Suppress

CANDIDATES = 1000  # boxes that the step nms compares at least
TRANSPOSED = "_by_box"  # end of the name of scores that the cut transposes to (B, M, classes)


class Proposal(msgspec.Struct, frozen=True):
    """A cut model and the steps after it.

    Attributes:
        model: The model with its new outputs.
        steps: The steps that take the place of what was removed; empty where there is none.
    """

    model: onnx.ModelProto
    steps: tuple[AfterStep, ...] = ()


def proposed_cut(model: onnx.ModelProto, source: str) -> Proposal:
    """Cut a model before the operators whose number of results depends on the data.

    Raises:
        SettingsError: The model has no such operators, or nothing is computed before them.
    """
    model = correct_shapes(model, source)
    tail = tail_of(model, known_shapes(model, source))
    if tail is None or not tail.cut:
        raise SettingsError(
            f"--cut auto: {source} has no outputs whose size depends on the data",
            advice="Name the tensors to cut at: --cut OUTPUT[,OUTPUT].",
        )
    if tail.raw:
        return Proposal(cut_at(model, list(tail.cut), source), _raw_steps(tail))
    if tail.suppression is None:
        return Proposal(cut_at(model, list(tail.cut), source))
    return _with_suppression(model, tail, tail.suppression, source)


def _with_suppression(model: onnx.ModelProto, tail: Tail, found: Suppression, source: str) -> Proposal:
    """Cut at the boxes and the scores; scores (B, classes, M) are transposed to (B, M, classes)."""
    names = list(tail.cut)
    if found.scores in names:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        scores = free_name(found.scores + TRANSPOSED, taken_names(copy.graph))
        copy.graph.node.append(helper.make_node("Transpose", [found.scores], [scores], perm=[0, 2, 1]))
        names[names.index(found.scores)] = scores
        model = copy
    form = "cxcywh" if found.centers else "yxyx" if model.producer_name == "tf2onnx" else ""
    steps = [DecodeBoxes(form=form, of=found.boxes)] if form else []  # type: ignore[arg-type]
    return Proposal(cut_at(model, names, source), (*steps, _suppress(found, found.boxes, names[1])))


def _raw_steps(tail: Tail) -> tuple[AfterStep, ...]:
    """The steps of one tensor with boxes and scores, as YOLO has it."""
    [(name, shape)] = list(tail.cut.items())[:1]
    assert tail.suppression is not None
    first = (shape[1] or 0) < (shape[2] or 0)
    form = "cxcywh" if tail.suppression.centers else "xyxy"
    split = SplitBoxes(of=name, channels="first" if first else "last")
    return split, DecodeBoxes(form=form, of="boxes"), _suppress(tail.suppression, "boxes", "scores")  # type: ignore[arg-type]


def _suppress(found: Suppression, boxes: str, scores: str) -> Suppress:
    most = min(max(found.most, 1), CANDIDATES)
    return Suppress(
        boxes=boxes,
        scores=scores,
        least=round(max(found.least, 0.0), 6),
        overlap=round(min(max(found.overlap, 0.0), 1.0), 6),
        most=most,
        candidates=CANDIDATES,
    )
