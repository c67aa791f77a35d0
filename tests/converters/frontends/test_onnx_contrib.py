"""Operators of ONNX Runtime's own domain: rewritten where they have a standard form, else named."""

import numpy as np
import pytest
from onnx import helper

from converters.frontends.onnx import load_onnx, onnx_answers
from edgekit.errors import UnsupportedOpError
from tests.simulators import models

RNG = np.random.default_rng(5)


def weight(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


VECTOR = {"x": ["batch", 5, 4]}
SAME = {"y": ["batch", 5, 4]}
NORM = {"g": weight(4), "b": weight(4), "s": weight(1, 5, 4)}
FORMS = {
    "Gelu": (["x"], {}, VECTOR, SAME, {}),
    "BiasGelu": (["x", "b"], {}, VECTOR, SAME, {"b": weight(4)}),
    "FastGelu": (["x"], {}, VECTOR, SAME, {}),
    "QuickGelu": (["x"], {"alpha": 1.5}, VECTOR, SAME, {}),
    "FusedMatMul": (["x", "w"], {"transB": 1, "alpha": 0.5}, VECTOR, {"y": ["batch", 5, 3]}, {"w": weight(3, 4)}),
    "FusedGemm": (["x", "w"], {"activation": "LeakyRelu", "activation_alpha": 0.3}, {"x": ["batch", 4]},
                  {"y": ["batch", 3]}, {"w": weight(4, 3)}),
    "FusedConv": (["x", "w", "b"], {"activation": "Relu", "pads": [1, 1, 1, 1]}, {"x": ["batch", 2, 4, 4]},
                  {"y": ["batch", 3, 4, 4]}, {"w": weight(3, 2, 3, 3), "b": weight(3)}),
    "SkipLayerNormalization": (["x", "x", "g", "b", "b"], {"epsilon": 1e-3}, VECTOR, SAME, NORM),
    "SkipSimplifiedLayerNormalization": (["x", "x", "g"], {"epsilon": 1e-3}, VECTOR, SAME, NORM),
    "BiasAdd": (["x", "b", "x2"], {}, {"x": ["batch", 4, 320], "x2": ["batch", 4, 320]}, {"y": ["batch", 4, 320]},
                {"b": weight(320)}),
}  # fmt: skip


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("operator", FORMS)
def test_fused_operator_gives_the_same_answers_in_its_standard_form(tmp_path, operator, opset):
    """ONNX Runtime runs the fused operator; the canonical graph has standard operators and the same answers."""
    inputs, attributes, shapes, outputs, weights = FORMS[operator]
    node = helper.make_node(operator, inputs, ["y"], name="fused", domain="com.microsoft", **attributes)
    used = {name: value for name, value in weights.items() if name in inputs}
    path = models.saved(
        models.model_of([node], shapes, outputs, used, opset=opset, domains=["com.microsoft"]), tmp_path / "m.onnx"
    )
    given = {name: weight(*(3 if size == "batch" else size for size in shape)) for name, shape in shapes.items()}
    graph = load_onnx(path)
    assert {entry.domain for entry in graph.model.opset_import} == {""}
    on_gpus_only = operator == "BiasAdd"
    expected = {"y": given["x"] + weights["b"] + given["x2"]} if on_gpus_only else onnx_answers(path, given)
    np.testing.assert_allclose(graph.run(given)["y"], expected["y"], atol=1e-5)


@pytest.mark.parametrize("operator", ["LayerNormalization", "SimplifiedLayerNormalization"])
def test_layer_norm_of_an_early_operator_set_is_rewritten(tmp_path, operator):
    """ONNX Runtime writes layer norms into operator sets that have none."""
    inputs = ["x", "g", "b"] if operator == "LayerNormalization" else ["x", "g"]
    node = helper.make_node(operator, inputs, ["y"], name="norm", axis=-1)
    used = {name: NORM[name] for name in inputs[1:]}
    path = models.saved(models.model_of([node], VECTOR, SAME, used, opset=14), tmp_path / "m.onnx")
    x = {"x": weight(3, 5, 4)}
    np.testing.assert_allclose(load_onnx(path).run(x)["y"], onnx_answers(path, x)["y"], atol=1e-5)


def test_fused_operator_without_a_standard_form_is_named(tmp_path):
    """Attention of ONNX Runtime is refused by name; the advice is to give the file from before."""
    node = helper.make_node("Attention", ["x"], ["y"], name="attention_1", domain="com.microsoft", num_heads=2)
    model = models.model_of([node], VECTOR, SAME, domains=["com.microsoft"])
    with pytest.raises(UnsupportedOpError) as caught:
        load_onnx(models.saved(model, tmp_path / "m.onnx"))
    assert (caught.value.op, caught.value.layer) == ("com.microsoft::Attention", "attention_1")
    assert "from before" in caught.value.advice


def test_used_mean_of_a_fused_norm_is_named(tmp_path):
    """A norm whose mean is read has no standard form."""
    inputs = ["x", "x", "g"]
    node = helper.make_node("SkipLayerNormalization", inputs, ["y", "mean"], name="norm_1", domain="com.microsoft")
    model = models.model_of(
        [node], VECTOR, {**SAME, "mean": ["batch", 5, 1]}, {"g": NORM["g"]}, domains=["com.microsoft"]
    )
    with pytest.raises(UnsupportedOpError, match="mean or variance") as caught:
        load_onnx(models.saved(model, tmp_path / "m.onnx"))
    assert caught.value.layer == "norm_1"


def test_operator_of_classical_models_is_explained(tmp_path):
    """ai.onnx.ml is refused with what edgekit converts."""
    node = helper.make_node("Normalizer", ["x"], ["y"], name="n", domain="ai.onnx.ml")
    model = models.model_of([node], {"x": ["batch", 4]}, {"y": ["batch", 4]}, domains=["ai.onnx.ml"])
    with pytest.raises(UnsupportedOpError) as caught:
        load_onnx(models.saved(model, tmp_path / "m.onnx"))
    assert "neural networks" in caught.value.advice
