"""Operators of ai.onnx.ml, as the exporter of scikit-learn writes them: rewritten where they have a standard form."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from converters.frontends.onnx import load_onnx, onnx_answers
from edgekit.errors import UnsupportedOpError
from tests.simulators import models

RNG = np.random.default_rng(4)
X = RNG.normal(0, 2, (9, 4)).astype(np.float32)
TWELVE = [float(value) for value in RNG.normal(0, 1, 12)]
CLASSES = {"coefficients": TWELVE, "intercepts": [0.1, -0.2, 0.3], "classlabels_ints": [5, 2, 9]}


def saved(tmp_path, nodes, outputs, weights=None):
    """The path of a model with the input x (N, 4); `outputs` gives the type and the axes of each output."""
    model = models.model_of(nodes, {"x": ["n", 4]}, {name: axes for name, (_, axes) in outputs.items()}, weights)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    for value in model.graph.output:
        value.type.tensor_type.elem_type = outputs[value.name][0]
    return models.saved(model, tmp_path / "m.onnx")


def classical(kind, inputs=("x",), outputs=("y",), **attributes):
    return helper.make_node(
        kind, list(inputs), list(outputs), name=f"classical {kind}", domain="ai.onnx.ml", **attributes
    )


def require_equal(path):
    """The graph of standard operators answers as ONNX Runtime answers with the classical ones."""
    graph = load_onnx(path)
    assert {entry.domain for entry in graph.model.opset_import} == {""}
    expected, found = onnx_answers(path, {"x": X}, graph=graph), graph.run({"x": X})
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)


FORMS = {
    "Scaler": ({"offset": [1.0, 2.0, 3.0, 4.0], "scale": [0.5]}, 4),
    "LinearRegressor": ({"coefficients": TWELVE, "intercepts": [1.0, 2.0, 3.0], "targets": 3}, 3),
    "Normalizer": ({"norm": "L2"}, 4),
    "Binarizer": ({"threshold": 0.5}, 4),
    "FeatureVectorizer": ({"inputdimensions": [4]}, 4),
}


@pytest.mark.parametrize("operator", FORMS)
def test_operator_with_a_standard_form_gives_the_same_answers(tmp_path, operator):
    """ONNX Runtime runs the classical operator; the canonical graph has standard operators."""
    attributes, width = FORMS[operator]
    node = classical(operator, **attributes)
    require_equal(saved(tmp_path, [node], {"y": (TensorProto.FLOAT, ["n", width])}))


@pytest.mark.parametrize("transform", ["NONE", "SOFTMAX", "LOGISTIC"])
def test_linear_classifier_gives_labels_and_scores(tmp_path, transform):
    """Labels are those of the model, and not numbers from 0."""
    node = classical("LinearClassifier", outputs=("label", "scores"), post_transform=transform, **CLASSES)
    require_equal(
        saved(tmp_path, [node], {"label": (TensorProto.INT64, ["n"]), "scores": (TensorProto.FLOAT, ["n", 3])})
    )


def test_network_behind_a_scaler_gives_its_labels_by_lookup(tmp_path):
    """The form of MLPClassifier: Scaler, dense layer, ArgMax, and the label from a list of classes."""
    nodes = [
        classical("Scaler", outputs=("s",), offset=[0.5], scale=[2.0]),
        helper.make_node("MatMul", ["s", "w"], ["y"]),
        helper.make_node("ArgMax", ["y"], ["best"], axis=1, keepdims=0),
        classical("ArrayFeatureExtractor", ("classes", "best"), ("found",)),
        helper.make_node("Reshape", ["found", "flat"], ["label"]),
    ]
    weights = {"w": RNG.normal(0, 1, (4, 3)).astype(np.float32), "classes": np.array([3, 5, 9]), "flat": np.array([-1])}
    require_equal(
        saved(tmp_path, nodes, {"label": (TensorProto.INT64, ["n"]), "y": (TensorProto.FLOAT, ["n", 3])}, weights)
    )


def test_label_of_the_best_class_is_looked_up(tmp_path):
    """A LabelEncoder behind an ArgMax gets no other numbers than its keys."""
    encoder = classical("LabelEncoder", ("best",), ("label",), keys_int64s=[0, 1, 2, 3], values_int64s=[7, 5, 3, 1])
    nodes = [helper.make_node("ArgMax", ["x"], ["best"], axis=1, keepdims=0), encoder]
    require_equal(saved(tmp_path, nodes, {"label": (TensorProto.INT64, ["n"])}))


def test_scores_of_a_zipmap_are_a_tensor(tmp_path):
    """Maps from classes to scores become one number for each class, under the same name."""
    nodes = [
        classical("LinearClassifier", outputs=("label", "raw"), post_transform="SOFTMAX", **CLASSES),
        classical("ZipMap", ("raw",), ("scores",), classlabels_int64s=[5, 2, 9]),
    ]
    path = saved(tmp_path, nodes, {"label": (TensorProto.INT64, ["n"]), "scores": (TensorProto.FLOAT, ["n", 3])})
    model = onnx.load(path)
    kind = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    model.graph.output[1].CopyFrom(helper.make_value_info("scores", helper.make_sequence_type_proto(kind)))
    onnx.save(model, path)
    found = load_onnx(path).run({"x": X})["scores"]
    assert found.shape == (9, 3)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    require_equal(path)


@pytest.mark.parametrize(
    ("node", "says"),
    [
        (classical("TreeEnsembleRegressor", n_targets=1), "custom operator"),
        (classical("Normalizer", norm="MAX"), "its norm is MAX"),
        (classical("LabelEncoder", keys_int64s=[0, 1], values_int64s=[5, 6]), "other values than its keys"),
        (
            classical("LinearRegressor", coefficients=TWELVE, targets=3, post_transform="PROBIT"),
            "its post_transform is",
        ),
        (classical("LinearRegressor", coefficients=TWELVE, intercepts=[1.0], targets=3), "1 intercepts for 3"),
    ],
    ids=lambda value: getattr(value, "op_type", ""),
)
def test_operator_without_a_standard_form_is_named(tmp_path, node, says):
    """The message has the layer and what edgekit converts."""
    with pytest.raises(UnsupportedOpError, match=says) as caught:
        load_onnx(saved(tmp_path, [node], {"y": (TensorProto.FLOAT, ["n", 3])}))
    assert f"'classical {node.op_type}'" in str(caught.value)
    assert "neural networks" in caught.value.advice
