"""Models that end in operators whose number of results depends on the data, and cuts before them."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from converters import convert
from converters.data.preprocessing import read_steps
from converters.framework_process import TensorFlowProcess
from converters.frontends import load_model
from converters.frontends.onnx import load_onnx, onnx_answers
from converters.frontends.onnx.normalise import canonical
from converters.frontends.onnx.source import source_model, steps_after_cut
from converters.graph.stated import Stated
from edgekit.bundle.manifest import parse_manifest
from edgekit.errors import SettingsError, UnsupportedOpError
from edgekit.preprocess import Processing, processing_faults
from edgekit.preprocess.after import DecodeBoxes, SplitBoxes, Suppress
from edgekit.tensors import DType
from tests.simulators import models

CLASSES, BOXES = 3, 20


def node(kind, inputs, outputs, **attributes):
    return helper.make_node(kind, inputs, outputs.split(), name=f"{kind}_of_{outputs.split()[0]}", **attributes)


def detector(tail, outputs, *, centers=0, weights=None, channels=4 + CLASSES):
    """A model (1, 8) -> predictions (1, channels, BOXES), with `tail` behind."""
    rng = np.random.default_rng(0)
    known = {
        "w": rng.random((8, channels * BOXES)).astype(np.float32),
        "form": np.array([1, channels, BOXES]),
        "most": np.array([50]),
        "overlap": np.array([0.45], np.float32),
        "least": np.array([0.3], np.float32),
        "zero": np.array([0]), "one": np.array([1]), "two": np.array([2]), "four": np.array([4]),
        "end": np.array([channels]), "half": np.float32(2), "confidence": np.float32(0.2),
        **(weights or {}),
    }  # fmt: skip
    nodes = [
        node("MatMul", ["x", "w"], "flat"),
        node("Reshape", ["flat", "form"], "predictions"),
        *tail,
    ]
    used = {name for one in nodes for name in one.input}
    model = models.model_of(nodes, {"x": [1, 8]}, {}, {name: value for name, value in known.items() if name in used})
    for name, kind, shape in outputs:
        model.graph.output.append(helper.make_tensor_value_info(name, kind, shape))
    return model


SELECTED = [("selected", TensorProto.INT64, ["n", 3])]
PARTS = [
    node("Slice", ["predictions", "zero", "four", "one"], "boxes_first"),
    node("Transpose", ["boxes_first"], "boxes", perm=[0, 2, 1]),
    node("Slice", ["predictions", "four", "end", "one"], "classes_first"),
]


def suppression(boxes, scores, **attributes):
    return node("NonMaxSuppression", [boxes, scores, "most", "overlap", "least"], "selected", **attributes)


def refused(model, path):
    with pytest.raises(UnsupportedOpError) as caught:
        load_onnx(models.saved(model, path))
    return caught.value


def test_suppression_at_the_end_says_where_to_cut(tmp_path):
    """The error names the operator, the tensors to cut at with their shapes, and the step that takes the place."""
    model = detector([*PARTS, suppression("boxes", "classes_first")], SELECTED)
    error = refused(model, tmp_path / "m.onnx")
    assert (error.op, error.layer) == ("NonMaxSuppression", "NonMaxSuppression_of_selected")
    assert "--cut boxes,classes_first (boxes [1, 20, 4]; classes_first [1, 3, 20])" in error.advice
    assert "nms" in error.advice


def test_named_cut_makes_the_tensors_the_outputs(tmp_path):
    """The cut model has the named tensors as outputs, and its answers are the file's own at these tensors."""
    path = models.saved(detector([*PARTS, suppression("boxes", "classes_first")], SELECTED), tmp_path / "m.onnx")
    cut = ("boxes", "classes_first")
    graph = canonical(source_model(path, cut), str(path))
    assert [spec.name for spec in graph.outputs] == list(cut)
    assert "NonMaxSuppression" not in graph.operators
    x = {"x": np.random.default_rng(1).random((2, 8)).astype(np.float32)}
    expected = onnx_answers(path, x, cut=cut)
    for name, value in graph.run(x).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-6)


def test_unknown_cut_names_similar_tensors(tmp_path):
    """A wrong name is refused with the nearest names of the model."""
    path = models.saved(detector([*PARTS, suppression("boxes", "classes_first")], SELECTED), tmp_path / "m.onnx")
    with pytest.raises(SettingsError, match="boxs") as caught:
        source_model(path, ("boxs",))
    assert "boxes" in caught.value.advice


@pytest.mark.parametrize(("centers", "form"), [(0, []), (1, [DecodeBoxes(form="cxcywh", of="boxes")])])
def test_automatic_cut_writes_the_suppression_as_a_step(tmp_path, centers, form):
    """The step has the operator's settings, and the scores are transposed to one row a box."""
    tail = [*PARTS, suppression("boxes", "classes_first", center_point_box=centers)]
    path = models.saved(detector(tail, SELECTED), tmp_path / "m.onnx")
    graph = canonical(source_model(path, ("auto",)), str(path))
    assert {spec.name: spec.shape for spec in graph.outputs} == {
        "boxes": (1, BOXES, 4),
        "classes_first_by_box": (1, BOXES, CLASSES),
    }
    steps = steps_after_cut(path, ("auto",))
    nms = Suppress("boxes", "classes_first_by_box", least=0.3, overlap=0.45, most=50, candidates=1000)
    assert list(steps) == [*form, nms]
    assert not processing_faults(Processing(after=steps), graph.logical_inputs, graph.logical_outputs)


def test_absent_settings_of_a_suppression_are_onnx_defaults(tmp_path):
    """Without a threshold no box is dropped for its score, and boxes that overlap at all are; settings may be nodes."""
    tail = [
        *PARTS,
        node("Constant", [], "few", value_ints=[7]),
        node("NonMaxSuppression", ["boxes", "classes_first", "few"], "selected"),
    ]
    path = models.saved(detector(tail, SELECTED), tmp_path / "m.onnx")
    [nms] = steps_after_cut(path, ("auto",))
    assert (nms.least, nms.overlap, nms.most) == (0.0, 0.0, 7)


def test_automatic_cut_gives_what_the_model_gave(tmp_path):
    """The cut model with its steps finds the boxes that the operator selects."""
    tail = [*PARTS, suppression("boxes", "classes_first", center_point_box=1)]
    path = models.saved(detector(tail, SELECTED), tmp_path / "m.onnx")
    x = {"x": np.random.default_rng(4).random((1, 8)).astype(np.float32)}
    tensors = dict(onnx_answers(path, x, cut=("auto",)))
    selected = onnxruntime.InferenceSession(path).run(["selected"], x)[0]
    best = {(int(box), int(one)) for _, one, box in selected}
    boxes, scores = tensors["boxes"][0], tensors["classes_first_by_box"][0]
    for step in steps_after_cut(path, ("auto",)):
        tensors = step.apply(tensors, None)
    count = int(tensors["count"][0])
    kept = {
        (int(np.argmin(np.abs(scores[:, int(one)] - score))), int(one))
        for one, score in zip(tensors["classes"][0][:count], tensors["scores"][0][:count], strict=True)
    }
    assert len(boxes) == BOXES
    assert kept == best


def test_scores_that_are_only_transposed_are_cut_before(tmp_path):
    """Where scores (B, M, classes) exist in the model, they are the output."""
    tail = [
        *PARTS,
        node("Transpose", ["classes_first"], "by_box", perm=[0, 2, 1]),
        node("Sigmoid", ["by_box"], "rated"),
        node("Transpose", ["rated"], "scores", perm=[0, 2, 1]),
        suppression("boxes", "scores"),
    ]
    path = models.saved(detector(tail, SELECTED), tmp_path / "m.onnx")
    assert [value.name for value in source_model(path, ("auto",)).graph.output] == ["boxes", "rated"]


def test_yolo_tail_that_filters_first_is_cut_at_its_predictions(tmp_path):
    """Boxes are filtered by score first: the predictions are the output, and three steps follow."""
    tail = [
        node("Transpose", ["predictions"], "rows", perm=[0, 2, 1]),
        node("Slice", ["rows", "zero", "four", "two"], "xywh"),
        node("Slice", ["rows", "four", "end", "two"], "rated"),
        node("ReduceMax", ["rated"], "best", axes=[2], keepdims=0),
        node("Greater", ["best", "confidence"], "sure"),
        node("NonZero", ["sure"], "where"),
        node("Transpose", ["where"], "places", perm=[1, 0]),
        node("GatherND", ["xywh", "places"], "kept_boxes"),
        node("GatherND", ["rated", "places"], "kept_scores"),
        node("Div", ["kept_boxes", "half"], "halves"),
        node("Unsqueeze", ["halves", "zero"], "final_boxes"),
        node("Transpose", ["kept_scores"], "by_class", perm=[1, 0]),
        node("Unsqueeze", ["by_class", "zero"], "final_scores"),
        suppression("final_boxes", "final_scores"),
    ]
    path = models.saved(detector(tail, SELECTED), tmp_path / "m.onnx")
    model = source_model(path, ("auto",))
    assert [value.name for value in model.graph.output] == ["rows"]
    split, decode, nms = steps_after_cut(path, ("auto",))
    assert split == SplitBoxes(of="rows", channels="last")
    assert decode == DecodeBoxes(form="cxcywh", of="boxes")
    assert (nms.least, nms.overlap, nms.most) == (0.2, 0.45, 50)
    graph = canonical(model, str(path))
    assert not processing_faults(Processing(after=(split, decode, nms)), graph.logical_inputs, graph.logical_outputs)


def test_other_data_dependent_operator_says_where_to_cut(tmp_path):
    """NonZero has no step that takes its place; the tensor before it is named."""
    tail = [node("Relu", ["predictions"], "active"), node("NonZero", ["active"], "places")]
    model = detector(tail, [("places", TensorProto.INT64, [3, "n"])])
    error = refused(model, tmp_path / "m.onnx")
    assert error.op == "NonZero"
    assert "--cut active (active [1, 7, 20])" in error.advice
    assert "in the application" in error.advice


def test_operator_inside_with_outputs_of_fixed_size_is_no_obstacle(tmp_path):
    """A NonZero whose result ends in an output of fixed size is left to the targets."""
    tail = [
        node("NonZero", ["predictions"], "places"),
        node("Cast", ["places"], "numbers", to=TensorProto.FLOAT),
        node("ReduceMax", ["numbers"], "largest", axes=[0, 1], keepdims=1),
    ]
    model = detector(tail, [("largest", TensorProto.FLOAT, [1, 1])])
    assert load_onnx(models.saved(model, tmp_path / "m.onnx")).outputs[0].shape == (1, 1)


def test_nothing_to_cut_is_refused(tmp_path):
    """--cut auto on a model without such operators says how to name tensors."""
    path = models.saved(models.classifier(), tmp_path / "m.onnx")
    with pytest.raises(SettingsError, match="no outputs whose size depends on the data") as caught:
        source_model(path, ("auto",))
    assert "--cut OUTPUT" in caught.value.advice


def test_conversion_with_an_automatic_cut_ships_the_steps(tmp_path):
    """The bundle's manifest has the suppression, and the file of steps can be given again with --preprocess."""
    tail = [*PARTS, suppression("boxes", "classes_first", center_point_box=1)]
    path = models.saved(detector(tail, SELECTED), tmp_path / "m.onnx")
    [report] = convert(path, targets=["jetson-orin"], cut=("auto",), output=tmp_path / "out")
    manifest = parse_manifest((tmp_path / "out" / "m-1.0.0-jetson-orin" / "manifest.json").read_bytes())
    steps = steps_after_cut(path, ("auto",))
    assert manifest.processing == Processing(after=steps)
    assert read_steps(tmp_path / "out" / "m-steps.toml").processing == Processing(after=steps)
    assert report.preprocess == "cut"


def test_half_precision_source_is_judged_with_its_own_noise(tmp_path):
    """A float16 file converts: only its reading is compared with answers in half precision, and float32 is told."""
    rng = np.random.default_rng(0)
    weights = {f"w{i}": (rng.standard_normal((16, 16)) / 4).astype(np.float16) for i in range(4)}
    nodes = [node("MatMul", [f"h{i}" if i else "x", f"w{i}"], f"m{i}") for i in range(4)]
    nodes = [one for i, first in enumerate(nodes) for one in (first, node("Tanh", [f"m{i}"], f"h{i + 1}"))]
    model = models.model_of(nodes, {"x": ["batch", 16]}, {"h4": ["batch", 16]}, weights)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    path = models.saved(model, tmp_path / "half.onnx")
    [report] = convert(path, targets=["jetson-orin"], output=tmp_path / "out")
    assert report.chosen in ("float32", "float16")
    manifest = parse_manifest((tmp_path / "out" / "half-1.0.0-jetson-orin" / "manifest.json").read_bytes())
    assert manifest.inputs[0].spec.dtype is DType.FLOAT16
    assert {c.id for c in report.candidates} >= {"float32"}


def test_cut_of_another_format_is_refused(tmp_path):
    """--cut works on ONNX files; the error says so before a framework is started."""
    path = tmp_path / "m.tflite"
    path.write_bytes(b"\x1c\x00\x00\x00TFL3" + bytes(100))
    with TensorFlowProcess() as process, pytest.raises(SettingsError, match="--cut cuts ONNX models"):
        load_model(path, process, Stated(cut=("a",)))
