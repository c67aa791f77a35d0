import numpy as np
import pytest
from onnx import TensorProto, helper

from converters.backends.accelerators import accelerators, faults
from converters.frontends.onnx import canonical
from edgekit.errors import UnsupportedOpError
from tests.converters.lowering.lowered import lowered
from tests.simulators import models

pytestmark = pytest.mark.heavy
RNG = np.random.default_rng(8)


def weights(*shape):
    return RNG.normal(0, 0.5, shape).astype(np.float32)


def node(op, inputs=("x",), output="y", **attributes):
    return helper.make_node(op, list(inputs), [output], name=op.lower(), **attributes)


@pytest.mark.parametrize("layout", ["channel-first", "channel-last"])
def test_no_transpose_is_left_in_an_image_network(layout, child, tmp_path):
    """For either layout of the source, the artifact is channel-last and runs on one delegate."""
    image, perm = ([4, 9, 8], None) if layout == "channel-first" else ([9, 8, 4], [0, 3, 1, 2])
    nodes = [node("Transpose", output="t", perm=perm)] if perm else [node("Identity", output="t")]
    nodes += [
        node("Conv", ("t", "w"), "c", pads=[1, 1, 1, 1]),
        node("Relu", ("c",), "r"),
        node("Add", ("t", "r"), "a"),
        node("GlobalAveragePool", ("a",), "p"),
        node("Flatten", ("p",), "f"),
        node("Gemm", ("f", "d"), "y"),
    ]
    constants = {"w": weights(4, 4, 3, 3), "d": weights(4, 3)}
    model = models.model_of(nodes, {"x": ["batch", *image]}, {"y": ["batch", 3]}, constants)
    from converters.passes import Simplify, run_pass

    simple = run_pass(Simplify(), canonical(model, "test")).graph.model
    graph, runtime, operators = lowered(child, tmp_path, simple)
    x = np.random.default_rng(2).normal(0, 1, (2, *image)).astype(np.float32)
    np.testing.assert_allclose(runtime.run({"x": x})["y"], graph.run({"x": x})["y"], atol=1e-5)
    assert "TRANSPOSE" not in operators
    assert operators.count("DELEGATE") == 1
    assert "MEAN" in operators


def test_a_channel_shuffle_moves_the_channels_only(child, tmp_path):
    """One transposition of at most three axes, which accelerators have, and none of the image itself."""
    nodes = [
        node("Conv", ("x", "w"), "c"),
        node("Reshape", ("c", "split"), "s"),
        node("Transpose", ("s",), "t", perm=[0, 2, 1, 3, 4]),
        helper.make_node("Reshape", ["t", "join"], ["j"], name="join"),
        helper.make_node("Conv", ["j", "v"], ["y"], name="last"),
    ]
    shapes = {"split": np.array([-1, 2, 3, 9, 8]), "join": np.array([-1, 6, 9, 8])}
    model = models.model_of(
        nodes,
        {"x": ["batch", 4, 9, 8]},
        {"y": ["batch", 5, 9, 8]},
        {"w": weights(6, 4, 1, 1), "v": weights(5, 6, 1, 1), **shapes},
    )
    graph, runtime, operators = lowered(child, tmp_path, model)
    x = RNG.normal(0, 1, (2, 4, 9, 8)).astype(np.float32)
    np.testing.assert_allclose(runtime.run({"x": x})["y"], graph.run({"x": x})["y"], atol=1e-5)
    # The input and the output are channel-first for callers, and channel-last in the file.
    assert [name for name in operators if name != "DELEGATE"] == [
        "CONV_2D",
        "RESHAPE",
        "TRANSPOSE",
        "RESHAPE",
        "CONV_2D",
    ]
    assert not faults((tmp_path / "m.tflite").read_bytes(), accelerators()["edgetpu"], quantized=False)


@pytest.mark.parametrize(
    ("first", "made"),
    [(node("Mul", ("x", "k"), "m"), ["MUL"]), (node("Neg", output="m"), []), (node("Abs", output="m"), ["ABS", "NEG"])],
)
def test_a_sigmoid_written_as_a_quotient_is_one_operator(first, made, child, tmp_path):
    """Accelerators have no exponential and no division, and in 8 bits the divisor can be 0."""
    nodes = [
        first,
        node("Exp", ("m",), "e"),
        node("Add", ("one", "e"), "a"),
        node("Reciprocal", ("a",), "y"),
    ]
    constants = {"k": np.float32(-50.0), "one": np.float32(1.0)}
    model = models.model_of(nodes, {"x": ["batch", 9]}, {"y": ["batch", 9]}, constants)
    _, _, operators = lowered(child, tmp_path, model)
    assert [name for name in operators if name != "DELEGATE"] == [*made, "LOGISTIC"]


def test_use_of_an_operator_that_cannot_be_lowered_says_why(child, tmp_path):
    """An unsupported use of a known operator gives the layer, and the reason as advice."""
    nodes = [node("ScatterND", ("x", "i", "u"), reduction="mul")]
    constants = {"i": np.zeros((1, 1), np.int64), "u": weights(1, 9)}
    model = models.model_of(nodes, {"x": ["batch", 9]}, {"y": ["batch", 9]}, constants)
    with pytest.raises(UnsupportedOpError) as caught:
        lowered(child, tmp_path, model)
    assert caught.value.layer == "scatternd"
    assert "reduction mul" in caught.value.advice


def test_computed_weights_of_a_volume_are_refused_with_the_reason(child, tmp_path):
    """A volume is computed plane by plane from constant weights; images take computed ones."""
    nodes = [
        node("GlobalAveragePool", output="p"),
        node("Reshape", ("p", "flat"), "f"),
        node("MatMul", ("f", "m"), "k"),
        node("Reshape", ("k", "s"), "w"),
        node("Conv", ("x", "w")),
    ]
    constants = {"flat": np.array([1, 2]), "m": weights(2, 162), "s": np.array([3, 2, 3, 3, 3])}
    model = models.model_of(nodes, {"x": [1, 2, 5, 5, 5]}, {"y": [1, 3, 3, 3, 3]}, constants)
    with pytest.raises(UnsupportedOpError) as caught:
        lowered(child, tmp_path, model)
    assert caught.value.layer == "conv"
    assert "weights is not constant" in caught.value.advice


def test_padding_of_a_maximum_leaves_8_bit_scales_alone(child, tmp_path):
    """The padding is 0 after a Relu and a copy of the edge elsewhere; no value is far outside of the data."""
    padded = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}
    nodes = [node("Relu", output="r"), node("MaxPool", ("r",), **padded), node("MaxPool", ("x",), "z", **padded)]
    shape = ["batch", 4, 4, 4]
    model = models.model_of(nodes, {"x": ["batch", 4, 8, 8]}, {"y": shape, "z": shape})
    graph, runtime, operators = lowered(child, tmp_path, model)
    x = {"x": np.random.default_rng(2).normal(0, 1, (2, 4, 8, 8)).astype(np.float32)}
    answers, expected = runtime.run(x), graph.run(x)
    for name, value in expected.items():
        np.testing.assert_array_equal(answers[name], value)
    assert "PADV2" not in operators


def test_whole_numbers_divide_by_an_input(child, tmp_path):
    """The weights are made in a run on zeros, which would divide by 0; answers are ONNX Runtime's."""
    nodes = [
        helper.make_node("Div", ["x", "z"], ["q"]),
        helper.make_node("Mod", ["x", "z"], ["r"]),
        helper.make_node("Concat", ["q", "r"], ["y"], axis=1),
    ]
    model = models.model_of(nodes, {"x": ["n", 3], "z": ["n", 3]}, {"y": ["n", 6]})
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.INT32
    graph, runtime, _ = lowered(child, tmp_path, model)
    inputs = {"x": np.array([[7, -7, 9]], np.int32), "z": np.array([[2, 2, 3]], np.int32)}
    np.testing.assert_array_equal(runtime.run(inputs)["y"], graph.run(inputs)["y"])
    runtime.close()
