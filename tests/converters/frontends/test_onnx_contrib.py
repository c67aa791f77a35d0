"""Operators of ONNX Runtime's own domain: rewritten where they have a standard form, else named."""

import numpy as np
import pytest
from onnx import TensorProto, helper

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


TOKENS = {"x": ["batch", 6, 8]}
MASK = np.array([[1] * 6, [1, 1, 1, 1, 0, 0], [1, 0, 1, 0, 1, 0]], np.int32)
PROJECTED = {"w": weight(8, 24), "b": weight(24)}
ATTENTION = {
    "plain": ("Attention", ["x", "w", "b"], {}, {}, PROJECTED),
    "scale": ("Attention", ["x", "w", "b"], {"scale": 0.3}, {}, PROJECTED),
    "mask": ("Attention", ["x", "w", "b", "m"], {}, {"m": MASK}, PROJECTED),
    "causal": ("Attention", ["x", "w", "b"], {"unidirectional": 1}, {}, PROJECTED),
    "bias-of-scores": ("Attention", ["x", "w", "b", "", "", "r"], {}, {}, {**PROJECTED, "r": weight(1, 2, 6, 6)}),
    "sizes": ("Attention", ["x", "w", "b"], {"qkv_hidden_sizes": [4, 4, 8]}, {},
              {"w": weight(8, 16), "b": weight(16)}),
    "many-heads": ("MultiHeadAttention", ["x", "x", "x", "b"], {}, {}, {"b": weight(24)}),
    "many-heads-no-bias": ("MultiHeadAttention", ["x", "x", "x"], {}, {}, {}),
    "many-heads-mask": ("MultiHeadAttention", ["x", "x", "x", "", "m"], {"scale": 0.5}, {"m": MASK}, {}),
}  # fmt: skip


@pytest.mark.parametrize("form", ATTENTION)
def test_attention_gives_the_same_answers_in_its_standard_form(tmp_path, form):
    """ONNX Runtime's optimizer for transformers writes these operators into the files that people download."""
    operator, inputs, attributes, masks, weights = ATTENTION[form]
    node = helper.make_node(operator, inputs, ["y"], name="fused", domain="com.microsoft", num_heads=2, **attributes)
    used = {name: value for name, value in weights.items() if name in inputs}
    shapes = {**TOKENS, **({"m": ["batch", 6]} if masks else {})}
    kinds = {"m": TensorProto.INT32} if masks else {}
    model = models.model_of([node], shapes, {"y": ["batch", 6, 8]}, used, opset=14, domains=["com.microsoft"])
    for value in model.graph.input:
        value.type.tensor_type.elem_type = kinds.get(value.name, TensorProto.FLOAT)
    path = models.saved(model, tmp_path / "m.onnx")
    given = {"x": weight(3, 6, 8), **masks}
    graph = load_onnx(path)
    assert {entry.domain for entry in graph.model.opset_import} == {""}
    np.testing.assert_allclose(graph.run(given)["y"], onnx_answers(path, given)["y"], atol=1e-5)


def test_embeddings_and_lengths_of_a_bert_give_the_same_answers(tmp_path):
    """The first operator of an optimized BERT gives its attention the number of words of each sample as the mask."""
    constants = {
        "words": weight(20, 8), "places": weight(10, 8), "kinds": weight(2, 8), "g": weight(8), "o": weight(8),
        **PROJECTED,
    }  # fmt: skip
    nodes = [
        helper.make_node("EmbedLayerNormalization", ["ids", "types", "words", "places", "kinds", "g", "o", "mask"],
                         ["x", "lengths"], domain="com.microsoft"),
        helper.make_node("Attention", ["x", "w", "b", "lengths"], ["y"], domain="com.microsoft", num_heads=2),
    ]  # fmt: skip
    shapes = {name: ["batch", 6] for name in ("ids", "types", "mask")}
    model = models.model_of(nodes, shapes, {"y": ["batch", 6, 8]}, constants, opset=17, domains=["com.microsoft"])
    for value in model.graph.input:
        value.type.tensor_type.elem_type = TensorProto.INT32
    path = models.saved(model, tmp_path / "m.onnx")
    mask = (np.arange(6) < np.array([[6], [3], [1]])).astype(np.int32)
    ids = RNG.integers(0, 20, (3, 6)).astype(np.int32)
    given = {"ids": ids, "types": (ids % 2).astype(np.int32), "mask": mask}
    np.testing.assert_allclose(load_onnx(path).run(given)["y"], onnx_answers(path, given)["y"], atol=1e-4)


def test_group_norm_with_a_scale_for_each_group_is_rewritten(tmp_path):
    """ONNX withdrew this form of opset 18; ONNX Runtime and its quantizer still take it."""
    node = helper.make_node("GroupNormalization", ["x", "g", "b"], ["y"], name="norm", num_groups=2, epsilon=1e-3)
    constants = {"g": weight(2), "b": weight(2)}
    model = models.model_of([node], {"x": ["batch", 6, 5, 4]}, {"y": ["batch", 6, 5, 4]}, constants, opset=18)
    path = models.saved(model, tmp_path / "m.onnx")
    given = {"x": weight(3, 6, 5, 4)}
    np.testing.assert_allclose(load_onnx(path).run(given)["y"], onnx_answers(path, given)["y"], atol=1e-5)


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
    """Attention without weights is refused by name; the advice is to give the file from before."""
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
