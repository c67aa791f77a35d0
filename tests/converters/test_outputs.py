"""Conversions of a model with two heads: every output is judged, in its own spread and by its own limit."""

import msgspec
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from converters import convert
from edgekit.bundle.manifest import parse_manifest
from edgekit.cli.main import edgekit
from edgekit.errors import DataError, RefusedError, SettingsError
from tests.simulators import models

FEATURES, CLASSES, ROWS = 16, 4, 1500


def two_heads(spoiled):
    """A classifier with a second head. Where `spoiled`, one large weight a column makes 8 bits lose its others."""
    rng = np.random.default_rng(0)
    prototypes = rng.normal(0, 2, (CLASSES, FEATURES)).astype(np.float32)
    body = (rng.normal(0, 1, (FEATURES, 32)) / 4).astype(np.float32)
    weights = {"body": body, "first": (prototypes @ body).T / 8, "second": rng.normal(0, 1, (32, 6))}
    if spoiled:
        body[:, 0] *= 1e-5  # nearly nothing arrives at the large weights, so they mean nothing
        weights["second"][0] *= 3000.0
    nodes = [
        helper.make_node("MatMul", ["x", "body"], ["h"], "body"),
        helper.make_node("MatMul", ["h", "first"], ["logits"], "first"),
        helper.make_node("Softmax", ["logits"], ["scores"], "softmax"),
        helper.make_node("MatMul", ["h", "second"], ["boxes"], "second"),
    ]
    graph = helper.make_graph(
        nodes,
        "two-heads",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", FEATURES])],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", CLASSES]),
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["n", 6]),
        ],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    labels = rng.integers(0, CLASSES, ROWS)
    rows = (prototypes[labels] + rng.normal(0, 0.5, (ROWS, FEATURES))).astype(np.float32)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), rows, labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The models ``even.onnx`` and ``spoiled.onnx``, and their data."""
    path = tmp_path_factory.mktemp("heads")
    for name in ("even", "spoiled"):
        model, rows, labels = two_heads(name == "spoiled")
        onnx.save(model, path / f"{name}.onnx")
        np.savez(path / f"{name}.npz", x=rows, y=labels, group=np.where(np.arange(ROWS) % 2, "day", "night"))
        second = rows[:, :6] * 0
        np.savez(path / f"{name}-labels.npz", x=rows, y=labels, y_boxes=second)
    return path


def converted(folder, name, out, data=None, **options):
    """The report of a conversion to int8 for ONNX Runtime on x86-64, and its folder."""
    options = {"targets": ["x86-64"], "runtime": "onnxruntime", "prune": "dead", **options}
    return convert(folder / f"{name}.onnx", data=folder / f"{data or name}.npz", output=out, **options)[0]


@pytest.fixture(scope="module")
def even(folder, tmp_path_factory):
    """The report of the even model with default options but for a wide limit of the boxes."""
    return converted(folder, "even", tmp_path_factory.mktemp("even"), max_drops={"boxes": 0.1}, max_drop_any_class=0.2)


def test_a_spoiled_head_is_not_proven_beside_a_good_decision(folder, tmp_path):
    """int8 keeps every decision and loses the second head: it is refused, and the mixture keeps the head in float."""
    report = converted(folder, "spoiled", tmp_path, aim="size")
    assert report.proven
    assert report.chosen_candidate.recipe.float_layers == ("second",)
    static = next(one for one in report.candidates if one.recipe.precision == "int8")
    assert static.drop.upper <= 0.01  # the decision output alone would pass
    assert static.verdict == "refused"
    assert static.reason.startswith("output boxes: drop of ")


def test_ignored_output_is_named_as_not_judged(folder, tmp_path):
    """With --ignore-output the same int8 is taken, and report and manifest say that nothing was proven of boxes."""
    report = converted(folder, "spoiled", tmp_path, aim="size", ignore_outputs=["boxes"])
    assert report.chosen_candidate.recipe.quantized
    scores, boxes = report.outputs
    assert (scores.judged, scores.proven) == (True, True)
    assert (boxes.judged, boxes.proven, boxes.drop) == (False, False, None)
    shown = CliRunner().invoke(edgekit, ["inspect", str(tmp_path / "spoiled-1.0.0-x86-64")]).output
    assert "proven: drop at most 0.01 in accuracy on 900 samples" in shown
    assert "not judged" in shown
    quality = parse_manifest((tmp_path / "spoiled-1.0.0-x86-64" / "manifest.json").read_bytes()).quality
    assert [(one.output, one.proven) for one in quality.outputs] == [("scores", True), ("boxes", False)]


def test_report_lists_what_was_proven_of_each_output_and_class(even):
    """Each output has its metric and limit, and bounds that are wider than those of its own test."""
    scores, boxes = even.outputs
    assert (scores.metric, scores.limit, boxes.metric, boxes.limit) == ("accuracy", 0.01, "agreement", 0.1)
    assert all(one.proven and one.tested <= one.limit and one.drop.upper > one.tested for one in even.outputs)
    assert even.chosen_candidate.recipe.quantized
    assert even.worst_class.count == CLASSES + 2  # and two groups
    assert even.worst_class.proven
    assert even.worst_class.needed == 14


def test_class_without_enough_samples_is_named_and_not_proven(folder, tmp_path):
    """A limit that takes 2995 samples of each class leaves the float artifact, and names every class."""
    report = converted(folder, "even", tmp_path, max_drops={"boxes": 0.1}, max_drop_any_class=0.001, aim="size")
    assert not report.chosen_candidate.recipe.quantized
    assert set(report.worst_class.too_few) == {*(f"class {i}" for i in range(CLASSES)), "group day", "group night"}
    reasons = [one.reason for one in report.candidates if one.verdict == "unproven"]
    assert any("proof samples of it" in reason for reason in reasons)


def test_labels_of_another_output_choose_its_metric(folder, tmp_path):
    """y_boxes with float labels: the boxes are judged by mse; --metric OUTPUT=NAME says otherwise."""
    report = converted(folder, "even", tmp_path, "even-labels", max_drops={"boxes": 1.0})
    assert [one.metric for one in report.outputs] == ["accuracy", "mse"]
    report = converted(folder, "even", tmp_path, "even-labels", max_drops={"boxes": 1.0}, metrics={"boxes": "mae"})
    assert [one.metric for one in report.outputs] == ["accuracy", "mae"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": {"box": "mse"}}, "--metric names the output 'box'"),
        ({"max_drops": {"box": 0.1}}, "--max-drop names the output 'box'"),
        ({"ignore_outputs": ["box"]}, "--ignore-output names the output 'box'"),
        ({"ignore_outputs": ["scores", "boxes"]}, "all outputs are ignored"),
        ({"metric": "accuracy", "metrics": {"scores": "mse"}}, "two metrics are given for output scores"),
    ],
)
def test_wrong_names_of_outputs_are_usage_errors(folder, tmp_path, options, message):
    """The error names the option and lists the outputs; nothing is written."""
    with pytest.raises(SettingsError, match=message):
        converted(folder, "even", tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_labels_of_an_unknown_output_are_refused(folder, tmp_path):
    """y_box for a model with the output boxes is a fault of the data file."""
    with np.load(folder / "even.npz") as data:
        np.savez(folder / "misspelt.npz", **{name: data[name] for name in ("x", "y")}, y_box=data["y"])
    with pytest.raises(DataError, match="the data hold labels y_box, and the model has no output 'box'"):
        converted(folder, "even", tmp_path, "misspelt")


def test_a_limit_that_no_candidate_keeps_is_refused_with_the_output(folder, tmp_path):
    """A recipe that spoils the head ends with status 3, and the message names the output."""
    from edgekit.bundle.recipe import Recipe

    with pytest.raises(RefusedError, match="output boxes"):
        converted(folder, "spoiled", tmp_path, recipe=Recipe("int8"))


def test_report_with_open_bounds_can_be_read_back(even):
    """JSON has no infinity: a bound that is open is null, and read as infinite."""
    from converters.report.report import parse_report, report_json

    boxes = even.outputs[1]
    opened = msgspec.structs.replace(boxes, tested=float("inf"), drop=msgspec.structs.replace(boxes.drop, upper=np.inf))
    report = msgspec.structs.replace(even, outputs=(even.outputs[0], opened))
    assert parse_report(report_json(report)) == report


def test_answers_that_differ_by_rounding_only_are_constant_and_told(tmp_path):
    """As of a deep network with random weights: float32 is no drop of 100 %, and a note says that it proves little."""
    rng = np.random.default_rng(2)
    weights = {"w": rng.normal(0, 1e-9, (8, 4)).astype(np.float32), "b": np.array([0.02, 0.01, 0.03, 0.04], np.float32)}
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="dense")]
    models.saved(models.model_of(nodes, {"x": ["N", 8]}, {"y": ["N", 4]}, weights), tmp_path / "random.onnx")
    np.savez(tmp_path / "data.npz", x=rng.normal(0, 1, (200, 8)).astype(np.float32))
    [report] = convert(
        tmp_path / "random.onnx", targets=["x86-64"], data=tmp_path / "data.npz", output=tmp_path / "out", aim="size"
    )
    assert next(one for one in report.candidates if one.id == "float32").drop.value == pytest.approx(0.0, abs=1e-5)
    assert any("output y: the float model gives the same answer to every sample" in note for note in report.notes)
