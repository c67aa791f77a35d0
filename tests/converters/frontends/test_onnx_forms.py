"""ONNX files as exporters write them: old operator sets, other floats, wrong shapes, known branches."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from converters.frontends.onnx import canonical, load_onnx, onnx_answers
from converters.frontends.onnx.floats import dtypes_of, precision_of
from converters.frontends.onnx.foreign import one_line
from converters.graph.graph import joined
from converters.graph.stated import Stated
from edgekit.errors import ConversionError, ModelFormatError, UnsupportedOpError
from tests.simulators import models


def answers(model, path, x):
    """The file's own answers and those of its canonical graph."""
    path = models.saved(model, path)
    graph = load_onnx(path)
    return onnx_answers(path, {"x": x}, graph=graph), graph.run({"x": x})


def same(model, tmp_path, x, atol=1e-6):
    expected, found = answers(model, tmp_path / "m.onnx", x)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=atol)
    return found


def rows(*shape):
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def old_forms():
    one = np.ones(2, np.float32)
    four = {"x": ["batch", 2, 4, 4]}
    yield "Upsample", 8, four, [helper.make_node("Upsample", ["x"], ["y"], scales=[1.0, 1.0, 2.0, 2.0])], {}
    scales = np.array([1, 1, 2, 2], np.float32)
    yield "Upsample 9", 9, four, [helper.make_node("Upsample", ["x", "s"], ["y"])], {"s": scales}
    norm = helper.make_node("BatchNormalization", ["x", "a", "a", "a", "a"], ["y"], epsilon=0.1)
    yield "BatchNormalization", 7, four, [norm], {"a": one}
    yield "Dropout", 7, four, [helper.make_node("Dropout", ["x"], ["y"], ratio=0.5)], {}
    yield "Slice", 9, four, [helper.make_node("Slice", ["x"], ["y"], starts=[1], ends=[3], axes=[2])], {}
    yield "Pad", 10, four, [helper.make_node("Pad", ["x"], ["y"], pads=[0, 0, 1, 0, 0, 0, 0, 1])], {}
    yield "Clip", 8, four, [helper.make_node("Clip", ["x"], ["y"], max=0.5)], {}
    yield "Softmax", 7, four, [helper.make_node("Softmax", ["x"], ["y"], axis=1)], {}
    yield "Unsqueeze", 10, four, [helper.make_node("Unsqueeze", ["x"], ["y"], axes=[1])], {}


@pytest.mark.parametrize("form", list(old_forms()), ids=lambda form: form[0])
def test_old_operator_set_is_upgraded(tmp_path, form):
    """Forms of opsets 7 to 10 give the same answers at the canonical opset."""
    _, opset, inputs, nodes, weights = form
    model = models.model_of(nodes, inputs, {"y": ["batch", "c", "h", "w"]}, weights, opset=opset)
    shape = canonical_shape(model, rows(3, 2, 4, 4))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", *shape[1:]]))
    assert same(model, tmp_path, rows(3, 2, 4, 4))["y"].shape == shape


def canonical_shape(model, x):
    """The shape of the answers to `x`, as ONNX's reference evaluator gives it."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0].shape


def test_operator_that_cannot_be_upgraded_is_named(tmp_path):
    """Where ONNX's converter has no rule, the error names operator, layer and both opsets."""
    node = helper.make_node("Cast", ["x"], ["y"], name="cast_1", to="INT32")
    model = models.model_of([node], {"x": ["batch", 4]}, {"y": ["batch", 4]}, opset=5)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT32
    with pytest.raises(UnsupportedOpError, match="opset 5 to 17") as caught:
        load_onnx(models.saved(model, tmp_path / "m.onnx"))
    assert (caught.value.op, caught.value.layer) == ("Cast", "cast_1")
    assert "\n" not in str(caught.value)


def test_wrong_declared_output_shape_is_corrected(tmp_path):
    """An output that is declared with another size or rank gets the inferred shape, as in ONNX Runtime."""
    for declared in (["batch", 9], ["batch", 4, 1]):
        model = models.model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": ["batch", 4]}, {"y": declared})
        model.graph.value_info.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4]))
        assert load_onnx(models.saved(model, tmp_path / "m.onnx")).outputs[0].shape == (None, 4)


def test_short_fourier_transform_without_its_default_is_read(tmp_path):
    """STFT gives half of the bins where the file does not say so; ONNX's own inference expects all of them."""
    held = {"window": np.hanning(16).astype(np.float32), "step": np.int64(5), "w": rows(3, 9)}
    nodes = [helper.make_node("STFT", ["x", "step", "window"], ["s"]), helper.make_node("MatMul", ["w", "s"], ["y"])]
    model = models.model_of(nodes, {"x": ["batch", 40]}, {"y": ["batch", 5, 3, 2]}, held)
    assert same(model, tmp_path, rows(2, 40))["y"].shape == (2, 5, 3, 2)


def test_output_given_out_twice_is_one_output(tmp_path):
    """A name that is listed twice among the outputs is one output."""
    model = models.model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": ["batch", 4]}, {"y": ["batch", 4]})
    model.graph.output.append(model.graph.output[0])
    assert list(same(model, tmp_path, rows(2, 4))) == ["y"]


def test_input_given_out_has_a_name_of_its_own(tmp_path):
    """An input that is also an output is given out as NAME_output."""
    model = models.model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": ["batch", 4]}, {"y": ["batch", 4]})
    model.graph.output.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4]))
    x = rows(2, 4)
    np.testing.assert_array_equal(same(model, tmp_path, x)["x_output"], x)


def test_unused_domain_and_listed_weights_are_no_obstacle(tmp_path):
    """Imports that no node uses are dropped, and weights that are listed as inputs are no inputs."""
    node = helper.make_node("Add", ["x", "w"], ["y"], domain="ai.onnx")
    weights = {"w": np.ones(4, np.float32)}
    model = models.model_of([node], {"x": ["batch", 4]}, {"y": ["batch", 4]}, weights, domains=["ai.onnx.ml"])
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4]))
    model.ir_version = 3
    same(model, tmp_path, rows(2, 4))
    assert [spec.name for spec in canonical(model, "m").inputs] == ["x"]


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16])
def test_other_floats_become_float32(tmp_path, kind):
    """Weights, casts, inputs and outputs of another float type are float32; useless casts are gone."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    weight = numpy_helper.from_array(rows(4, 3).astype(dtype), "w")
    nodes = [
        helper.make_node("Cast", ["x"], ["narrow"], to=kind),
        helper.make_node("MatMul", ["narrow", "w"], ["product"]),
        helper.make_node("Constant", [], ["half"], value=helper.make_tensor("half", kind, [], [0.5])),
        helper.make_node("Mul", ["product", "half"], ["y"]),
    ]
    model = models.model_of(nodes, {"x": ["batch", 4]}, {"y": ["batch", 3]})
    model.graph.initializer.append(weight)
    model.graph.output[0].type.tensor_type.elem_type = kind
    found = same(model, tmp_path, rows(5, 4), atol=0.05)
    assert found["y"].dtype == np.float32
    graph = load_onnx(tmp_path / "m.onnx")
    assert "Cast" not in graph.operators
    assert {value.dtype for value in graph.constants.values()} == {np.dtype(np.float32)}
    assert precision_of(model) == ("float32" if kind == TensorProto.DOUBLE else dtype.name)
    assert dtypes_of(model) == {"y": dtype.name}


def test_cast_to_integers_stays(tmp_path):
    """Only casts from float to float are useless."""
    nodes = [
        helper.make_node("Cast", ["x"], ["whole"], to=TensorProto.INT32),
        helper.make_node("Cast", ["whole"], ["narrow"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["narrow"], ["y"], to=TensorProto.FLOAT),
    ]
    model = models.model_of(nodes, {"x": ["batch", 4]}, {"y": ["batch", 4]})
    x = rows(5, 4) * 9
    np.testing.assert_array_equal(same(model, tmp_path, x)["y"], np.trunc(x))


def test_float64_constant_beyond_float32_stays_finite():
    """A mask of -1e300 becomes the largest negative float32, not infinity."""
    mask = np.array([[0, -1e300]])
    nodes = [
        helper.make_node("Add", ["x", "mask"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["y"]),
    ]
    model = models.model_of(nodes, {"x": ["batch", 2]}, {"y": ["batch", 2]}, {"mask": mask})
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    assert np.isfinite(canonical(model, "m").constants["mask"]).all()


@pytest.mark.parametrize(
    ("operator", "inputs", "domain"),
    [
        ("QuantizeLinear", ["x", "s", "z"], ""),
        ("DynamicQuantizeLinear", ["x"], ""),
        ("MatMulNBits", ["x", "z", "s"], "com.microsoft"),
    ],
)
def test_quantized_source_is_refused_by_operator(tmp_path, operator, inputs, domain):
    """The refusal names operator and layer, and says to export the float model."""
    node = helper.make_node(operator, inputs, ["q"], name="q_1", domain=domain)
    weights = {"s": np.float32(0.1), "z": np.uint8(3)}
    model = models.model_of([node], {"x": ["batch", 4]}, {"q": ["batch", 4]}, weights, domains=[domain])
    with pytest.raises(ModelFormatError, match=rf"quantized already: .*{operator} \(layer 'q_1'\)") as caught:
        load_onnx(models.saved(model, tmp_path / "m.onnx"))
    assert "float model" in caught.value.advice


def branch(name, *nodes, output, weights=()):
    value = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    return helper.make_graph(list(nodes), name, [], [value], list(weights))


def test_branch_that_a_size_decides_takes_the_place_of_the_if(tmp_path):
    """The If that PyTorch writes for squeeze is decided by a size; an If inside its branch folds too."""
    inner = helper.make_node(
        "If",
        ["yes"],
        ["inner"],
        then_branch=branch("a", helper.make_node("Add", ["x", "w"], ["t"]), output="t", weights=[weight("w", 2.0)]),
        else_branch=branch("b", helper.make_node("Neg", ["x"], ["t"]), output="t"),
    )
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["size"]),
        helper.make_node("Equal", ["size", "four"], ["fits"]),
        helper.make_node(
            "If",
            ["fits"],
            ["y"],
            then_branch=branch("then", helper.make_node("Constant", [], ["yes"], value=true()), inner, output="inner"),
            else_branch=branch("else", helper.make_node("Identity", ["x"], ["t"]), output="t"),
        ),
    ]
    weights = {"one": np.int64(1), "four": np.int64(4), "w": np.float32(9)}
    model = models.model_of(nodes, {"x": ["batch", 4]}, {"y": ["batch", 4]}, weights)
    x = rows(3, 4)
    np.testing.assert_allclose(same(model, tmp_path, x)["y"], x + 2)
    assert set(load_onnx(tmp_path / "m.onnx").operators) == {"Add"}


def weight(name, value):
    return numpy_helper.from_array(np.float32(value), name)


def true():
    return helper.make_tensor("yes", TensorProto.BOOL, [], [True])


def test_branch_that_an_input_decides_stays(tmp_path):
    """An If whose condition depends on an input is kept, for runtimes that have it."""
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node(
            "If",
            ["positive"],
            ["y"],
            then_branch=branch("then", helper.make_node("Neg", ["x"], ["t"]), output="t"),
            else_branch=branch("else", helper.make_node("Relu", ["x"], ["t"]), output="t"),
        ),
    ]
    model = models.model_of(nodes, {"x": [1, 4]}, {"y": [1, 4]}, {"zero": np.float32(0)})
    same(model, tmp_path, np.abs(rows(1, 4)))
    assert load_onnx(tmp_path / "m.onnx").operators["If"] == 1


def test_branch_behind_a_computed_pad_folds(tmp_path):
    """Sizes behind a Pad with computed widths, and the number of axes, decide branches as PyTorch exports them."""
    nodes = [
        helper.make_node("Concat", ["none", "one_one"], ["widths"], axis=0),
        helper.make_node("Cast", ["widths"], ["pads"], to=TensorProto.INT64),
        helper.make_node("Pad", ["x", "pads"], ["padded"]),
        helper.make_node("Shape", ["padded"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["width"]),
        helper.make_node("Equal", ["width", "six"], ["is_six"]),
        helper.make_node("Size", ["shape"], ["rank"]),
        helper.make_node("Equal", ["rank", "two"], ["is_two"]),
        helper.make_node("And", ["is_six", "is_two"], ["both"]),
        helper.make_node(
            "If",
            ["both"],
            ["y"],
            then_branch=branch("then", helper.make_node("Neg", ["padded"], ["t"]), output="t"),
            else_branch=branch("else", helper.make_node("Identity", ["padded"], ["t"]), output="t"),
        ),
    ]
    weights = {
        "none": np.array([0, 0], np.int32),
        "one_one": np.array([0, 2], np.int32),
        "one": np.int64(1),
        "six": np.int64(6),
        "two": np.int64(2),
    }
    model = models.model_of(nodes, {"x": ["batch", 4]}, {"y": ["batch", 6]}, weights)
    x = rows(3, 4)
    np.testing.assert_array_equal(same(model, tmp_path, x)["y"][:, :4], -x)
    assert "If" not in load_onnx(tmp_path / "m.onnx").operators


def test_damaged_graph_is_told_in_one_line(tmp_path):
    """A node that does not accept its inputs is reported without paths of C++ files and without line breaks."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    model = models.model_of(nodes, {"x": ["batch", 4]}, {"y": ["batch", 3]}, {"w": np.ones((5, 3), np.float32)})
    with pytest.raises(ModelFormatError, match="not a valid ONNX model") as caught:
        load_onnx(models.saved(model, tmp_path / "m.onnx"))
    assert "operator MatMul (layer 'product') does not fit its inputs or options" in str(caught.value)
    assert ".h:" not in f"{caught.value} {caught.value.foreign_text}"
    assert "\n" not in caught.value.foreign_text
    assert onnx.checker.check_model.__name__ in caught.value.advice


def test_size_that_an_input_states_is_refused_with_what_to_fix():
    """Where samples give outputs of different sizes, the error names the output and --fix."""
    parts = [{"y": np.zeros((1, width), np.float32)} for width in (2, 3)]
    with pytest.raises(ConversionError, match=r"output y depends on .*: samples gave \[2\] and \[3\]") as caught:
        joined(parts)
    assert "--fix" in caught.value.advice


@pytest.mark.parametrize("kind", [TensorProto.FLOAT8E4M3FN, TensorProto.INT4])
def test_narrow_types_are_refused_as_quantized(tmp_path, kind):
    """A cast to 8-bit floats or 4-bit integers is quantization, and is refused in the same words."""
    nodes = [
        helper.make_node("Cast", ["x"], ["n"], to=kind, name="narrow"),
        helper.make_node("Cast", ["n"], ["y"], to=1),
    ]
    model = models.model_of(nodes, {"x": ["batch", 4]}, {"y": ["batch", 4]}, opset=21)
    with pytest.raises(ModelFormatError, match=r"quantized already: Cast to .* \(layer 'narrow'\)"):
        load_onnx(models.saved(model, tmp_path / "m.onnx"))


def test_sequence_is_named(tmp_path):
    """An input that is a sequence of tensors is refused as such."""
    node = helper.make_node("ConcatFromSequence", ["s"], ["y"], axis=0)
    model = models.model_of([node], {}, {"y": ["batch", 4]})
    model.graph.input.append(helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None))
    with pytest.raises(ModelFormatError, match="input s is no tensor but a sequence"):
        load_onnx(models.saved(model, tmp_path / "m.onnx"))


@pytest.mark.parametrize("side", ["input", "output"])
def test_texts_are_refused_with_what_to_do(tmp_path, side):
    """A tensor of texts is named; nothing later fails on it."""
    to = TensorProto.STRING if side == "output" else TensorProto.FLOAT
    model = models.model_of([helper.make_node("Cast", ["x"], ["y"], to=to)], {"x": ["n", 4]}, {"y": ["n", 4]})
    values = model.graph.output if side == "output" else model.graph.input
    values[0].type.tensor_type.elem_type = TensorProto.STRING
    with pytest.raises(ModelFormatError, match=f"{side} [xy] holds texts") as caught:
        load_onnx(models.saved(model, tmp_path / "m.onnx"))
    assert caught.value.advice


def test_nodes_in_any_order_are_read(tmp_path):
    """A node may stand before the one whose result it reads, as ONNX Runtime allows; a cycle is refused."""
    nodes = [helper.make_node("Relu", ["m"], ["y"]), helper.make_node("Neg", ["x"], ["m"])]
    same(models.model_of(nodes, {"x": ["n", 4]}, {"y": ["n", 4]}), tmp_path, rows(5, 4))
    nodes[1].input[0] = "y"
    with pytest.raises(ModelFormatError, match="not a valid ONNX model"):
        load_onnx(models.saved(models.model_of(nodes, {"x": ["n", 4]}, {"y": ["n", 4]}), tmp_path / "m.onnx"))


def random_forms():
    yes = {"share": np.float32(0.5), "yes": np.array(True)}
    yield [helper.make_node("Dropout", ["x", "share", "yes"], ["y"], name="noisy")], yes, "model.eval"
    noise = [
        helper.make_node("RandomNormalLike", ["x"], ["r"], name="noisy"),
        helper.make_node("Add", ["x", "r"], ["y"]),
    ]
    yield noise, {}, "--fix noise_scale=0"


@pytest.mark.parametrize(("nodes", "constants", "advice"), list(random_forms()), ids=["dropout", "noise"])
def test_model_that_draws_random_numbers_is_refused(tmp_path, nodes, constants, advice):
    """Two runs on the same inputs differ, so nothing can be proven: the layer is named, with what to do."""
    model = models.model_of(nodes, {"x": ["n", 4]}, {"y": ["n", 4]}, constants)
    with pytest.raises(ModelFormatError, match=r"\(layer 'noisy'\) draws random numbers") as caught:
        load_onnx(models.saved(model, tmp_path / "m.onnx"))
    assert advice in caught.value.advice


def test_random_numbers_that_change_nothing_are_no_obstacle(tmp_path):
    """Noise that is multiplied by 0, as with --fix noise_scale=0, leaves the answers repeatable."""
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["r"]),
        helper.make_node("Mul", ["r", "scale"], ["s"]),
        helper.make_node("Add", ["x", "s"], ["y"]),
    ]
    model = models.model_of(nodes, {"x": ["n", 4], "scale": [1]}, {"y": ["n", 4]})
    with pytest.raises(ModelFormatError, match="draws random numbers"):
        load_onnx(models.saved(model, tmp_path / "m.onnx"))
    graph = load_onnx(models.saved(model, tmp_path / "m.onnx"), Stated(fixed={"scale": 0}))
    assert graph.run({"x": rows(3, 4)})["y"].shape == (3, 4)


def test_normalization_in_training_mode_is_refused(tmp_path):
    """It normalizes each batch by itself, so it is no step that a device could run row by row."""
    one = np.ones(3, np.float32)
    outputs = ["y", "new_mean", "new_var"]
    node = helper.make_node("BatchNormalization", ["x", *"abcd"], outputs, name="bn", training_mode=1)
    model = models.model_of([node], {"x": ["n", 3]}, {"y": ["n", 3]}, dict.fromkeys("abcd", one))
    with pytest.raises(ModelFormatError, match=r"'bn'.* is in training mode") as caught:
        load_onnx(models.saved(model, tmp_path / "m.onnx"))
    assert "model.eval()" in caught.value.advice


def test_old_normalization_for_training_is_refused_alike(tmp_path):
    """Before opset 14 it has five outputs, which no newer form has."""
    node = helper.make_node("BatchNormalization", ["x", *"abcd"], ["y", "m", "v", "sm", "sv"], name="bn", momentum=0.9)
    model = models.model_of([node], {"x": ["n", 3]}, {"y": ["n", 3]}, dict.fromkeys("abcd", np.ones(3, np.float32)))
    model.opset_import[0].version = 13
    with pytest.raises(ModelFormatError, match=r"'bn'.* is in training mode") as caught:
        load_onnx(models.saved(model, tmp_path / "m.onnx"))
    assert "model.eval()" in caught.value.advice


def test_operator_of_a_newer_operator_set_says_which_to_export(tmp_path):
    """Mish came with opset 18."""
    model = models.model_of([helper.make_node("Mish", ["x"], ["y"])], {"x": ["n", 4]}, {"y": ["n", 4]})
    with pytest.raises(UnsupportedOpError, match="opset 17 has no such operator") as caught:
        load_onnx(models.saved(model, tmp_path / "m.onnx"))
    assert "opset 18" in caught.value.advice


def test_foreign_messages_are_shortened():
    """Source paths, assertions and codes of C++ libraries are left out of messages."""
    failed = RuntimeError("/project/onnx/x.h:66: adapt: Assertion `a == b` failed: Mod has no such type")
    assert one_line(failed) == "Mod has no such type"
    assert one_line(RuntimeError("[ONNXRuntimeError] : 1 : FAIL : Node\n(x)")) == "Node (x)"


@pytest.mark.parametrize(("kind", "gates", "inner"), [("LSTM", 4, False), ("GRU", 3, False), ("RNN", 1, True)])
def test_recurrent_layer_with_its_batch_first_gets_the_time_first(tmp_path, kind, gates, inner):
    """ONNX Runtime refuses layout 1; the answers are those of ONNX's reference, with first states, inside an If too."""
    hidden, steps, directions = 3, 5, 2
    weights = {
        "w": rows(directions, gates * hidden, 4),
        "r": rows(directions, gates * hidden, hidden),
        "h0": np.zeros((2, directions, hidden), np.float32) + 0.5,
        "true": np.array(True),
    }
    layer = helper.make_node(
        kind, ["x", "w", "r", "", "", "h0"], ["y", "h"], hidden_size=hidden, layout=1, direction="bidirectional"
    )
    sizes = {"y": [2, steps, directions, hidden], "h": [2, directions, hidden]}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in sizes.items()]
    branch = helper.make_graph([layer], "branch", [], values)
    node = helper.make_node("If", ["true"], ["y", "h"], then_branch=branch, else_branch=branch) if inner else layer
    model = models.model_of([node], {"x": [2, steps, 4]}, sizes, weights)
    x = rows(1, 2, steps, 4)
    expected = dict(zip(sizes, ReferenceEvaluator(model).run(None, {"x": x[0]}), strict=True))
    found = same(model, tmp_path, x)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name].reshape(value.shape), value, atol=1e-6)


@pytest.mark.parametrize("alpha", [{}, {"alpha": 0.5}])
def test_operators_that_are_too_new_are_written_as_onnx_defines_them(tmp_path, alpha):
    """Opset 24 has Swish; ONNX's converter has no rule for it, and its definition has older operators only."""
    node = helper.make_node("Swish", ["x"], ["y"], name="swish", **alpha)
    same(models.model_of([node], {"x": ["batch", 4]}, {"y": ["batch", 4]}, opset=24), tmp_path, rows(3, 4))


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("constant", [True, False])
def test_sparse_weights_become_dense(tmp_path, constant, flat):
    """Sparse initializers and Constant nodes with sparse values, with places in the flat tensor or for each axis."""
    places = np.array([[0, 1], [2, 0], [3, 1]])
    indices = places @ np.array([2, 1]) if flat else places
    values = helper.make_tensor("w", TensorProto.FLOAT, [3], [1.0, -2.0, 0.5])
    sparse = helper.make_sparse_tensor(values, helper.make_tensor("at", 7, indices.shape, indices.ravel()), [4, 2])
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    if constant:
        nodes.insert(0, helper.make_node("Constant", [], ["w"], sparse_value=sparse))
    model = models.model_of(nodes, {"x": ["batch", 4]}, {"y": ["batch", 2]})
    if not constant:
        model.graph.sparse_initializer.append(sparse)
    same(model, tmp_path, rows(3, 4))
