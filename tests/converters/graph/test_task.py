"""The task of a model is judged by its answers, and not by its last operator."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from converters.graph.graph import Graph
from converters.graph.task import detect_task, parse_task
from converters.report.report import TaskReport
from edgekit.bundle.manifest import Task
from edgekit.bundle.scores import row_scores
from edgekit.errors import SettingsError

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (64, 4)).astype(np.float32)
P = (np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)).astype(np.float32)
SIGMOIDS = (1 / (1 + np.exp(-LOGITS))).astype(np.float32)
CLASSES = P.argmax(1)
PROBABILITIES = Task("classification", "y", "probabilities")


def graph(*operators: str, columns: int = 4) -> Graph:
    """x -> operators -> y."""
    names = ["x", *(f"h{i}" for i in range(len(operators) - 1)), "y"]
    attributes = {"Cast": {"to": TensorProto.FLOAT}}
    nodes = [
        helper.make_node(kind, [names[i]], [names[i + 1]], **attributes.get(kind, {}))
        for i, kind in enumerate(operators)
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", columns]) for name in ("x", "y")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", values[:1], values[1:]), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )
    onnx.checker.check_model(model)
    return Graph(model)


@pytest.mark.parametrize("last", ["Identity", "Cast", "Sigmoid", "Softmax"])
def test_rows_that_add_up_to_one_are_probabilities(last: str) -> None:
    """Also behind Cast or Identity, the mean of two softmaxes, and without labels."""
    for labels in (None, CLASSES):
        assert detect_task(graph("Softmax", last), labels, {"y": P}).task == PROBABILITIES
    assert detect_task(graph("Identity"), None, {"y": (P + P[::-1]) / 2}).task == PROBABILITIES


def test_sigmoids_are_classes_or_labels_as_the_labels_say() -> None:
    """Class indices, one column of 0 and 1 for each label, one column alone; without labels a note names --task."""
    many = graph("Sigmoid")
    assert detect_task(many, CLASSES, {"y": SIGMOIDS}).task == PROBABILITIES
    labels = (SIGMOIDS > 0.5).astype(np.float32)
    assert detect_task(many, labels, {"y": SIGMOIDS}).task == Task("multilabel", "y", "probabilities")
    one = graph("Sigmoid", columns=1)
    assert detect_task(one, labels[:, 0].astype(int), {"y": SIGMOIDS[:, :1]}).task.kind == "multilabel"
    unclear = detect_task(many, None, {"y": SIGMOIDS})
    assert unclear.task == Task()
    assert "--task classification|multilabel|other" in unclear.note


def test_other_numbers_are_logits_where_there_are_classes() -> None:
    """Without labels they may be logits or quantities, and a note names --task; other labels say that they are none."""
    plain = graph("Identity")
    assert detect_task(plain, CLASSES, {"y": LOGITS}).task == Task("classification", "y", "logits")
    unclear = detect_task(plain, None, {"y": LOGITS})
    assert unclear.task == Task()
    assert "may be the logits of classes" in unclear.note
    assert "--task classification|multilabel|other" in unclear.note
    assert detect_task(plain, None) == (Task(), "")
    assert detect_task(graph("Identity", columns=1), None, {"y": LOGITS[:, :1]}) == (Task(), "")
    assert detect_task(plain, LOGITS, {"y": LOGITS}) == (Task(), "")


def test_the_user_has_the_last_word() -> None:
    """A named task wins; its scores are judged where they are not named."""
    sure = graph("Softmax")
    assert detect_task(sure, None, {"y": P}, parse_task("other")) == (Task(), "")
    found = detect_task(graph("Sigmoid"), None, {"y": SIGMOIDS}, parse_task("multilabel")).task
    assert found == Task("multilabel", "y", "probabilities")
    assert detect_task(sure, None, {"y": P}, parse_task("classification:logits")).task.scores == "logits"
    with pytest.raises(SettingsError, match="at least two columns"):
        detect_task(graph("Sigmoid", columns=1), None, None, parse_task("classification"))
    for bad in ("class", "other:logits", "classification:", "multilabel:p"):
        with pytest.raises(SettingsError, match="--task is"):
            parse_task(bad)


def test_the_report_says_which_share_a_device_would_send() -> None:
    """A sure answer of 1.0 scores 1.0, and the certainty of labels counts both ways."""
    report = TaskReport.of(PROBABILITIES, {"y": P})
    assert report.share_sent == pytest.approx((P.max(1) < 0.8).mean())
    assert TaskReport.of(Task(), {"y": P}).share_sent is None
    labels = Task("multilabel", "y", "probabilities")
    np.testing.assert_allclose(row_scores(labels, {"y": np.array([[0.01, 0.9], [0.5, 1.0]])}), [0.9, 0.5])
    logits = Task("multilabel", "y", "logits")
    np.testing.assert_allclose(row_scores(logits, {"y": np.array([[-800.0, 800.0]])}), [1.0])
